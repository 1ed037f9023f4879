//! `equipoise status`: how far a run is, from its JSON files alone.

use super::run_config;
use crate::output::{self, Colour, Format};
use crate::runner::{launcher_of, stage_dir};
use equipoise_base::clock::{Clock, SystemClock};
use equipoise_base::{ExitCode, Result};
use equipoise_config::{Resolved, load_resolved, stages};
use equipoise_rundir::stage::{Outcome, State, Status};
use equipoise_rundir::{RealFs, RunDir};
use equipoise_telemetry::human_duration;
use serde::Serialize;
use serde_json::json;
use std::path::PathBuf;

/// Show how far a run is.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  equipoise status runs/quickstart\n  equipoise status runs/quickstart --output json"
)]
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
    /// waiting, running, interrupted, done, stopped or failed.
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
    code: Option<i32>,
    message: Option<String>,
    next: Option<String>,
}

/// Shows the status.
pub fn run(args: &Args) -> Result<ExitCode> {
    let resolved = load_resolved(&run_config(&args.run)?, &[])?;
    let run = RunDir::new(&args.run);
    let launcher = launcher_of(&run)?;
    let mut rows = Vec::new();
    for name in stage_names(&resolved, &run)? {
        rows.push(row(&run, name, launcher.is_some())?);
    }
    if args.output == Format::Json {
        output::json(&json!({ "run": args.run, "launcher": launcher, "stages": rows }));
        return Ok(ExitCode::Done);
    }
    let place = launcher.map(|process| format!("running: process {} on {}", process.pid, process.host));
    output::line(format!("{}  {}", args.run.display(), place.unwrap_or_else(|| "not running".into())));
    output::table(&["stage", "state", "progress", "rate", "to go", "attempt"], &cells(&rows), &[3, 4, 5]);
    for row in rows.iter().filter(|row| row.state == "failed") {
        let next = row.next.as_ref().map(|next| format!(" (next: {next})")).unwrap_or_default();
        output::line(format!("{}: {}{next}", row.stage, row.message.as_deref().unwrap_or_default()));
    }
    Ok(ExitCode::Done)
}

/// The recipe's stages in order or, where a weight file has moved, those that were begun.
fn stage_names(resolved: &Resolved, run: &RunDir) -> Result<Vec<String>> {
    match stages(resolved) {
        // The report is made from the others and has no folder.
        Ok(stages) => Ok(stages
            .into_iter()
            .filter(|stage| stage.kind.program().is_some())
            .map(|stage| stage.name)
            .collect()),
        Err(_) => Ok(run.stages(&RealFs)?.iter().map(|dir| dir.key().to_string()).collect()),
    }
}

fn row(run: &RunDir, stage: String, launched: bool) -> Result<Row> {
    let dir = stage_dir(run, &stage)?;
    let status = Status::read(&RealFs, &dir)?;
    let attempt = status.as_ref().map_or(0, |status| status.attempt);
    // An outcome of an earlier attempt says nothing about this one.
    let outcome = Outcome::read(&RealFs, &dir)?.filter(|outcome| outcome.attempt >= attempt);
    let running = status.as_ref().is_some_and(|status| status.state == State::Running) && outcome.is_none();
    let state = match outcome.as_ref().map(|outcome| outcome.name) {
        Some(ExitCode::Done) => "done",
        Some(ExitCode::Requeue) => "stopped",
        Some(_) => "failed",
        None if running && launched => "running",
        None if status.is_some() => "interrupted",
        None => "waiting",
    };
    let eta = status.as_ref().and_then(|status| {
        let rate = status.rate.filter(|rate| *rate > 0.0 && running)?;
        Some(status.total.saturating_sub(status.done) as f64 / rate)
    });
    let silent = status
        .as_ref()
        .filter(|_| running)
        .map(|status| (SystemClock::default().wall() - status.wall).max(0.0));
    Ok(Row {
        stage,
        state,
        done: status.as_ref().map(|status| status.done),
        total: status.as_ref().map(|status| status.total),
        unit: status.as_ref().map(|status| status.unit.clone()),
        rate: status.as_ref().and_then(|status| status.rate),
        eta,
        attempt: outcome
            .as_ref()
            .map(|outcome| outcome.attempt)
            .or(status.as_ref().map(|status| status.attempt)),
        ranks: status.as_ref().map(|status| status.ranks),
        host: status.as_ref().map(|status| status.host.clone()),
        silent,
        code: outcome.as_ref().map(|outcome| outcome.code),
        message: outcome.as_ref().map(|outcome| outcome.message.clone()),
        next: outcome.and_then(|outcome| outcome.next),
    })
}

fn cells(rows: &[Row]) -> Vec<Vec<String>> {
    let cell = |row: &Row| {
        let progress = match (row.done, row.total, &row.unit) {
            (Some(done), Some(total), Some(unit)) if total > 0 => format!("{done}/{total} {unit}"),
            _ => String::new(),
        };
        let rate = row.rate.filter(|_| row.state == "running").map(|rate| format!("{rate:.1}/s"));
        vec![
            row.stage.clone(),
            coloured(row.state),
            progress,
            rate.unwrap_or_default(),
            row.eta.map(human_duration).unwrap_or_default(),
            row.attempt.map(|attempt| attempt.to_string()).unwrap_or_default(),
        ]
    };
    rows.iter().map(cell).collect()
}

fn coloured(state: &str) -> String {
    let colour = match state {
        "done" => Colour::Good,
        "failed" => Colour::Bad,
        "stopped" | "interrupted" => Colour::Attention,
        _ => Colour::Faint,
    };
    output::coloured(state, colour)
}
