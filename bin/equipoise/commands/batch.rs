//! `equipoise batch`: what a batch script asks of the front end, at its beginning, meanwhile, and at its end.

mod watch;

use crate::jobs::{attempts, attempts_path, lost};
use crate::runner::stage_dir;
use equipoise_base::clock::{Clock, SystemClock};
use equipoise_base::{Error, ExitCode, Result};
use equipoise_config::slurm::Slurm;
use equipoise_config::{load_resolved, stage as find_stage};
use equipoise_rundir::stage::{Outcome, Status, attempts_on_record};
use equipoise_rundir::{Journal, RealFs, RunDir, StageDir};
use equipoise_slurm::decide::{Decision, Ended, Limits, decide};
use equipoise_slurm::record::{Attempt, History};
use equipoise_slurm::requeue::{Controller, Requeued, Scontrol, requeue};
use equipoise_slurm::{Commands, query};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// For batch scripts: note an attempt, watch it, and decide what follows it.
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub struct Args {
    #[command(subcommand)]
    moment: Moment,
}

#[derive(Debug, clap::Subcommand)]
enum Moment {
    /// The batch script has started.
    Begin(Which),
    /// Ends what starts the ranks, should it hang.
    Watch {
        #[command(flatten)]
        which: Which,
        /// Process id of the step's launcher.
        #[arg(long)]
        launcher: u32,
    },
    /// The step has ended.
    End {
        #[command(flatten)]
        which: Which,
        /// Exit status of the step's launcher.
        #[arg(long)]
        status: i32,
    },
}

#[derive(Debug, clap::Args)]
struct Which {
    /// Run directory.
    #[arg(long)]
    run: PathBuf,
    /// Stage.
    #[arg(long)]
    stage: String,
}

/// Does it.
pub fn run(args: &Args) -> Result<ExitCode> {
    match &args.moment {
        Moment::Begin(which) => begin(&Job::here(which)?),
        Moment::Watch { which, launcher } => watch::watch(&Job::here(which)?, *launcher),
        Moment::End { which, status } => {
            outlive_requeue();
            end(&Job::here(which)?, *status)
        }
    }
}

