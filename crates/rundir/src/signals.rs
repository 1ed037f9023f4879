//! The end of the job, and threads that must not be interrupted by the request to stop.
//!
//! The request itself is `comm::StopFlag`: loops look at it, and at the [`Deadline`], at their boundaries.

use equipoise_base::clock::Clock;
use std::time::Duration;

/// The signals that ask for a stop.
pub const STOP_SIGNALS: [i32; 2] = [libc::SIGTERM, libc::SIGUSR2];

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

/// Kept free at the end of a job: for leaving MPI, for the batch script, and for asking to be requeued while the job
/// still runs.
const TEARDOWN: Duration = Duration::from_secs(10);

/// When the job ends, and how long before it a last commit must begin: what a loop needs to look again, three times the
/// longest commit measured, and what it takes to leave.
#[derive(Clone, Debug)]
pub struct Deadline {
    /// On the monotonic clock: a wall clock that jumps later changes nothing. None without a limit.
    end: Option<Duration>,
    expected_commit: Duration,
    longest_commit: Option<Duration>,
    last_look: Option<Duration>,
    longest_interval: Duration,
}

impl Deadline {
    /// A job that ends at `end_wall` (seconds since 1970), if it does; `expected_commit` counts until one is measured.
    pub fn new(end_wall: Option<f64>, expected_commit: Duration, clock: &dyn Clock) -> Self {
        let until =
            |end: f64| Duration::try_from_secs_f64((end - clock.wall()).max(0.0)).unwrap_or(Duration::MAX);
        Self::after(end_wall.filter(|end| end.is_finite()).map(until), expected_commit, clock)
    }

    /// A job that has so much time left, if it has an end.
    pub fn after(left: Option<Duration>, expected_commit: Duration, clock: &dyn Clock) -> Self {
        Self {
            end: left.map(|left| clock.monotonic().saturating_add(left)),
            expected_commit,
            longest_commit: None,
            last_look: None,
            longest_interval: Duration::ZERO,
        }
    }

    /// The end of this Slurm job, from the text of `SLURM_JOB_END_TIME`; no limit if it is not a number.
    pub fn from_slurm(end_time: Option<&str>, expected_commit: Duration, clock: &dyn Clock) -> Self {
        let end = end_time.and_then(|text| text.trim().parse::<f64>().ok());
        Self::new(end, expected_commit, clock)
    }

    /// Takes a measured commit into account, in place of what was expected.
    pub fn measured(&mut self, commit: Duration) {
        self.longest_commit = Some(self.longest_commit.map_or(commit, |longest| longest.max(commit)));
    }

    /// As [`is_due`](Self::is_due), from a loop: learns how long one round takes, since the next look may come that late.
    pub fn look(&mut self, clock: &dyn Clock) -> bool {
        let now = clock.monotonic();
        if let Some(last) = self.last_look.replace(now) {
            self.longest_interval = self.longest_interval.max(now.saturating_sub(last));
        }
        self.is_due(clock)
    }

    /// Time until the end of the job, if it has one.
    pub fn left(&self, clock: &dyn Clock) -> Option<Duration> {
        self.end.map(|end| end.saturating_sub(clock.monotonic()))
    }

    /// Whether the last commit must begin now.
    pub fn is_due(&self, clock: &dyn Clock) -> bool {
        let commits = self.longest_commit.unwrap_or(self.expected_commit).saturating_mul(3);
        let needed = commits.saturating_add(self.longest_interval).saturating_add(TEARDOWN);
        self.left(clock).is_some_and(|left| left <= needed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use equipoise_base::clock::FakeClock;

    #[test]
    fn the_deadline_leaves_three_commits_and_ignores_clock_jumps() {
        let clock = FakeClock::default();
        clock.set_wall(4_000_000_000.0); // beyond 2038
        let mut deadline = Deadline::from_slurm(Some("4000000100\n"), Duration::from_secs(5), &clock);
        clock.set_wall(0.0);
        clock.advance(Duration::from_secs(74));
        assert!(!deadline.is_due(&clock), "26 s are left and 15 + 10 s are needed");
        deadline.measured(Duration::from_secs(6));
        clock.set_wall(1e12);
        assert!(deadline.is_due(&clock), "18 + 10 s are needed now");
    }

    #[test]
    fn a_measured_commit_replaces_the_expected_one_and_slow_rounds_count() {
        let clock = FakeClock::default();
        let mut deadline = Deadline::after(Some(Duration::from_secs(100)), Duration::from_secs(10), &clock);
        deadline.measured(Duration::from_secs(1));
        clock.advance(Duration::from_secs(45));
        assert!(!deadline.look(&clock), "55 s are left and 3 + 10 s are needed");
        clock.advance(Duration::from_secs(20));
        assert!(!deadline.look(&clock), "35 s are left and 20 + 3 + 10 s are needed");
        clock.advance(Duration::from_secs(2));
        assert!(deadline.look(&clock));
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
