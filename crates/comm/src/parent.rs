//! No process outlives the one that started it, even if that one gets SIGKILL.

use equipoise_base::{ExitCode, Result, ResultExt as _, bail};
use std::io;

/// Makes the kernel kill this process when its parent (mpirun, orted, slurmstepd, the launcher) ends.
///
/// Call it first in `main` of every step binary. The kernel counts the *thread* that forked as the parent; those of
/// mpirun live as long as it does (checked with OpenMPI 4.1 and 40 ranks).
///
/// # Errors
/// I/O if the kernel refuses, or if the parent ended while this was being set up.
pub fn die_with_parent() -> Result<()> {
    // SAFETY: getppid has no preconditions.
    let parent = unsafe { libc::getppid() };
    request_parent_death_signal().or_exit(ExitCode::Io, "cannot ask to be killed with the parent process")?;
    // SAFETY: as above.
    if unsafe { libc::getppid() } != parent {
        bail!(Io, "the process that started this rank (pid {parent}) has ended");
    }
    Ok(())
}

/// For a child between fork and exec: as [`die_with_parent`], with the parent's pid taken before the fork, so that no
/// moment is left in which the parent may end unnoticed. Async-signal-safe.
pub(crate) fn die_with(parent: libc::pid_t) -> io::Result<()> {
    request_parent_death_signal()?;
    // SAFETY: getppid has no preconditions.
    if unsafe { libc::getppid() } != parent {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(())
}

fn request_parent_death_signal() -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes one integer.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
