//! `equipoise submit`: a recipe as a chain of batch jobs.

use super::RecipeArgs;
use super::plan::{Speeds, dry_run};
use super::run::decided;
use crate::jobs::{self, Placed};
use crate::output::{self, Format};
use crate::runner::{Run, shell_word};
use equipoise_base::{Error, ExitCode, Result};
use equipoise_config::Stage;
use equipoise_slurm::script::Script;
use equipoise_slurm::{Commands, Failure, query};
use serde_json::json;
use std::path::PathBuf;

/// Submit a recipe to Slurm: one job for each stage, each after those it needs.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    equipoise submit my.toml --dry-run              what it would take, and in how many attempts\n  \
    equipoise submit my.toml --print-sbatch         the scripts, and nothing else\n  \
    equipoise submit my.toml --test-only            ask Slurm when each job could start\n  \
    equipoise submit my.toml --set slurm.time=1:00:00 --set slurm.partition=preempt\n\n\
    What is asked of Slurm stands in the table [slurm]: of the site's file, of yours, or of the recipe. Finished stages\n\
    are left out. Jobs that are preempted or reach their time limit are queued again and go on. Exits 69 if jobs of the\n\
    run are queued or running: `equipoise resume RUN` then submits what is missing.")]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Run directory [default: run.root/run.name].
    #[arg(long = "run", value_name = "DIR")]
    run: Option<PathBuf>,
    /// Print the batch scripts; write and submit nothing.
    #[arg(long, group = "instead")]
    print_sbatch: bool,
    /// Show counts, hours, space and attempts; write and submit nothing.
    #[arg(long, group = "instead")]
    dry_run: bool,
    /// Another run whose measured speed is taken, with --dry-run; by default this one.
    #[arg(long, value_name = "RUN", requires = "dry_run")]
    measured: Option<PathBuf>,
    /// What `equipoise calibrate` has measured, with --dry-run [default: RUN/calibration.json, if it is there].
    #[arg(long, value_name = "FILE", requires = "dry_run")]
    calibration: Option<PathBuf>,
    /// Let Slurm check the scripts and estimate when each could start; write and submit nothing.
    #[arg(long, group = "instead")]
    test_only: bool,
    /// Only this stage, with --print-sbatch or --test-only.
    #[arg(long, value_name = "STAGE", requires = "instead")]
    stage: Option<String>,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

/// Submits.
pub fn run(args: &Args) -> Result<ExitCode> {
    let run = decided(&args.recipe, args.run.as_deref())?;
    if args.print_sbatch {
        print_scripts(args, &chosen_scripts(args, &run)?);
        return Ok(ExitCode::Done);
    }
    if args.test_only {
        return test_only(args, &chosen_scripts(args, &run)?);
    }
    if args.dry_run {
        let speeds = Speeds { measured: args.measured.as_deref(), calibration: args.calibration.as_deref() };
        return dry_run(&run, speeds, &args.recipe.as_typed(args.run.as_deref()), args.output);
    }
    let placed = jobs::complete(&run, true)?;
    show(&run, &placed, args.output);
    Ok(ExitCode::Done)
}

/// What was submitted.
pub fn show(run: &Run, placed: &[Placed], format: Format) {
    if format == Format::Json {
        output::json(&json!({ "run": run.dir.root(), "jobs": placed }));
        return;
    }
    if placed.is_empty() {
        output::line("nothing is missing: every stage is done or queued");
        return;
    }
    let row = |job: &Placed| {
        vec![
            job.stage.clone(),
            job.job.clone(),
            job.array.map(|tasks| tasks.to_string()).unwrap_or_default(),
            job.nodes.to_string(),
            job.ranks.to_string(),
            job.after.join(" "),
        ]
    };
    let rows: Vec<_> = placed.iter().map(row).collect();
    output::table(&["stage", "job", "tasks", "nodes", "ranks", "after jobs"], &rows, &[1, 2, 3, 4]);
    output::line(format!("to see how far it is: equipoise status {}", shell_word(run.dir.root())));
}

fn chosen_scripts(args: &Args, run: &Run) -> Result<Vec<Script>> {
    run.check_identities()?;
    let mut stages: Vec<&Stage> = Vec::new();
    for stage in &run.stages {
        let chosen = match &args.stage {
            Some(name) => *name == stage.name,
            None => !run.is_done(stage)?,
        };
        if chosen {
            stages.push(stage);
        }
    }
    if let (Some(name), true) = (&args.stage, stages.is_empty()) {
        let names: Vec<&str> = run.stages.iter().map(|stage| stage.name.as_str()).collect();
        let hint = equipoise_config::nearest::hint(name, &names);
        return Err(Error::new(ExitCode::Usage, format!("the recipe has no stage '{name}'{hint}")));
    }
    jobs::scripts(run, &stages, query::max_array(&Commands::default()))
}

fn print_scripts(args: &Args, scripts: &[Script]) {
    if args.output == Format::Json {
        let script = |script: &Script| json!({ "stage": script.stage, "script": script.text });
        output::json(&scripts.iter().map(script).collect::<Vec<_>>());
        return;
    }
    for script in scripts {
        if scripts.len() > 1 {
            output::line(format!("# ==> slurm/{} <==", script.file()));
        }
        output::line(script.text.trim_end());
        if scripts.len() > 1 {
            output::line("");
        }
    }
}

/// Slurm's opinion of each script. Dependencies are not taken into account: there is no job yet to depend on.
fn test_only(args: &Args, scripts: &[Script]) -> Result<ExitCode> {
    let commands = Commands::default();
    let mut refused = 0;
    for script in scripts {
        let answer = commands.test_only(&script.text).map(|answer| {
            let said = format!("{}{}", answer.out, answer.err);
            said.trim().trim_start_matches("sbatch: ").to_string()
        });
        let (accepted, said) = match answer {
            Ok(said) => (true, said),
            Err(Failure::Refused(said)) => (false, said),
            Err(failure) => return Err(failure.into()),
        };
        refused += u32::from(!accepted);
        match args.output {
            Format::Json => {
                output::json(&json!({ "stage": script.stage, "accepted": accepted, "slurm": said }))
            }
            Format::Text => output::line(format!("{}: {said}", script.stage)),
        }
    }
    Ok(if refused == 0 { ExitCode::Done } else { ExitCode::CheckFailed })
}
