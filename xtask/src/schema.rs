//! `cargo xtask schema`: the method crates own their parameters; this carries them to the front end.

use crate::shell;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::Path;
use std::process::Command;

const FILE: &str = "configs/schema.json";

/// Builds a step binary, asks it for the schema, and writes or compares the embedded file.
pub fn run(check: bool) -> Result<()> {
    shell::run(shell::cargo().args(["build", "--quiet", "--package", "step-train"]))?;
    of_built(check)
}

/// [`run`] with the binary that is there.
pub fn of_built(check: bool) -> Result<()> {
    let output = Command::new("target/debug/equipoise-train").arg("--print-schema").output();
    let output = output.context("cannot run equipoise-train")?;
    if !output.status.success() {
        bail!("equipoise-train --print-schema failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    let current = fs::read(FILE).unwrap_or_default();
    match (current == output.stdout, check) {
        (true, _) => println!("{FILE} is up to date"),
        (false, true) => bail!("{FILE} is out of date: run `cargo xtask schema`"),
        (false, false) => {
            shell::write(Path::new(FILE), &output.stdout)?;
            println!("{FILE} written: rebuild to embed it");
        }
    }
    Ok(())
}