/// A requeue ends this very job: what is left to do then must not be interrupted.
fn outlive_requeue() {
    for signal in [libc::SIGTERM, libc::SIGUSR2] {
        // SAFETY: called from the only thread; SIG_IGN is a valid disposition.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// The job that this process belongs to.
struct Job {
    run: RunDir,
    stage: String,
    /// Id: that of the array for a task.
    id: String,
    task: Option<u64>,
    restart: u32,
    /// Where outcome and status are: of the stage, or of the task.
    dir: StageDir,
    clock: SystemClock,
}

impl Job {
    fn here(which: &Which) -> Result<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let outside = || {
            let message =
                "SLURM_JOB_ID is not set: this command is for the batch scripts of `equipoise submit`";
            Error::new(ExitCode::Usage, message)
        };
        let task = variable("SLURM_ARRAY_TASK_ID").and_then(|task| task.parse().ok());
        let id =
            variable("SLURM_ARRAY_JOB_ID").filter(|_| task.is_some()).or_else(|| variable("SLURM_JOB_ID"));
        let run = RunDir::new(&which.run);
        let stage = stage_dir(&run, &which.stage)?;
        Ok(Self {
            stage: which.stage.clone(),
            id: id.ok_or_else(outside)?,
            task,
            // Slurm leaves it out until the first restart.
            restart: variable("SLURM_RESTART_COUNT").and_then(|count| count.parse().ok()).unwrap_or(0),
            dir: task.map_or(stage.clone(), |task| stage.task(task)),
            clock: SystemClock::default(),
            run,
        })
    }

    /// As scontrol addresses it: the id of the last task of an array is that of the whole array.
    fn address(&self) -> String {
        self.address_of(&self.id)
    }

    /// The same of another job of this stage.
    fn address_of(&self, id: &str) -> String {
        self.task.map_or_else(|| id.to_string(), |task| format!("{id}_{task}"))
    }

    /// Units done over all attempts.
    fn done(&self) -> u64 {
        Status::read(&RealFs, &self.dir).ok().flatten().map_or(0, |status| status.done)
    }

    /// Attempts of the step that are on record.
    fn attempts(&self) -> u64 {
        attempts_on_record(&RealFs, &self.dir).unwrap_or_default()
    }

    /// What its batch scripts and those before have noted.
    fn earlier(&self) -> Result<Vec<Attempt>> {
        attempts(&self.run, &self.stage, self.task)
    }

    fn outcome(&self) -> Option<Outcome> {
        Outcome::read(&RealFs, &self.dir).ok().flatten()
    }

    /// Tells outcomes apart: each has its own time.
    fn outcome_hash(&self) -> Option<String> {
        let bytes = std::fs::read(self.dir.outcome()).ok()?;
        Some(format!("{:016x}", equipoise_base::hash::xxh3(&bytes)))
    }

    fn note(&self, event: &Attempt) -> Result<()> {
        let path = attempts_path(&self.run, &self.stage, self.task);
        Journal::open(Arc::new(RealFs), &path, None)?.append(event)
    }
}

fn begin(job: &Job) -> Result<ExitCode> {
    let slurm = load_resolved(&job.run.config(), &[])?.recipe.slurm;
    let earlier = job.earlier()?;
    let nodes = std::env::var("SLURM_JOB_NODELIST").unwrap_or_default();
    job.note(&Attempt::Begin {
        job: job.id.clone(),
        restart: job.restart,
        nodes: nodes.clone(),
        outcome: job.outcome_hash(),
        done: job.done(),
        attempts: job.attempts(),
        wall: job.clock.wall(),
    })?;
    if let Some(Attempt::Begin { job: id, restart, nodes, .. }) =
        earlier.iter().rfind(|event| matches!(event, Attempt::Begin { .. }))
    {
        // Best effort, like all that follows from it: a job does not fail for lack of an answer.
        let attempt = format!("{}.{restart}", job.address_of(id));
        if let Err(error) = lost::note(&Commands::default(), &job.run, nodes, &attempt) {
            eprintln!("{}: whether the nodes of the last attempt are lost is unknown: {error}", job.stage);
        }
    }
    let history = History::of(&earlier, &job.id);
    let may_leave = history.stalls + 1 < slurm.max_stalls && history.requeues < slurm.requeue_budget;
    match to_avoid(job, &slurm, &nodes) {
        Some(avoid) if may_leave => leave(job, &slurm, &avoid),
        _ => Ok(ExitCode::Done),
    }
}

/// Nodes of this allocation that the run has lost too often.
fn to_avoid(job: &Job, slurm: &Slurm, nodes: &str) -> Option<Vec<String>> {
    let often = to_exclude(job, slurm);
    if often.is_empty() {
        return None;
    }
    let here = query::nodes(&Commands::default(), &format!("--nodes={nodes}")).ok()?;
    let avoid: Vec<String> = often.into_iter().filter(|node| here.contains_key(node)).collect();
    (!avoid.is_empty()).then_some(avoid)
}

/// Queues the job again before it has begun, to start elsewhere: Slurm gives excluded nodes only to jobs that wait.
fn leave(job: &Job, slurm: &Slurm, avoid: &[String]) -> Result<ExitCode> {
    let reason = format!("queued again, to keep away from {}, lost again and again", avoid.join(", "));
    eprintln!("{}: {reason}", job.stage);
    outlive_requeue();
    note_end(job, 0, ExitCode::Requeue, true, true, &reason)?;
    match again(job, slurm, 1) {
        Requeued::Done | Requeued::Already => Ok(ExitCode::Requeue),
        Requeued::Refused(why) => {
            eprintln!("{}: it stays where it is: {why}", job.stage);
            Ok(ExitCode::Done)
        }
    }
}

/// What jobs of the run are to keep away from; nothing if not enough would be left.
fn to_exclude(job: &Job, slurm: &Slurm) -> Vec<String> {
    let often = lost::often(&job.run, slurm.exclude_after);
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let needed = variable("SLURM_JOB_NUM_NODES").parse().unwrap_or(1);
    if often.is_empty() {
        return often;
    }
    match lost::leaves_enough(&Commands::default(), &variable("SLURM_JOB_PARTITION"), &often, needed) {
        Ok(true) => often,
        Ok(false) => {
            let nodes = often.join(", ");
            eprintln!("{}: {nodes}: lost again and again, but there are not enough others", job.stage);
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}

fn end(job: &Job, status: i32) -> Result<ExitCode> {
    let resolved = load_resolved(&job.run.config(), &[])?;
    let slurm = &resolved.recipe.slurm;
    let history = History::of(&job.earlier()?, &job.id);
    let found = history.found;
    // An earlier outcome says nothing about this attempt. (The tasks of an array share the number of their attempt.)
    let outcome = job.outcome().filter(|_| job.outcome_hash() != found.outcome);
    let made = outcome.as_ref().map_or(0, |outcome| outcome.made);
    let ended = Ended {
        outcome: outcome.as_ref().map(|outcome| outcome.name),
        status,
        writes_outcomes: find_stage(&resolved, &job.stage)?.kind.program().is_some(),
        begun: job.attempts() > found.attempts,
        hung: history.hung,
        progressed: made > 0 || job.done() > found.done,
        stalls: history.stalls,
        requeues: history.requeues,
    };
    let limits = Limits { budget: slurm.requeue_budget, stalls: slurm.max_stalls };
    let (code, requeued, stalled, reason) = match decide(&ended, limits) {
        Decision::Finish(code, reason) => {
            let reason = reason.or(outcome.map(|outcome| outcome.message)).unwrap_or_default();
            (code, false, !ended.progressed, reason)
        }
        Decision::Requeue { stalled, delays } => {
            // Noted before it is done: the job may not live to note it afterwards.
            let note =
                |requeued, reason: &str| note_end(job, status, ExitCode::Requeue, requeued, stalled, reason);
            note(true, "queued again")?;
            match again(job, slurm, delays) {
                Requeued::Done | Requeued::Already => return Ok(ExitCode::Requeue),
                Requeued::Refused(why) => (ExitCode::Requeue, false, stalled, why),
            }
        }
    };
    note_end(job, status, code, requeued, stalled, &reason)?;
    if code != ExitCode::Done {
        eprintln!("{}: {reason}", job.stage);
    }
    Ok(code)
}

fn note_end(
    job: &Job,
    status: i32,
    code: ExitCode,
    requeued: bool,
    stalled: bool,
    reason: &str,
) -> Result<()> {
    let (id, reason, wall) = (job.id.clone(), reason.to_string(), job.clock.wall());
    job.note(&Attempt::End { job: id, restart: job.restart, status, code, requeued, stalled, reason, wall })
}

/// Queues the job again, lets it start soon, and away from nodes that were lost too often. Slurm's own delay is kept only
/// if the begin time has passed when the job has finished completing.
fn again(job: &Job, slurm: &Slurm, delays: u32) -> Requeued {
    let commands = Commands::default();
    let controller = Scontrol { commands: &commands, job: job.address() };
    let requeued = requeue(&controller, job.restart, &job.clock);
    if slurm.requeue_delay > 0 && matches!(requeued, Requeued::Done | Requeued::Already) {
        // Best effort: some sites do not allow it, and `equipoise resume` does the same later.
        if let Err(failure) = controller.start_after(Duration::from_secs(slurm.requeue_delay.into()) * delays)
        {
            eprintln!("{}: the job will start after Slurm's own delay: {failure}", job.stage);
        }
    }
    let excluded = to_exclude(job, slurm);
    if !excluded.is_empty()
        && matches!(requeued, Requeued::Done | Requeued::Already)
        && let Err(failure) = controller.exclude(&excluded)
    {
        eprintln!("{}: {} cannot be excluded: {failure}", job.stage, excluded.join(", "));
    }
    requeued
}
