//! `cargo xtask oracle`: regenerates our own cases of the numerical oracle from `tests/oracle/scripts`, and checks them.
//!
//! The cases without `ours_` in their names are unchanged copies, made elsewhere; they are never written here.

use crate::shell;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

const SCRIPTS: &str = "tests/oracle/scripts";
/// Packages of the scripts: pinned, and apart from those of the other tests.
const ENVIRONMENT: &str = "target/oracle-python";

/// What to do with what is made.
#[derive(clap::Args)]
pub struct Args {
    /// Make the cases in `target` and only check them; the committed ones stay as they are.
    #[arg(long)]
    check: bool,
}

/// Makes the cases and lets `equipoise-verify` compute them.
pub fn run(args: &Args) -> Result<()> {
    let python = python()?;
    let out = match args.check {
        true => PathBuf::from("target/oracle-cases"),
        false => PathBuf::from("tests/oracle"),
    };
    shell::run(Command::new(python).arg(Path::new(SCRIPTS).join("cases.py")).arg(&out))?;
    shell::run(shell::cargo().args(["build", "--quiet", "--package", "step-verify"]))?;
    shell::run(Command::new("target/debug/equipoise-verify").arg(&out).args(["--case", "ours_*"]))
}

/// The interpreter with the pinned packages; they are installed when the list has changed.
fn python() -> Result<PathBuf> {
    let python = Path::new(ENVIRONMENT).join("bin/python3");
    let list = Path::new(SCRIPTS).join("requirements.txt");
    let wanted = std::fs::read(&list).with_context(|| list.display().to_string())?;
    let installed = Path::new(ENVIRONMENT).join("requirements.txt");
    if std::fs::read(&installed).is_ok_and(|found| found == wanted) {
        return Ok(python);
    }
    shell::run(Command::new("python3").args(["-m", "venv", "--clear", ENVIRONMENT]))?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"]);
    shell::run(pip.arg(&list))?;
    std::fs::copy(&list, &installed).with_context(|| installed.display().to_string())?;
    ensure!(python.exists(), "{}: was not made", python.display());
    Ok(python)
}
