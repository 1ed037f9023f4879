//! The batch jobs of a run: what `RUN/slurm/` says about them, and what Slurm does.

mod chain;
pub mod lost;
mod scripts;
mod view;

pub use chain::{Placed, complete};
pub use scripts::{job_of, scripts};
pub use view::{JobView, View, view};

use crate::runner::shell_word;
use equipoise_base::clock::{Clock, SystemClock};
use equipoise_base::{Error, ExitCode, Result};
use equipoise_rundir::lease::LeaseRequest;
use equipoise_rundir::{Journal, Lease, RealFs, RunDir, create_dirs, journal};
use equipoise_slurm::record::{Attempt, Jobs, Submission, Submitted};
use equipoise_slurm::squeue::Row;
use equipoise_slurm::submission::existing;
use equipoise_slurm::{Commands, Failure, query};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Heartbeats of the lease: short, since whoever comes second waits for one.
const PERIOD: Duration = Duration::from_secs(5);

fn journal_path(run: &RunDir) -> PathBuf {
    run.slurm().join("journal.jsonl")
}

/// Where the attempts of a stage's job, or of one task of its array, are noted.
pub fn attempts_path(run: &RunDir, stage: &str, task: Option<u64>) -> PathBuf {
    let task = task.map(|task| format!(".{task}")).unwrap_or_default();
    run.slurm().join(format!("{stage}{task}.jsonl"))
}

/// The attempts of a stage's job, or of one task of its array.
///
/// # Errors
/// 74 if they cannot be read.
pub fn attempts(run: &RunDir, stage: &str, task: Option<u64>) -> Result<Vec<Attempt>> {
    Ok(journal::read(&RealFs, &attempts_path(run, stage, task))?.records)
}

/// The jobs that were submitted for a run.
///
/// # Errors
/// 74 if the journal cannot be read.
pub fn recorded(run: &RunDir) -> Result<Jobs> {
    Ok(Jobs::of(&journal::read::<Submission>(&RealFs, &journal_path(run))?.records))
}

/// Jobs that wait or run.
pub type Live<'a> = Vec<(&'a Submitted, Vec<Row>)>;

/// Those of the recorded jobs that wait or run: one call of squeue.
///
/// # Errors
/// If Slurm gives no answer.
pub fn live<'a>(commands: &Commands, jobs: &'a Jobs) -> std::result::Result<Live<'a>, Failure> {
    let ids: Vec<String> = jobs.all.iter().map(|job| job.job.clone()).collect();
    let mut known: BTreeMap<String, Vec<Row>> = query::jobs(commands, &ids)?;
    let live = jobs.all.iter().filter_map(|job| {
        let mut rows = known.remove(&job.job)?;
        // Ids are used again after years; names are not.
        rows.retain(|row| row.state.is_live() && row.name == job.name);
        (!rows.is_empty()).then_some((job, rows))
    });
    Ok(live.collect())
}

/// That others own a run.
pub fn owned(run: &RunDir, live: &Live<'_>) -> Error {
    let (job, rows) = &live[0];
    let row = &rows[0];
    let place = if row.nodes.is_empty() { String::new() } else { format!(" on {}", row.nodes) };
    let more = if live.len() > 1 { format!(" and {} more", live.len() - 1) } else { String::new() };
    let message = format!(
        "{}: owned by job {} (stage {}, {}{place}){more}",
        run.root().display(),
        job.job,
        job.stage,
        row.state.name().to_lowercase()
    );
    let root = shell_word(run.root());
    let next = format!("equipoise status {root}; equipoise resume {root} submits what is missing");
    Error::new(ExitCode::Owned, message).next(next)
}

/// Refuses to work on a run that batch jobs own. Where Slurm gives no answer, the leases of the stages decide.
///
/// # Errors
/// 69 naming a job.
pub fn check_unowned(run: &RunDir) -> Result<()> {
    let jobs = recorded(run)?;
    match live(&Commands::default(), &jobs) {
        Ok(live) if !live.is_empty() => Err(owned(run, &live)),
        _ => Ok(()),
    }
}

