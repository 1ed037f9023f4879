//! `equipoise report`: the page, from the JSON and PNG side files of a run.

use super::run_config;
use crate::output::{self, Format};
use crate::runner::Run;
use equipoise_base::{ExitCode, Result};
use equipoise_config::{load_resolved, recipe};
use equipoise_report::{ArmLabel, Context, gather, render};
use equipoise_rundir::{RealFs, commit_bytes};
use serde_json::json;
use std::path::PathBuf;

/// Write report.html, report.csv and report.json of a run, finished or not.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  equipoise report runs/quickstart\n  equipoise report runs/quickstart --output json"
)]
pub struct Args {
    /// Run directory.
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// How to print where the files are.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

/// Writes the report.
pub fn run(args: &Args) -> Result<ExitCode> {
    let resolved = load_resolved(&run_config(&args.run)?, &[])?;
    let run = Run::new(resolved, args.run.clone())?;
    let code = write(&run)?;
    match args.output {
        Format::Text => output::line(run.dir.report().display().to_string()),
        Format::Json => {
            let file = |name: &str| run.dir.root().join(name);
            output::json(&json!({
                "html": file("report.html"), "csv": file("report.csv"), "json": file("report.json"),
            }));
        }
    }
    Ok(code)
}

/// Gathers, renders and commits.
///
/// # Errors
/// 65 when a side file is broken, 74 when the report cannot be written.
pub fn write(run: &Run) -> Result<ExitCode> {
    let report = render(&gather(run.dir.root())?, &context(run))?;
    for (name, text) in
        [("report.csv", &report.csv), ("report.json", &report.json), ("report.html", &report.html)]
    {
        commit_bytes(&RealFs, &run.dir.root().join(name), text.as_bytes(), None)?;
    }
    Ok(ExitCode::Done)
}

fn context(run: &Run) -> Context {
    let recipe = &run.resolved.recipe;
    let shown = |(name, arm): (&str, &recipe::Arm)| ArmLabel {
        name: name.to_string(),
        label: arm.label.clone().unwrap_or_else(|| name.to_string()),
        is_ceiling: arm.extra_split.is_some(),
    };
    let first = recipe.arms.names().first().map(|name| name.to_string());
    Context {
        title: recipe.report.title.clone().unwrap_or_else(|| recipe.run.name.clone()),
        baseline: recipe.report.baseline.clone().or(first).unwrap_or_default(),
        arms: recipe.arms.iter().map(shown).collect(),
        has_sets: !recipe.sets.is_empty(),
        split: recipe.report.split.clone(),
        notes: recipe.report.notes.clone(),
        config: run.resolved.to_toml(),
        identity: run.resolved.identity().to_string(),
        // The page does not depend on what a calibration says; without the data it cannot be said at all.
        costs: super::plan::costs(run).unwrap_or_default(),
    }
}
