//! `launches.jsonl` of a run directory: every step that this machine's launcher has started, and how long it took from the
//! start of mpirun to its end.

use equipoise_base::clock::{Clock as _, SystemClock};
use equipoise_base::{ExitCode, Result};
use equipoise_rundir::{Journal, RealFs, RunDir, journal};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// One launch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Launched {
    /// Stage.
    pub stage: String,
    /// How it ended.
    pub outcome: ExitCode,
    /// Wall seconds.
    pub seconds: f64,
    /// When it ended, in seconds since 1970: for people.
    pub wall: f64,
}

fn path(run: &RunDir) -> PathBuf {
    run.root().join("launches.jsonl")
}

/// Notes a launch.
///
/// # Errors
/// 74 if it cannot be written.
pub fn note(run: &RunDir, stage: &str, outcome: ExitCode, seconds: f64) -> Result<()> {
    let wall = SystemClock::default().wall();
    let launched = Launched { stage: stage.into(), outcome, seconds, wall };
    Journal::open(Arc::new(RealFs), &path(run), None)?.append(&launched)
}

/// Wall seconds of each stage, over all its launches.
///
/// # Errors
/// 74 if the file cannot be read.
pub fn seconds(run: &RunDir) -> Result<BTreeMap<String, f64>> {
    let mut total = BTreeMap::new();
    for Launched { stage, seconds, .. } in journal::read::<Launched>(&RealFs, &path(run))?.records {
        *total.entry(stage).or_insert(0.0) += seconds;
    }
    Ok(total)
}
