//! The batch jobs of a run: what `RUN/slurm/` says about them, and what Slurm does.

mod chain;
mod scripts;

pub use chain::{Placed, complete};
pub use scripts::scripts;

use crate::runner::shell_word;
use equipoise_base::clock::SystemClock;
use equipoise_base::{Error, ExitCode, Result};
use equipoise_rundir::lease::LeaseRequest;
use equipoise_rundir::{Journal, Lease, RealFs, RunDir, create_dirs, journal};
use equipoise_slurm::record::{Attempt, Jobs, Submission, Submitted};
use equipoise_slurm::squeue::Row;
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
        rows.retain(|row| row.state.is_live());
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

    /// Reads again what was submitted.
    ///
    /// # Errors
    /// 74 if it cannot be read.
    pub fn refresh(&mut self) -> Result<()> {
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
