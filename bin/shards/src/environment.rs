//! The environment that decides bits, settled before libtorch computes anything.

use equipoise_base::{Error, Result};
use equipoise_comm::environment::{CpuCapability, pinned};
use equipoise_config::load_resolved;
use equipoise_rundir::RunDir;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Lets HDF5 read on file systems without locks, as the run's ranks do: files are never changed in place.
///
/// Called in `main`, before anything starts a thread.
pub fn read_without_locks() {
    // SAFETY: this is the only thread so far, and HDF5 reads the variable when it is first used.
    unsafe { std::env::set_var("HDF5_USE_FILE_LOCKING", "FALSE") };
}

/// Makes sure that this process has the threads and the instruction set that the run's recipe pins, as its ranks had.
///
/// libtorch, oneDNN and OpenMP read them when they are loaded, which is before `main`: if something differs, this
/// process becomes itself again with everything set.
///
/// # Errors
/// 78 if the configuration cannot be read or this program not be started again.
pub fn pin(run: &Path) -> Result<()> {
    let settings = load_resolved(&RunDir::new(run).config(), &[])?.recipe.run;
    let capability: CpuCapability = settings.cpu_capability.parse()?;
    let wanted = pinned(settings.threads as usize, Some(capability));
    if wanted.iter().all(|(name, value)| std::env::var(name).as_ref() == Ok(value)) {
        return Ok(());
    }
    let failed = |error| Error::config(format!("cannot start again with the run's environment: {error}"));
    let program = std::env::current_exe().map_err(failed)?;
    Err(failed(Command::new(program).args(std::env::args_os().skip(1)).envs(wanted).exec()))
}
