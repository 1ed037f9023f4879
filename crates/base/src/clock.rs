//! Time behind a trait, so that skew, jumps and deadlines can be tested.
//!
//! Nothing is ever ordered by wall time; it is only shown to people. Decisions use [`Clock::monotonic`].

use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Source of time.
pub trait Clock: Send + Sync {
    /// Time since an arbitrary start; never goes back.
    fn monotonic(&self) -> Duration;
    /// Seconds since 1970, for people and for Slurm deadlines.
    fn wall(&self) -> f64;
    /// Waits.
    fn sleep(&self, duration: Duration);
}

/// The machine's clock.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn wall(&self) -> f64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
    }

    fn sleep(&self, duration: Duration) {
        std::thread::sleep(duration);
    }
}

/// A clock that moves only when told; `sleep` advances it.
#[derive(Debug, Default)]
pub struct FakeClock {
    now: Mutex<(Duration, f64)>,
}

impl FakeClock {
    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        let mut now = self.now.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        now.0 += by;
        now.1 += by.as_secs_f64();
    }

    /// Sets the wall clock alone, as a bad NTP step does.
    pub fn set_wall(&self, seconds: f64) {
        self.now.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).1 = seconds;
    }
}

impl Clock for FakeClock {
    fn monotonic(&self) -> Duration {
        self.now.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).0
    }

    fn wall(&self) -> f64 {
        self.now.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).1
    }

    fn sleep(&self, duration: Duration) {
        self.advance(duration);
    }
}
