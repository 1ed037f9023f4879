//! Submitting what is missing of a run, as a chain of jobs that wait for each other.

use super::{Desk, Live, job_of, live, owned, scripts};
use crate::runner::{Run, launcher_of, shell_word, write_configuration};
use equipoise_base::clock::{Clock, SystemClock};
use equipoise_base::{Error, ExitCode, Identity, Result};
use equipoise_config::Stage;
use equipoise_rundir::{Process, RealFs, RunDir, commit_bytes};
use equipoise_slurm::record::Submission;
use equipoise_slurm::script::{STAGE_IN, STAGE_IN_NAME, Script};
use equipoise_slurm::submission::{Order, submit};
use equipoise_slurm::{Commands, query};
use serde::Serialize;
use std::collections::BTreeMap;

/// A stage and the job that does it.
#[derive(Clone, Debug, Serialize)]
pub struct Placed {
    /// Stage.
    pub stage: String,
    /// Job id.
    pub job: String,
    /// Whether it was submitted now; otherwise it was queued already.
    pub new: bool,
    /// Nodes.
    pub nodes: u32,
    /// Ranks.
    pub ranks: u32,
    /// Tasks of the array.
    pub array: Option<u32>,
    /// Jobs that it waits for.
    pub after: Vec<String>,
}

/// Submits a job for every stage that is not done and has none; with `fresh`, only if no job of the run is there at all.
/// All are submitted, or none.
///
/// # Errors
/// 69 naming the job, or the process, that owns the run; 78 with what Slurm refuses; 74 if it gives no answer.
pub fn complete(run: &Run, fresh: bool) -> Result<Vec<Placed>> {
    run.check_identities()?;
    // What Slurm would refuse is told before anything is written.
    run.stages.iter().try_for_each(|stage| job_of(run, stage).map(drop))?;
    let commands = Commands::default();
    // Asked first: nothing is written where there is no Slurm.
    let max_array = query::max_array(&commands);
    let mut desk = Desk::take(&run.dir)?;
    check_no_launcher(&run.dir)?;
    desk.settle(&commands)?;
    let jobs = desk.jobs.clone();
    let live = live(&commands, &jobs)?;
    if fresh && !live.is_empty() {
        return Err(owned(&run.dir, &live));
    }
    let missing = missing(run, &live)?;
    let scripts = scripts(run, &missing, max_array)?;
    crate::commands::plan::check_space(run, &missing)?;
    write_configuration(run)?;
    write_scripts(&run.dir, &scripts)?;
    Chain { commands: &commands, desk, run, queued: queued(&live) }.submit(&missing, &scripts)
}

/// `equipoise run` may be at work here.
fn check_no_launcher(run: &RunDir) -> Result<()> {
    let Some(process) = launcher_of(run)? else { return Ok(()) };
    let (pid, host) = (process.pid, process.host);
    let message = format!("{}: owned by process {pid} on {host}, which runs it there", run.root().display());
    Err(Error::new(ExitCode::Owned, message).next(format!("equipoise cancel {}", shell_word(run.root()))))
}

/// Stages that are neither done nor queued. The report is made again when anything is.
fn missing<'a>(run: &'a Run, live: &Live<'_>) -> Result<Vec<&'a Stage>> {
    let queued = |stage: &Stage| live.iter().any(|(job, _)| job.stage == stage.name);
    let mut missing = Vec::new();
    for stage in &run.stages {
        let made = stage.kind.program().is_none() && missing.is_empty() && run.dir.report().is_file();
        if !made && !queued(stage) && !run.is_done(stage)? {
            missing.push(stage);
        }
    }
    Ok(missing)
}

fn queued(live: &Live<'_>) -> BTreeMap<String, String> {
    live.iter().map(|(job, _)| (job.stage.clone(), job.job.clone())).collect()
}

fn write_scripts(run: &RunDir, scripts: &[Script]) -> Result<()> {
    let write =
        |name: &str, text: &str| commit_bytes(&RealFs, &run.slurm().join(name), text.as_bytes(), None);
    write(STAGE_IN_NAME, STAGE_IN)?;
    scripts.iter().try_for_each(|script| write(&script.file(), &script.text))
}

struct Chain<'a> {
    commands: &'a Commands,
    desk: Desk,
    run: &'a Run,
    /// Job by stage.
    queued: BTreeMap<String, String>,
}

impl Chain<'_> {
    fn submit(mut self, stages: &[&Stage], scripts: &[Script]) -> Result<Vec<Placed>> {
        let mut placed: Vec<Placed> = Vec::new();
        for (stage, script) in stages.iter().zip(scripts) {
            match self.place(stage, script) {
                Ok(job) => placed.push(job),
                Err(error) => {
                    self.take_back(&placed);
                    return Err(error.context(format!("stage {}", stage.name)));
                }
            }
        }
        Ok(placed)
    }

    fn place(&mut self, stage: &Stage, script: &Script) -> Result<Placed> {
        let clock = SystemClock::default();
        let name = format!("{}.{}-{}", self.run.resolved.recipe.run.name, stage.name, token(&clock));
        let after: Vec<String> =
            stage.after.iter().filter_map(|name| self.queued.get(name).cloned()).collect();
        let (array, of) = (script.shape.array, stage.name.clone());
        self.desk.note(&Submission::Submitting {
            stage: of.clone(),
            name: name.clone(),
            array,
            wall: clock.wall(),
        })?;
        let file = format!("slurm/{}", script.file());
        let order = Order { dir: self.run.dir.root(), script: &file, name: &name, after: &after };
        let job =
            match submit(self.commands, &order, &clock, &|trouble| eprintln!("{}: {trouble}", stage.name)) {
                Ok(job) => job,
                Err(failure) => {
                    let refused = !matches!(failure, equipoise_slurm::Failure::Hiccup(_));
                    if refused {
                        let reason = failure.to_string();
                        self.desk.note(&Submission::Dropped { name, reason, wall: clock.wall() })?;
                    }
                    return Err(Error::from(failure));
                }
            };
        let (id, wall) = (job.clone(), clock.wall());
        self.desk.note(&Submission::Submitted {
            stage: of.clone(),
            name,
            job: id,
            array,
            after: after.clone(),
            wall,
        })?;
        self.queued.insert(of.clone(), job.clone());
        let shape = script.shape;
        Ok(Placed { stage: of, job, new: true, nodes: shape.nodes, ranks: shape.ranks, array, after })
    }

    /// Half a chain is worse than none: it would end without a result.
    fn take_back(&mut self, placed: &[Placed]) {
        let jobs: Vec<String> = placed.iter().map(|placed| placed.job.clone()).collect();
        if jobs.is_empty() {
            return;
        }
        match self.commands.run("scancel", &jobs) {
            Ok(_) => {
                let wall = SystemClock::default().wall();
                // Best effort: the refusal is what matters now, and Slurm knows that they are gone.
                let _ = self.desk.note(&Submission::Cancelled { jobs, wall });
            }
            Err(failure) => eprintln!("could not cancel jobs {}: {failure}", jobs.join(", ")),
        }
    }
}

/// Eight digits that no other submission has.
fn token(clock: &dyn Clock) -> String {
    let moment = format!("{:?} {} {:?}", Process::current(), clock.wall(), clock.monotonic());
    Identity::of(&moment).to_string().chars().take(8).collect()
}
