//! What is known about the batch job of each stage: from the files first, then from one call of squeue.

use super::{attempts, attempts_path, recorded};
use equipoise_base::Result;
use equipoise_rundir::RunDir;
use equipoise_slurm::record::{Attempt, Submitted};
use equipoise_slurm::squeue::Row;
use equipoise_slurm::{Commands, JobState, query, sacct};
use serde::Serialize;
use std::collections::BTreeMap;

/// A job and how it is.
#[derive(Clone, Debug, Default, Serialize)]
pub struct JobView {
    /// Id.
    pub job: String,
    /// State; none if Slurm gave no answer or has forgotten it.
    pub state: Option<JobState>,
    /// Whether it waits or runs; none if Slurm gave no answer.
    pub live: Option<bool>,
    /// Why it waits.
    pub reason: Option<String>,
    /// Where it runs, or ran last.
    pub nodes: String,
    /// When it is expected to start, as Slurm writes it.
    pub start: Option<String>,
    /// Seconds to its time limit.
    pub left: Option<u64>,
    /// How often it was started again.
    pub restarts: u32,
    /// Of an array: tasks by state.
    pub tasks: Option<BTreeMap<String, u64>>,
    /// Of an array: tasks that ended for good without being done.
    pub failed_tasks: Vec<u64>,
    /// How its last attempt ended, if it has not begun another since.
    pub ended: Option<String>,
    /// `equipoise cancel` has ended it.
    pub cancelled: bool,
}

/// All jobs of a run by stage, and why Slurm gave no answer, if so.
pub struct View {
    /// By stage.
    pub jobs: BTreeMap<String, JobView>,
    /// What Slurm said instead of an answer.
    pub trouble: Option<String>,
}

/// Looks at the newest job of each stage; Slurm is asked about those whose stage is not `done`.
///
/// # Errors
/// 74 if the journals cannot be read. Trouble with Slurm is no error.
pub fn view(run: &RunDir, done: &dyn Fn(&str) -> bool) -> Result<View> {
    let recorded = recorded(run)?;
    let newest = recorded.newest();
    let commands = Commands::default();
    let open: Vec<String> =
        newest.values().filter(|job| !done(&job.stage)).map(|job| job.job.clone()).collect();
    let (rows, trouble) = match query::jobs(&commands, &open) {
        Ok(rows) => (rows, None),
        Err(failure) => (BTreeMap::new(), Some(failure.to_string())),
    };
    let mut jobs = BTreeMap::new();
    for (stage, job) in newest {
        let mut view = from_files(run, job)?;
        if trouble.is_none() {
            with_rows(&mut view, rows.get(&job.job).map(Vec::as_slice).unwrap_or_default(), job);
        }
        jobs.insert(stage.to_string(), view);
    }
    if trouble.is_none() {
        explain(&commands, &mut jobs, done);
    }
    Ok(View { jobs, trouble })
}

fn from_files(run: &RunDir, job: &Submitted) -> Result<JobView> {
    let mut view = JobView { job: job.job.clone(), cancelled: job.cancelled, ..JobView::default() };
    match job.array {
        None => read_attempts(&mut view, &attempts(run, &job.stage, None)?),
        Some(tasks) => {
            for task in
                (0..u64::from(tasks)).filter(|&task| attempts_path(run, &job.stage, Some(task)).exists())
            {
                let mut one = JobView { job: job.job.clone(), ..JobView::default() };
                read_attempts(&mut one, &attempts(run, &job.stage, Some(task))?);
                view.restarts = view.restarts.max(one.restarts);
                if let Some(ended) = one.ended.filter(|ended| ended != DONE) {
                    view.failed_tasks.push(task);
                    view.ended = Some(format!("task {task}: {ended}"));
                }
            }
        }
    }
    Ok(view)
}

/// How a job that has done its work is told to have ended.
const DONE: &str = "done";

fn read_attempts(view: &mut JobView, attempts: &[Attempt]) {
    for attempt in attempts {
        match attempt {
            Attempt::Begin { job, restart, nodes, .. } if *job == view.job => {
                view.restarts = *restart;
                view.nodes = nodes.clone();
                view.ended = None;
            }
            Attempt::End { job, code, requeued: false, reason, .. } if *job == view.job => {
                let done = *code == equipoise_base::ExitCode::Done;
                view.ended = Some(if done { DONE.into() } else { reason.clone() });
            }
            _ => {}
        }
    }
}

fn with_rows(view: &mut JobView, rows: &[Row], job: &Submitted) {
    // Ids are used again after years; names are not.
    let rows: Vec<&Row> = rows.iter().filter(|row| row.name == job.name).collect();
    view.live = Some(rows.iter().any(|row| row.state.is_live()));
    // Of an array the task that is furthest stands for all.
    let running = |row: &&&Row| row.state.is_live() && !row.state.is_waiting();
    let Some(row) = rows.iter().find(running).or(rows.first()) else { return };
    view.state = Some(row.state.clone());
    view.reason = row.reason.clone();
    view.start = row.start.clone().filter(|_| row.state.is_waiting());
    view.left = row.left.map(|left| left.as_secs()).filter(|_| running(&row));
    if !row.nodes.is_empty() {
        view.nodes = row.nodes.clone();
    }
    if job.array.is_some() {
        let mut tasks = BTreeMap::new();
        for row in rows {
            *tasks.entry(row.state.name().to_lowercase()).or_insert(0) += tasks_of(row);
        }
        view.tasks = Some(tasks);
    }
}

/// A row of waiting tasks stands for many: `4-63%16`, `1,3,7-9`.
fn tasks_of(row: &Row) -> u64 {
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let last = last.split(':').next().unwrap_or(last);
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        Some(last.saturating_sub(first) + 1)
    };
    let Some(tasks) = &row.task else { return 1 };
    let tasks = tasks.split('%').next().unwrap_or(tasks);
    tasks.split(',').map(|part| range(part).unwrap_or(1)).sum()
}

/// Jobs that Slurm has forgotten and that left no word: accounting may know.
fn explain(commands: &Commands, jobs: &mut BTreeMap<String, JobView>, done: &dyn Fn(&str) -> bool) {
    let silent = |stage: &str, job: &JobView| {
        job.live == Some(false)
            && job.state.is_none()
            && job.ended.is_none()
            && !job.cancelled
            && !done(stage)
    };
    let ids: Vec<String> =
        jobs.iter().filter(|(stage, job)| silent(stage, job)).map(|(_, job)| job.job.clone()).collect();
    let rows: BTreeMap<String, sacct::Row> = query::ended(commands, &ids);
    for job in jobs.values_mut() {
        if let Some(row) = rows.get(&job.job) {
            job.state = Some(row.state.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_tasks_are_counted() {
        let row = |task: &str| {
            let line = format!("7|{task}|PENDING|1:00|N/A||n|None");
            tasks_of(&equipoise_slurm::squeue::parse(&line)["7"][0])
        };
        for (task, count) in
            [("N/A", 1), ("3", 1), ("[4-63%16]", 60), ("1,3,7-9", 5), ("0-6:2", 7), ("[5-...]", 1)]
        {
            assert_eq!(row(task), count, "{task}");
        }
    }
}
