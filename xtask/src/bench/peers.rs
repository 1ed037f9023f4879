//! What the benchmarks need beside our own programs: the Python peers in a virtual environment of their own, and inputs
//! that are made once. All of it lies in ignored folders and is made again if it is removed.

use super::cases::Case;
use crate::shell;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::process::Command;

/// The environment of the peers.
pub const VENV: &str = ".venv-bench";
/// Inputs.
pub const FOLDER: &str = ".bench";
/// What the peers need.
const REQUIREMENTS: &str = "benches/peers/requirements.txt";
/// The oracle's latent diffusion.
const TINY: &str = "tests/oracle/unclip_pipeline/cfg10_v/model";

/// Python with the peers' packages.
pub fn python() -> Command {
    let mut command = Command::new(format!("{VENV}/bin/python"));
    command.env("PYTHONDONTWRITEBYTECODE", "1").env("OMP_NUM_THREADS", "1").env("MKL_NUM_THREADS", "1");
    command.env("OMP_WAIT_POLICY", "PASSIVE").env("HF_HUB_OFFLINE", "1").env("PYTHONWARNINGS", "ignore");
    command
}

/// Installs the peers, unless they are there in the wanted versions.
///
/// # Errors
/// When pip fails.
// A note beside the environment, not in a run directory.
#[allow(clippy::disallowed_methods)]
pub fn install() -> Result<()> {
    let wanted = fs::read_to_string(REQUIREMENTS).context(REQUIREMENTS)?;
    let note = Path::new(VENV).join("installed.txt");
    if fs::read_to_string(&note).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    shell::run(Command::new("python3").args(["-m", "venv", VENV]))?;
    let mut pip = python();
    shell::run(pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-r",
        REQUIREMENTS,
    ]))?;
    fs::write(&note, wanted).with_context(|| note.display().to_string())
}

/// Makes the inputs that the cases ask for and that are not there yet.
///
/// # Errors
/// When one cannot be made.
pub fn inputs(cases: &[&Case], bin: &Path) -> Result<()> {
    let scratch = Path::new(FOLDER).join("scratch");
    let _ = fs::remove_dir_all(&scratch);
    fs::create_dir_all(&scratch).context(FOLDER)?;
    let wanted = |placeholder: &str| cases.iter().any(|case| case.ours.contains(&placeholder));
    let missing = |name: &str| !Path::new(FOLDER).join(name).exists();
    let made = |name: &str| format!("{FOLDER}/{name}");
    if wanted("{photos}") && missing("photos") {
        shell::run(python().args(["benches/peers/photos.py", &made("photos")]))?;
    }
    if wanted("{medium}") && missing("medium") {
        shell::run(python().args(["benches/peers/medium.py", TINY, &made("medium")]))?;
    }
    if wanted("{run}") && missing("run/report.html") {
        let mut front = Command::new(bin.join("equipoise"));
        shell::run(front.args([
            "run",
            "configs/recipes/toy.toml",
            "--set",
            "toy.seeds=[0]",
            "--run",
            &made("run"),
        ]))?;
    }
    Ok(())
}

/// Arguments of a case with its placeholders filled in.
pub fn fill(args: &[&str], name: &str) -> Vec<String> {
    let places = [
        ("{photos}", format!("{FOLDER}/photos")),
        ("{medium}", format!("{FOLDER}/medium")),
        ("{tiny}", TINY.to_string()),
        ("{run}", format!("{FOLDER}/run")),
        ("{same}", format!("{FOLDER}/scratch/{name}.safetensors")),
        ("{scratch}", format!("{FOLDER}/scratch")),
    ];
    let filled = |arg: &&str| {
        places.iter().fold(arg.to_string(), |arg, (placeholder, value)| arg.replace(placeholder, value))
    };
    args.iter().map(filled).collect()
}
