//! Harness for faults, ranks and processes (tests only).
//!
//! Helpers panic with what went wrong and the output so far: a failed test should need no second run to be understood.

pub mod fake_slurm;
pub mod figures;
mod library;
pub mod nccl_double;
pub mod no_locks;
pub mod process;
pub mod slurm;
pub mod temp_run;
pub mod tree;

pub use equipoise_comm::threads::run as ranks;
pub use fake_slurm::FakeSlurm;
pub use figures::figure;
pub use process::Process;
pub use temp_run::TempRun;
pub use tree::Marker;

use std::time::{Duration, Instant};

/// Waits until `condition` holds.
///
/// # Panics
/// With `what` if it does not within `bound`.
pub fn wait_until(what: &str, bound: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < bound, "{what}: not within {bound:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
