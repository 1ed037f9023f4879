//! Step binaries: found beside the front end, as git finds its own, and of the same build.

use equipoise_base::{Error, ExitCode, Result};
use equipoise_config::BUILD_ID;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// Everything that the front end may start.
pub const PROGRAMS: [&str; 7] = [
    "equipoise-prepare",
    "equipoise-train",
    "equipoise-features",
    "equipoise-generate",
    "equipoise-metrics",
    "equipoise-shards",
    "equipoise-verify",
];

/// The path of a step binary.
///
/// # Errors
/// 78 if it is not there.
pub fn find(program: &str) -> Result<PathBuf> {
    let path = front_end()?.with_file_name(program);
    if path.is_file() {
        return Ok(path);
    }
    let message = format!("{}: not found; it is built together with equipoise", path.display());
    Err(Error::config(message).next("cargo build --release"))
}

/// The path of this program.
///
/// # Errors
/// 74 if the system does not tell.
pub fn front_end() -> Result<PathBuf> {
    let here = std::env::current_exe().and_then(std::fs::canonicalize);
    here.map_err(|error| Error::new(ExitCode::Io, format!("cannot tell where equipoise is: {error}")))
}

/// The build id that a step binary answers with.
///
/// # Errors
/// 78 if it is missing or cannot start, such as without its libraries.
pub fn build_id(program: &str) -> Result<String> {
    let path = find(program)?;
    let failed = |reason: String| {
        Error::config(format!("{}: cannot start: {reason}", path.display())).next("equipoise doctor")
    };
    let output = Command::new(&path).arg("--build-id").output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(failed(stderr.lines().next().unwrap_or("it says nothing").to_string()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// The path of a step binary of this build.
///
/// # Errors
/// 78 if it is missing, cannot start, or is of another build.
pub fn of_this_build(program: &str) -> Result<PathBuf> {
    let id = build_id(program)?;
    if id != BUILD_ID {
        let message = format!("{program} is of build '{id}', equipoise of '{BUILD_ID}'");
        return Err(Error::config(message).next("cargo build --release"));
    }
    find(program)
}

/// Becomes a step binary.
///
/// # Errors
/// 78 if it is missing or cannot start; does not return otherwise.
pub fn become_program(program: &str, args: &[OsString]) -> Result<ExitCode> {
    let path = find(program)?;
    let error = Command::new(&path).args(args).exec();
    Err(Error::config(format!("{}: cannot start: {error}", path.display())))
}
