//! `cargo xtask schema`: the method crates own their parameters; this carries them to the front end.

use crate::shell;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::Path;

const FILE: &str = "configs/schema.json";

/// Asks a step binary for the schema and writes or compares the embedded file.
pub fn run(check: bool) -> Result<()> {
    let mut cargo = shell::cargo();
    cargo.args(["run", "--quiet", "--package", "step-train", "--", "--print-schema"]);
    let output = cargo.output().context("cannot run equipoise-train")?;
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
