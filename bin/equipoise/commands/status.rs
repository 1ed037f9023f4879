//! `equipoise status`: how far a run is, from its JSON files, and where its batch jobs are.

use super::run_config;
use crate::jobs::{self, JobView, View};
use crate::output::{self, Colour, Format};
use crate::runner::{launcher_of, shell_word, stage_dir};
use equipoise_base::clock::{Clock, SystemClock};
use equipoise_base::{ExitCode, Result};
use equipoise_config::{Kind, Resolved, load_resolved, stages};
use equipoise_rundir::stage::{Outcome, State, Status};
use equipoise_rundir::{RealFs, RunDir, StageDir, Vfs, read_json};
use equipoise_slurm::{duration, estimate, settings};
use equipoise_telemetry::human_duration;
use serde::Serialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Show how far a run is.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    equipoise status runs/quickstart\n  \
    equipoise status runs/quickstart --output json\n\n\
    Of a submitted run also what Slurm says, in one call for all jobs.")]
pub struct Args {
    /// Run directory.
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

/// One stage.
#[derive(Debug, Serialize)]
struct Row {
    stage: String,
    /// waiting, queued, held, starting, running, interrupted, done, stopped, cancelled or failed.
    state: &'static str,
    done: Option<u64>,
    total: Option<u64>,
    unit: Option<String>,
    rate: Option<f64>,
    /// Seconds to go at that rate.
    eta: Option<f64>,
    attempt: Option<u64>,
    ranks: Option<usize>,
    host: Option<String>,
    /// Seconds since the last sign of life.
    silent: Option<f64>,
    /// Images that could not be made.
    failed: u64,
    code: Option<i32>,
    message: Option<String>,
    next: Option<String>,
    job: Option<JobView>,
    /// In which attempt of the job it finishes, at the rate and the time limit it has, and which one this is.
    finishes: Option<Finishes>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Finishes {
    attempt: u64,
    of: u64,
}

/// Shows the status.
pub fn run(args: &Args) -> Result<ExitCode> {
    let resolved = load_resolved(&run_config(&args.run)?, &[])?;
    let run = RunDir::new(&args.run);
    let launcher = launcher_of(&run)?;
    let kinds = stage_names(&resolved, &run)?;
    let ended = |stage: &str| {
        let dir = stage_dir(&run, stage).ok();
        let outcome = dir.and_then(|dir| Outcome::read(&RealFs, &dir).ok().flatten());
        outcome.is_some_and(|outcome| outcome.name == ExitCode::Done)
    };
    let View { jobs, trouble } = jobs::view(&run, &ended)?;
    let mut rows = Vec::new();
    for (name, kind) in kinds {
        let job = jobs.get(&name).cloned();
        // The report is made from the others and has no folder.
        if kind != Some(Kind::Report) || job.is_some() {
            rows.push(Row::new(&run, &resolved, name, job, launcher.is_some())?);
        }
    }
    let excluded = jobs::lost::often(&run, resolved.recipe.slurm.exclude_after);
    if args.output == Format::Json {
        let slurm = trouble.map(|trouble| json!({ "trouble": trouble }));
        let status = json!({
            "run": args.run, "launcher": launcher, "slurm": slurm, "excluded_nodes": excluded, "stages": rows,
        });
        output::json(&status);
        return Ok(ExitCode::Done);
    }
    let here = launcher.map(|process| format!("running: process {} on {}", process.pid, process.host));
    let place = here.or_else(|| summary(&rows)).unwrap_or_else(|| "not running".into());
    output::line(format!("{}  {place}", args.run.display()));
    if let Some(trouble) = trouble {
        output::line(output::coloured(
            &format!("Slurm gives no answer, this is from files alone: {trouble}"),
            Colour::Attention,
        ));
    }
    print(&rows, !jobs.is_empty());
    explain(&args.run, &rows);
    if !excluded.is_empty() {
        let (nodes, run) = (excluded.join(", "), shell_word(&args.run));
        output::line(format!(
            "jobs keep away from {nodes}, lost again and again, where the partition has enough others; \
             to forgive a node: rm -r {run}/slurm/lost/NODE"
        ));
    }
    Ok(ExitCode::Done)
}

/// The recipe's stages in order or, where a weight file has moved, those that were begun.
fn stage_names(resolved: &Resolved, run: &RunDir) -> Result<Vec<(String, Option<Kind>)>> {
    match stages(resolved) {
        Ok(stages) => Ok(stages.into_iter().map(|stage| (stage.name, Some(stage.kind))).collect()),
        Err(_) => Ok(run.stages(&RealFs)?.iter().map(|dir| (dir.key().to_string(), None)).collect()),
    }
}

impl Row {
    fn new(
        run: &RunDir,
        resolved: &Resolved,
        stage: String,
        job: Option<JobView>,
        launched: bool,
    ) -> Result<Self> {
        let dir = stage_dir(run, &stage)?;
        let status = stage_status(&dir)?;
        let attempt = status.as_ref().map_or(0, |status| status.attempt);
        // An outcome of an earlier attempt says nothing about this one.
        let outcome = Outcome::read(&RealFs, &dir)?.filter(|outcome| outcome.attempt >= attempt);
        let at_work =
            status.as_ref().is_some_and(|status| status.state == State::Running) && outcome.is_none();
        let state = state(outcome.as_ref(), status.is_some(), at_work, launched, job.as_ref());
        let running = state == "running" || at_work && !["failed", "done"].contains(&state);
        let eta = status.as_ref().and_then(|status| {
            let rate = status.rate.filter(|rate| *rate > 0.0 && running)?;
            Some(status.total.saturating_sub(status.done) as f64 / rate)
        });
        let silent = status
            .as_ref()
            .filter(|_| running)
            .map(|status| (SystemClock::default().wall() - status.wall).max(0.0));
        let failed = failed_images(run, &stage)?;
        let finishes = job.as_ref().zip(eta).and_then(|(job, eta)| finishes(resolved, &stage, job, eta));
        let ended = job.as_ref().and_then(|job| job.ended.clone()).filter(|_| state == "failed");
        Ok(Self {
            stage,
            state,
            done: status.as_ref().map(|status| status.done),
            total: status.as_ref().map(|status| status.total),
            unit: status.as_ref().map(|status| status.unit.clone()),
            rate: status.as_ref().and_then(|status| status.rate),
            eta,
            attempt: outcome.as_ref().map(|outcome| outcome.attempt).or(status.as_ref().map(|it| it.attempt)),
            ranks: status.as_ref().map(|status| status.ranks),
            host: status.as_ref().map(|status| status.host.clone()),
            silent,
            failed,
            code: outcome.as_ref().map(|outcome| outcome.code),
            message: outcome.as_ref().map(|outcome| outcome.message.clone()).or(ended),
            next: outcome.and_then(|outcome| outcome.next),
            job,
            finishes,
        })
    }
}

/// The status of a stage: of an array that of the task that knows of most, at the rate of all.
fn stage_status(dir: &StageDir) -> Result<Option<Status>> {
    let own = Status::read(&RealFs, dir)?;
    let tasks = RealFs.list_if_exists(&dir.tasks()).unwrap_or_default();
    let mut best: Option<Status> = own;
    let mut rate = 0.0;
    for task in tasks.iter().filter_map(|entry| entry.name.parse().ok()) {
        let Some(status) = Status::read(&RealFs, &dir.task(task))? else { continue };
        if status.state == State::Running {
            rate += status.rate.unwrap_or(0.0);
        }
        let further = best.as_ref().is_none_or(|best| {
            (status.attempt, status.state == State::Running, status.done)
                > (best.attempt, best.state == State::Running, best.done)
        });
        if further {
            best = Some(status);
        }
    }
    if let Some(best) = &mut best
        && rate > 0.0
    {
        best.rate = Some(rate);
    }
    Ok(best)
}

fn state(
    outcome: Option<&Outcome>,
    begun: bool,
    at_work: bool,
    launched: bool,
    job: Option<&JobView>,
) -> &'static str {
    if outcome.is_some_and(|outcome| outcome.name == ExitCode::Done) {
        return "done";
    }
    let live = job.and_then(|job| Some((job, job.state.as_ref().filter(|_| job.live == Some(true))?)));
    if let Some((job, state)) = live {
        let held = job.reason.as_deref().is_some_and(|reason| reason.starts_with("JobHeld"));
        return match state.is_waiting() {
            true if held => "held",
            true => "queued",
            false if at_work => "running",
            false => "starting",
        };
    }
    match outcome.map(|outcome| outcome.name) {
        Some(ExitCode::Requeue) => "stopped",
        Some(_) => "failed",
        None if at_work && launched => "running",
        // Slurm cannot be asked: what the files say.
        None if at_work && job.is_some_and(|job| job.live.is_none()) => "running",
        None if job.is_some_and(|job| job.cancelled) => "cancelled",
        None if job.is_some_and(|job| job.ended.as_deref() == Some("done")) => "done",
        None if job.is_some_and(|job| job.ended.is_some()) => "failed",
        None if begun => "interrupted",
        None if job.is_some_and(|job| job.live == Some(false)) => "interrupted",
        None if job.is_some_and(|job| job.live.is_none()) => "queued",
        None => "waiting",
    }
}

/// Images of a complete set that could not be made.
fn failed_images(run: &RunDir, stage: &str) -> Result<u64> {
    let Some(set) = stage.strip_prefix("generate.") else { return Ok(0) };
    let index = read_json::<Value>(&RealFs, &run.root().join("sets").join(set).join("index.json"))?;
    let shards = index.as_ref().and_then(|index| index["shards"].as_array());
    Ok(shards.into_iter().flatten().map(|shard| shard["failed"].as_array().map_or(0, Vec::len) as u64).sum())
}

/// At this rate, in which attempt.
fn finishes(resolved: &Resolved, stage: &str, job: &JobView, eta: f64) -> Option<Finishes> {
    let slurm = &resolved.recipe.slurm;
    let attempt = u64::from(job.restarts) + 1;
    let useful = job.left? as f64 - f64::from(slurm.signal_lead);
    if eta <= useful {
        return Some(Finishes { attempt, of: attempt });
    }
    let limit: Duration = duration::parse(settings::of_stage(slurm, stage).ok()?.time.as_deref()?)?;
    let more = estimate::attempts(eta - useful.max(0.0), limit, slurm.signal_lead);
    Some(Finishes { attempt, of: attempt + more })
}

/// `3 running, 5 queued`, of the stages that have jobs.
fn summary(rows: &[Row]) -> Option<String> {
    let count = |state: &str| rows.iter().filter(|row| row.job.is_some() && row.state == state).count();
    let counts: Vec<String> = ["running", "starting", "queued", "held"]
        .into_iter()
        .map(|state| (count(state), state))
        .filter(|(count, _)| *count > 0)
        .map(|(count, state)| format!("{count} {state}"))
        .collect();
    (!counts.is_empty()).then(|| counts.join(", "))
}

fn print(rows: &[Row], jobs: bool) {
    let cells: Vec<Vec<String>> = rows.iter().map(|row| cells(row, jobs)).collect();
    let header = ["stage", "state", "progress", "rate", "to go", "attempt", "job", "where or why"];
    output::table(if jobs { &header } else { &header[..6] }, &cells, &[3, 4, 6]);
}

fn cells(row: &Row, jobs: bool) -> Vec<String> {
    let progress = match (row.done, row.total, &row.unit) {
        (Some(done), Some(total), Some(unit)) if total > 0 => {
            let failed = if row.failed > 0 { format!(", {} failed", row.failed) } else { String::new() };
            format!("{done}/{total} {unit}{failed}")
        }
        _ => String::new(),
    };
    let rate = row.rate.filter(|_| row.state == "running").map(|rate| format!("{rate:.1}/s"));
    let attempt = match (row.finishes, &row.job) {
        (Some(Finishes { attempt, of }), _) => format!("{attempt} of about {of}"),
        (None, Some(job)) if row.attempt.is_some() => (job.restarts + 1).to_string(),
        _ => row.attempt.map(|attempt| attempt.to_string()).unwrap_or_default(),
    };
    let mut cells = vec![
        row.stage.clone(),
        coloured(row.state),
        progress,
        rate.unwrap_or_default(),
        row.eta.map(human_duration).unwrap_or_default(),
        attempt,
    ];
    if jobs {
        cells.push(row.job.as_ref().map(|job| job.job.clone()).unwrap_or_default());
        cells.push(row.job.as_ref().map(|job| place(job, row.state)).unwrap_or_default());
    }
    cells
}

/// Nodes of a job that runs, the reason of one that waits, the end of one that is over.
fn place(job: &JobView, state: &str) -> String {
    if let Some(tasks) = &job.tasks {
        let counts = tasks.iter().map(|(state, count)| format!("{count} {state}"));
        return counts.collect::<Vec<_>>().join(", ");
    }
    match state {
        "done" => String::new(),
        "queued" | "held" => {
            let start = job.start.as_ref().map(|start| format!(", expected {start}")).unwrap_or_default();
            format!("{}{start}", job.reason.as_deref().unwrap_or("waiting"))
        }
        "running" | "starting" => match &job.state {
            Some(state) if state.name() != "RUNNING" => {
                format!("{} {}", job.nodes, state.name().to_lowercase())
            }
            _ => job.nodes.clone(),
        },
        _ => job.state.as_ref().map(|state| state.name().to_lowercase()).unwrap_or_default(),
    }
}

/// What went wrong, and what to type.
fn explain(run: &Path, rows: &[Row]) {
    for row in rows.iter().filter(|row| row.state == "failed") {
        let next = row.next.as_ref().map(|next| format!(" (next: {next})")).unwrap_or_default();
        output::line(format!("{}: {}{next}", row.stage, row.message.as_deref().unwrap_or_default()));
    }
    for row in rows {
        let failed = row.job.as_ref().map(|job| job.failed_tasks.as_slice()).unwrap_or_default();
        if !failed.is_empty() {
            let tasks: Vec<String> = failed.iter().take(8).map(u64::to_string).collect();
            let more = if failed.len() > 8 { ", ..." } else { "" };
            output::line(format!("{}: failed tasks {}{more}", row.stage, tasks.join(", ")));
        }
    }
    let held = rows.iter().filter(|row| row.state == "held").filter_map(|row| row.job.as_ref());
    let held: Vec<&str> = held.map(|job| job.job.as_str()).collect();
    if !held.is_empty() {
        let jobs = held.join(" ");
        output::line(format!(
            "held by Slurm after too many requeues of its own; to let them go: scontrol release {jobs}"
        ));
    }
    let submitted = rows.iter().any(|row| row.job.is_some());
    let live = rows.iter().any(|row| ["running", "starting", "queued", "held"].contains(&row.state));
    let missing = rows.iter().any(|row| row.state != "done");
    if submitted && missing && !live {
        output::line(format!("nothing is queued; to go on: equipoise resume {}", shell_word(run)));
    }
}

fn coloured(state: &str) -> String {
    let colour = match state {
        "done" => Colour::Good,
        "failed" => Colour::Bad,
        "stopped" | "interrupted" | "held" | "cancelled" => Colour::Attention,
        _ => Colour::Faint,
    };
    output::coloured(state, colour)
}