/// Lets the jobs of a run that wait for a begin time start at once; returns how many. Slurm gives such a time to jobs that
/// it has requeued itself.
///
/// # Errors
/// 74, 78 if Slurm gives no answer.
pub fn release(run: &RunDir) -> Result<usize> {
    let (commands, jobs) = (Commands::default(), recorded(run)?);
    let mut released = 0;
    for (_, rows) in live(&commands, &jobs)? {
        for row in rows.iter().filter(|row| row.reason.as_deref() == Some("BeginTime")) {
            let job = row.task.as_ref().map_or(row.job.clone(), |task| format!("{}_{task}", row.job));
            let arguments = ["update".to_string(), format!("JobId={job}"), "StartTime=now".to_string()];
            // Best effort: it starts by itself in two minutes.
            released += usize::from(commands.run("scontrol", &arguments).is_ok());
        }
    }
    Ok(released)
}

/// Cancels every job of a run that waits or runs; returns how many. Their steps commit what is finished: Slurm sends TERM
/// first, and KILL some seconds later.
///
/// # Errors
/// 69 if jobs are just being submitted; 74, 78 if Slurm gives no answer.
pub fn cancel(run: &RunDir) -> Result<usize> {
    if recorded(run)?.is_empty() {
        return Ok(0);
    }
    let commands = Commands::default();
    let mut desk = Desk::take(run)?;
    desk.settle(&commands)?;
    let recorded = desk.jobs.clone();
    let jobs: Vec<String> = live(&commands, &recorded)?.iter().map(|(job, _)| job.job.clone()).collect();
    if !jobs.is_empty() {
        commands.run("scancel", &jobs)?;
        let wall = SystemClock::default().wall();
        desk.note(&Submission::Cancelled { jobs: jobs.clone(), wall })?;
    }
    Ok(jobs.len())
}

/// The right to submit and to cancel jobs of a run; and its journal.
pub struct Desk {
    run: RunDir,
    _lease: Lease,
    journal: Journal,
    /// What was submitted before.
    pub jobs: Jobs,
}

impl Desk {
    /// Takes it.
    ///
    /// # Errors
    /// 69 naming who has it, 74 if the files cannot be written.
    pub fn take(run: &RunDir) -> Result<Self> {
        create_dirs(&RealFs, &run.slurm())?;
        let clock = SystemClock::default();
        let request = LeaseRequest { period: PERIOD, ..LeaseRequest::new(run.slurm().join("lock"), &clock) };
        let lease = Lease::acquire(Arc::new(RealFs), &request)?;
        let journal = Journal::open(Arc::new(RealFs), &journal_path(run), Some(lease.guard().clone()))?;
        // Read under the lease: what an earlier owner wrote is all there.
        Ok(Self { run: run.clone(), _lease: lease, journal, jobs: recorded(run)? })
    }

    /// Looks up, by their names, submissions whose end is not on record.
    ///
    /// # Errors
    /// 74, 78 if Slurm gives no answer.
    pub fn settle(&mut self, commands: &Commands) -> Result<()> {
        for (stage, name, array) in std::mem::take(&mut self.jobs.open) {
            let wall = SystemClock::default().wall();
            let event = match existing(commands, &name)? {
                Some(job) => Submission::Submitted { stage, name, job, array, after: Vec::new(), wall },
                None => Submission::Dropped { name, reason: "no such job".into(), wall },
            };
            self.note(&event)?;
        }
        self.jobs = recorded(&self.run)?;
        Ok(())
    }

    /// Notes an event.
    ///
    /// # Errors
    /// 69 if another has taken over, 74 if it cannot be written.
    pub fn note(&mut self, event: &Submission) -> Result<()> {
        self.journal.append(event)
    }
}
