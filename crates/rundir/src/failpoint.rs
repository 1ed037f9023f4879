//! Failpoints: every call of [`RealFs`](crate::RealFs) that changes a disk is one, so that a test can end, pause or fail
//! a process of its own exactly there. Only in builds with debug assertions; a release has none of it.
//!
//! `EQUIPOISE_FAIL` holds one [`Failpoint`] as JSON:
//! `{"call": "rename", "path": ["ckpt", "step-00000008"], "rank": 0, "then": {"signal": 9}}`.
//! `EQUIPOISE_FAIL_TRACE` names a file; every failpoint that is passed adds a line of rank, call and path to it. What the
//! trace of an undisturbed run names is what a test has to try.

use std::io;
use std::path::Path;

/// Where, and what happens there.
#[cfg(debug_assertions)]
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Failpoint {
    /// The call, as [`Vfs`](crate::Vfs) names it; or the name of a value, see [`poisoned`].
    call: String,
    /// All of these are in its path: of a rename, the new one.
    path: Vec<String>,
    /// Only on this rank.
    rank: Option<u32>,
    /// The first such call, or a later one.
    #[serde(default = "first")]
    hit: u32,
    /// What happens, before the call is made.
    then: Then,
}

#[cfg(debug_assertions)]
#[derive(Clone, Copy, Debug, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum Then {
    /// This process gets a signal.
    Signal(i32),
    /// The call fails, and so do all like it from then on.
    Errno(i32),
    /// The call takes so many seconds longer.
    Sleep(f64),
    /// The value is not a number.
    Nan,
}

/// A call that changes a disk is about to be made.
///
/// # Errors
/// What a test asked for.
#[cfg(not(debug_assertions))]
#[inline]
pub(crate) fn pass(_call: &str, _path: &Path) -> io::Result<()> {
    Ok(())
}

/// Whether a test wants the value `name`, here, to be not a number.
#[cfg(not(debug_assertions))]
#[inline]
pub fn poisoned(_name: &str, _place: &dyn Fn() -> String) -> bool {
    false
}

#[cfg(debug_assertions)]
pub(crate) use on::pass;
#[cfg(debug_assertions)]
pub use on::poisoned;

#[cfg(debug_assertions)]
fn first() -> u32 {
    1
}

#[cfg(debug_assertions)]
mod on {
    use super::{Failpoint, Path, Then, io};
    use std::io::Write as _;
    use std::path::PathBuf;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static FAILPOINT: LazyLock<Option<Failpoint>> = LazyLock::new(|| {
        let text = std::env::var("EQUIPOISE_FAIL").ok()?;
        // A typo in a test must not look like a fault that was survived.
        Some(serde_json::from_str(&text).unwrap_or_else(|error| panic!("EQUIPOISE_FAIL={text}: {error}")))
    });
    static TRACE: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| std::env::var_os("EQUIPOISE_FAIL_TRACE").map(PathBuf::from));
    static HITS: AtomicU32 = AtomicU32::new(0);

    /// This rank, as the launchers tell it; 0 alone.
    fn rank() -> u32 {
        let names = ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID"];
        names.iter().find_map(|name| std::env::var(name).ok()?.parse().ok()).unwrap_or(0)
    }

    /// See the release's version.
    pub(crate) fn pass(call: &str, path: &Path) -> io::Result<()> {
        if FAILPOINT.is_none() && TRACE.is_none() {
            return Ok(());
        }
        let path = path.to_string_lossy();
        trace(call, &path);
        match due(call, &path) {
            Some(Then::Signal(signal)) => {
                // To the process, as others send it: the thread that writes checkpoints blocks most signals.
                // SAFETY: kill and getpid have no memory preconditions.
                unsafe { libc::kill(libc::getpid(), signal) };
                Ok(())
            }
            Some(Then::Errno(code)) => Err(io::Error::from_raw_os_error(code)),
            Some(Then::Sleep(seconds)) => {
                std::thread::sleep(std::time::Duration::from_secs_f64(seconds));
                Ok(())
            }
            Some(Then::Nan) | None => Ok(()),
        }
    }

    /// See the release's version.
    pub fn poisoned(name: &str, place: &dyn Fn() -> String) -> bool {
        FAILPOINT.is_some() && matches!(due(name, &place()), Some(Then::Nan))
    }

    /// What happens at this call, if it is the one.
    fn due(call: &str, path: &str) -> Option<Then> {
        let point = FAILPOINT.as_ref()?;
        let here = point.call == call
            && point.path.iter().all(|part| path.contains(part))
            && point.rank.is_none_or(|wanted| wanted == rank());
        if !here {
            return None;
        }
        let hit = HITS.fetch_add(1, Ordering::Relaxed) + 1;
        let lasts = matches!(point.then, Then::Errno(_)) && hit > point.hit;
        (hit == point.hit || lasts).then_some(point.then)
    }

    #[allow(clippy::disallowed_methods, reason = "a trace is no file of a run directory")]
    fn trace(call: &str, path: &str) {
        let Some(file) = TRACE.as_ref() else { return };
        let line = format!("{} {call} {path}\n", rank());
        let opened = std::fs::OpenOptions::new().create(true).append(true).open(file);
        let written = opened.and_then(|mut opened| opened.write_all(line.as_bytes()));
        written.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
}
