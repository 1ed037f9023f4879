//! A stage rehearsed: its own loop over a few units, to learn what they cost. Inputs that are not there yet have
//! stand-ins of the same shape ([`crate::stand_in`]), and nothing is committed.

use super::pace::Pacer;
use super::{Step, init_runtime};
use crate::training::Ended;
use crate::world;
use equipoise_base::{Error, ExitCode, Result, ResultExt as _, bail};
use equipoise_comm::StopFlag;
use equipoise_config::{load_resolved, stage as find_stage};
use equipoise_nn::runtime;
use equipoise_report::pace::{Pace, Rehearsal};
use equipoise_rundir::{RealFs, RunDir, commit_json};
use equipoise_telemetry::{Host, peak_memory_bytes, process_seconds};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;

/// Rehearses the stage that `stage=NAME` in `sets` names for about `seconds` and writes what it learnt to `file`.
///
/// # Errors
/// Those of the stage. One that has nothing to do writes no file.
pub(crate) fn rehearse_stage(
    config: &Path,
    run: &Path,
    sets: &[String],
    body: fn(&Step) -> Result<Ended>,
    (file, seconds): (&Path, f64),
) -> Result<ExitCode> {
    let stop = StopFlag::default();
    stop.on_signals()?;
    equipoise_comm::parent::die_with_parent()?;
    let enough = Duration::try_from_secs_f64(seconds).or_exit(ExitCode::Usage, "--rehearse-seconds")?;
    let resolved = load_resolved(config, sets)?;
    let Some(name) = resolved.recipe.stage.clone() else {
        bail!(Usage, "--set stage=NAME is needed: `equipoise plan` lists the stages");
    };
    let stage = find_stage(&resolved, &name)?;
    let world = world::init()?;
    world.require_size()?;
    init_runtime(&resolved.recipe, &stage, &world)?;
    let mut step = Step::unowned(stage, resolved.recipe, RunDir::new(run), world, stop)?;
    step.pacer = Pacer::until(enough);
    step.world.abort_on_panic(|_| ());
    let watchdog = step.world.watch(|_, reason| eprintln!("error: {reason}"))?;
    let result = match body(&step) {
        Ok(Ended::Stopped) => step.conclude(file, false),
        Ok(Ended::Done | Ended::Part) => step.conclude(file, true),
        // Loops without agreement by steps end so, see `Step::agree_to_go_on`.
        Err(error) if error.code() == ExitCode::Requeue => step.conclude(file, false),
        Err(error) => Err(error),
    };
    drop(watchdog);
    match result {
        Ok(code) => step.world.finish().map(|()| code),
        Err(error) if step.world() > 1 => {
            eprintln!("error: rank {}: {error}", step.rank());
            step.comm().abort(error.code().status())
        }
        Err(error) => Err(error),
    }
}

impl Step {
    /// Whether this is a rehearsal.
    pub fn rehearses(&self) -> bool {
        self.pacer.is_rehearsal()
    }

    /// Rank 0 writes what all have learnt, if its own part of it is `complete` or any rank has measured enough: that one
    /// has stopped the others, who may have finished fewer units.
    fn conclude(&self, file: &Path, complete: bool) -> Result<ExitCode> {
        let (gpu_memory, gpu_total) = runtime::gpu_memory().unwrap_or_default();
        let own = Learnt {
            satisfied: self.pacer.is_satisfied(),
            pace: self.pacer.pace(process_seconds()),
            peak_memory: peak_memory_bytes(),
            gpu_memory,
            gpu_total,
        };
        let own = serde_json::to_vec(&own).or_exit(ExitCode::Bug, "a rehearsal")?;
        let all = self.comm().all_gather(&own)?;
        if self.rank() > 0 {
            return Ok(ExitCode::Done);
        }
        let all = all.iter().map(|bytes| serde_json::from_slice(bytes).or_exit(ExitCode::Bug, "a rehearsal"));
        let all: Vec<Learnt> = all.collect::<Result<_>>()?;
        let satisfied = all.iter().find(|learnt| learnt.satisfied);
        if !complete && satisfied.is_none() {
            return Ok(ExitCode::Requeue);
        }
        let most = |of: fn(&Learnt) -> u64| all.iter().map(of).max().unwrap_or(0);
        // Nothing to do is nothing to learn.
        let Some(pace) = satisfied.or(all.first()).and_then(|learnt| learnt.pace.clone()) else {
            return Ok(ExitCode::Done);
        };
        let host = Host::here();
        let rehearsal = Rehearsal {
            pace,
            ranks: self.world(),
            peak_memory: most(|learnt| learnt.peak_memory),
            gpu_memory: Some(most(|learnt| learnt.gpu_memory)).filter(|bytes| *bytes > 0),
            gpu_total: Some(most(|learnt| learnt.gpu_total)).filter(|bytes| *bytes > 0),
            host: host.name,
            cpu: host.cpu,
            machine: runtime::facts().unwrap_or_default(),
        };
        commit_json(&RealFs, file, &rehearsal, None).map_err(|error: Error| error.context("rehearsal"))?;
        Ok(ExitCode::Done)
    }
}

/// What a rank has learnt.
#[derive(Serialize, Deserialize)]
struct Learnt {
    satisfied: bool,
    pace: Option<Pace>,
    peak_memory: u64,
    gpu_memory: u64,
    gpu_total: u64,
}
