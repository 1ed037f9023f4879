//! The environment that decides bits, settled before libtorch computes anything.

use equipoise_base::{Error, Result};
use equipoise_comm::environment::{CpuCapability, pinned};
use equipoise_config::{load_resolved, recipe};
use equipoise_rundir::RunDir;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Makes sure that this process has the threads and the instruction set that the run's recipe pins, as its ranks had.
///
/// libtorch, oneDNN and OpenMP read them when they are loaded, which is before `main`: if something differs, this
/// process becomes itself again with everything set.
///
/// # Errors
/// 78 if the configuration cannot be read or this program not be started again.
pub fn pin(run: &Path) -> Result<()> {
    let settings = load_resolved(&RunDir::new(run).config(), &[])?.recipe.run;
    let capability = match settings.cpu_capability {
        recipe::CpuCapability::Auto => CpuCapability::here(),
        recipe::CpuCapability::Default => CpuCapability::Default,
        recipe::CpuCapability::Avx2 => CpuCapability::Avx2,
        recipe::CpuCapability::Avx512 => CpuCapability::Avx512,
    };
    let wanted = pinned(settings.threads as usize, Some(capability));
    if wanted.iter().all(|(name, value)| std::env::var(name).as_ref() == Ok(value)) {
        return Ok(());
    }
    let failed = |error| Error::config(format!("cannot start again with the run's environment: {error}"));
    let program = std::env::current_exe().map_err(failed)?;
    Err(failed(Command::new(program).args(std::env::args_os().skip(1)).envs(wanted).exec()))
}
