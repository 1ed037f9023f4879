//! What stages cost: how fast their units go, as a calibration or finished stages have measured it.

pub mod calibration;
pub mod launches;
pub mod work;

use crate::runner::Run;
use calibration::Calibration;
use equipoise_base::{Identity, Result};
use equipoise_config::{Stage, load_resolved};
use equipoise_report::pace::Pace;
use equipoise_report::results::Provenance;
use equipoise_rundir::{RealFs, RunDir, read_json};
use equipoise_workplan::effort;
use std::fmt;
use std::path::Path;

/// Where a speed was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// By a finished stage that does the same work.
    Stage(String),
    /// By `equipoise calibrate`.
    Calibration,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stage(name) => f.write_str(name),
            Self::Calibration => f.write_str("calibration"),
        }
    }
}

/// What a stage will take.
#[derive(Clone, Debug)]
pub struct Estimate {
    /// Wall seconds, from the start of the processes to their end.
    pub seconds: f64,
    /// Where its speed was measured.
    pub source: Source,
}

/// A measured speed.
struct Known {
    work: Identity,
    pace: Pace,
    ranks: usize,
    source: Source,
}

/// Estimates stages of a run from what is known.
pub struct Estimator {
    /// Best first.
    known: Vec<Known>,
    /// The calibration in use.
    pub calibration: Option<Calibration>,
}

impl Estimator {
    /// From the finished stages of the run and of `measured`, another run of which as much is believed, and from a
    /// calibration: the given file, else the one in the run directory.
    ///
    /// # Errors
    /// 65 if a file is damaged, 78 if `measured` is no run.
    pub fn new(run: &Run, measured: Option<&Path>, calibration: Option<&Path>) -> Result<Self> {
        let mut known = finished(run)?;
        if let Some(dir) = measured.filter(|dir| dir.join("config.toml").is_file()) {
            let other = Run::new(load_resolved(&dir.join("config.toml"), &[])?, dir.to_owned())?;
            known.extend(finished(&other)?);
        }
        let calibration = calibration::read(&run.dir, calibration)?;
        let calibrated = calibration.iter().flat_map(|calibration| &calibration.work).map(|entry| Known {
            work: entry.work.clone(),
            pace: entry.rehearsal.pace.clone(),
            ranks: entry.rehearsal.ranks,
            source: Source::Calibration,
        });
        known.extend(calibrated);
        Ok(Self { known, calibration })
    }

    /// Seconds of a stage on `ranks` ranks of which the slowest does `units`, which is asked only if something like it was
    /// measured; none otherwise.
    pub fn of(
        &self,
        run: &Run,
        stage: &Stage,
        ranks: usize,
        units: impl FnOnce() -> Option<f64>,
    ) -> Option<Estimate> {
        self.best(run, stage, ranks, units, |_| true)
    }

    /// The same from the calibration alone: what was to be expected before the stage ran.
    pub fn calibrated(
        &self,
        run: &Run,
        stage: &Stage,
        ranks: usize,
        units: impl FnOnce() -> Option<f64>,
    ) -> Option<Estimate> {
        self.best(run, stage, ranks, units, |source| *source == Source::Calibration)
    }

    fn best(
        &self,
        run: &Run,
        stage: &Stage,
        ranks: usize,
        units: impl FnOnce() -> Option<f64>,
        accept: impl Fn(&Source) -> bool,
    ) -> Option<Estimate> {
        let work = work::key(run, stage)?;
        let known = self.known.iter().find(|known| known.work == work && accept(&known.source))?;
        let ratio = work::micro_batches(stage).map_or(1.0, |all| effort::step_ratio(all, known.ranks, ranks));
        let seconds = known.pace.overhead + units()? * known.pace.seconds * ratio;
        Some(Estimate { seconds, source: known.source.clone() })
    }
}

/// What the finished stages of a run have measured of themselves.
fn finished(run: &Run) -> Result<Vec<Known>> {
    let mut known = Vec::new();
    for stage in &run.stages {
        let Some(work) = work::key(run, stage) else { continue };
        let Some(Provenance { pace: Some(pace), ranks, .. }) = provenance(run, stage)? else { continue };
        if run.is_done(stage)? {
            known.push(Known { work, pace, ranks, source: Source::Stage(stage.name.clone()) });
        }
    }
    Ok(known)
}

/// What a finished stage ran on and took.
///
/// # Errors
/// 65 or 74 if it cannot be read.
pub fn provenance(run: &Run, stage: &Stage) -> Result<Option<Provenance>> {
    read_json(&RealFs, &run.stage_dir(stage)?.root().join("provenance.json"))
}

/// The calibration of a run directory.
pub fn default_calibration(run: &RunDir) -> std::path::PathBuf {
    run.root().join("calibration.json")
}
