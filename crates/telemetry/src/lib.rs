//! Logs, progress and host facts: what a person or a `tail -f` sees while a stage runs.
//!
//! Metrics rows are JSON lines and go through `rundir::journal`; this crate only decides how often and in which form
//! things are shown.

mod host;
mod log;
mod progress;

pub use host::{Host, peak_memory_bytes, process_seconds};
pub use log::init;
pub use progress::{Progress, Snapshot, human_duration};
pub use tracing::{debug, error, info, warn};
