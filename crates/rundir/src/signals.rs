//! The request to stop: signals, the end of the job, and the program itself.
//!
//! The handler stores one number and does nothing else. What stops, where, and what is committed first is decided by
//! the loops, which ask [`StopFlag::reason`] at their boundaries. TERM (Slurm, preemption) and USR2 (our launcher)
//! are handled; USR1 is left to NCCL and INT to the launcher.

use equipoise_base::clock::Clock;
use equipoise_base::{Error, ExitCode, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

/// The signals that ask for a stop.
pub const STOP_SIGNALS: [i32; 2] = [libc::SIGTERM, libc::SIGUSR2];

/// The last stop signal received by this process; 0 for none.
static RECEIVED: AtomicI32 = AtomicI32::new(0);

extern "C" fn note(signal: libc::c_int) {
    RECEIVED.store(signal, Ordering::Release);
}

/// Why to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// A signal, by number.
    Signal(i32),
    /// The end of the job is closer than a commit takes.
    Deadline,
    /// The program asked: a peer rank stops, or the watchdog found one lost.
    Asked,
}

/// Whether to stop; clones share it. Never goes back to "go on".
#[derive(Clone, Debug, Default)]
pub struct StopFlag {
    asked: Arc<AtomicI32>,
    /// Whether signals count.
    listens: bool,
}

/// Values of `asked`.
const ASKED: i32 = 1;
const DEADLINE: i32 = 2;

impl StopFlag {
    /// A flag that no signal sets.
    pub fn new() -> Self {
        Self::default()
    }

    /// Installs the handlers for [`STOP_SIGNALS`]; a flag that they set.
    ///
    /// # Errors
    /// 74 if the operating system refuses a handler.
    pub fn install() -> Result<Self> {
        for signal in STOP_SIGNALS {
            // SAFETY: sigaction is plain data for which all zeros is a valid value.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = note as *const () as libc::sighandler_t;
            // Interrupted system calls go on: code that we did not write need not know about EINTR.
            action.sa_flags = libc::SA_RESTART;
            // SAFETY: the handler only stores to an atomic, which is async-signal-safe; the pointers are valid.
            let result = unsafe {
                libc::sigemptyset(&mut action.sa_mask);
                libc::sigaction(signal, &action, std::ptr::null_mut())
            };
            if result != 0 {
                let source = std::io::Error::last_os_error();
                let message = format!("cannot install a handler for signal {signal}: {source}");
                return Err(Error::new(ExitCode::Io, message).caused_by(source));
            }
        }
        Ok(Self { asked: Arc::default(), listens: true })
    }

    /// Asks for a stop from within the program.
    pub fn ask(&self) {
        self.set(ASKED);
    }

    /// Asks for a stop if the deadline is due.
    pub fn ask_if_due(&self, deadline: &Deadline, clock: &dyn Clock) {
        if deadline.is_due(clock) {
            self.set(DEADLINE);
        }
    }

    /// The first reason stays.
    fn set(&self, reason: i32) {
        let _ = self.asked.compare_exchange(0, reason, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Why to stop; none to go on. A signal comes before other reasons.
    pub fn reason(&self) -> Option<StopReason> {
        match (self.listens, RECEIVED.load(Ordering::Acquire)) {
            (true, signal) if signal != 0 => Some(StopReason::Signal(signal)),
            _ => match self.asked.load(Ordering::Acquire) {
                0 => None,
                DEADLINE => Some(StopReason::Deadline),
                _ => Some(StopReason::Asked),
            },
        }
    }

    /// Whether to stop.
    pub fn is_set(&self) -> bool {
        self.reason().is_some()
    }
}

/// Blocks the stop signals and INT in the calling thread, so that the main thread gets them.
pub fn block_in_this_thread() {
    // SAFETY: sigset_t is plain data; the calls only change this thread's mask, and cannot fail with these arguments.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in STOP_SIGNALS.into_iter().chain([libc::SIGINT]) {
            libc::sigaddset(&mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
}

/// When the job ends, and how long before it a last commit must begin: three times the longest one measured.
#[derive(Clone, Debug)]
pub struct Deadline {
    /// On the monotonic clock: a wall clock that jumps later changes nothing. None without a limit.
    end: Option<Duration>,
    longest_commit: Duration,
}

impl Deadline {
    /// A job that ends at `end_wall` (seconds since 1970), if it does; `expected_commit` counts until one is measured.
    pub fn new(end_wall: Option<f64>, expected_commit: Duration, clock: &dyn Clock) -> Self {
        let until =
            |end: f64| Duration::try_from_secs_f64((end - clock.wall()).max(0.0)).unwrap_or(Duration::MAX);
        let end =
            end_wall.filter(|end| end.is_finite()).map(|end| clock.monotonic().saturating_add(until(end)));
        Self { end, longest_commit: expected_commit }
    }

    /// The end of this Slurm job, from the text of `SLURM_JOB_END_TIME`; no limit if it is not a number.
    pub fn from_slurm(end_time: Option<&str>, expected_commit: Duration, clock: &dyn Clock) -> Self {
        let end = end_time.and_then(|text| text.trim().parse::<f64>().ok());
        Self::new(end, expected_commit, clock)
    }

    /// Takes a measured commit into account.
    pub fn measured(&mut self, commit: Duration) {
        self.longest_commit = self.longest_commit.max(commit);
    }

    /// Time until the end of the job, if it has one.
    pub fn left(&self, clock: &dyn Clock) -> Option<Duration> {
        self.end.map(|end| end.saturating_sub(clock.monotonic()))
    }

    /// Whether the last commit must begin now.
    pub fn is_due(&self, clock: &dyn Clock) -> bool {
        self.left(clock).is_some_and(|left| left <= self.longest_commit.saturating_mul(3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use equipoise_base::clock::FakeClock;

    #[test]
    fn the_first_reason_stays_and_clones_share_it() {
        let flag = StopFlag::new();
        let other = flag.clone();
        assert_eq!(flag.reason(), None);
        other.ask();
        other.set(DEADLINE);
        assert_eq!(flag.reason(), Some(StopReason::Asked));
    }

    #[test]
    fn the_deadline_leaves_three_commits_and_ignores_clock_jumps() {
        let clock = FakeClock::default();
        clock.set_wall(4_000_000_000.0); // beyond 2038
        let mut deadline = Deadline::from_slurm(Some("4000000100\n"), Duration::from_secs(5), &clock);
        let flag = StopFlag::new();
        clock.set_wall(0.0);
        clock.advance(Duration::from_secs(84));
        flag.ask_if_due(&deadline, &clock);
        assert!(!flag.is_set(), "16 s are left and 15 s are needed");
        deadline.measured(Duration::from_secs(6));
        clock.set_wall(1e12);
        flag.ask_if_due(&deadline, &clock);
        assert_eq!(flag.reason(), Some(StopReason::Deadline), "18 s are needed now");
    }

    #[test]
    fn no_or_odd_end_times_are_no_deadline() {
        let clock = FakeClock::default();
        for text in [None, Some(""), Some("Unknown"), Some("NaN"), Some("inf")] {
            assert!(!Deadline::from_slurm(text, Duration::from_secs(5), &clock).is_due(&clock), "{text:?}");
        }
        assert!(Deadline::from_slurm(Some("-5"), Duration::ZERO, &clock).is_due(&clock), "already over");
        assert!(!Deadline::new(Some(1e300), Duration::from_secs(5), &clock).is_due(&clock));
    }
}
