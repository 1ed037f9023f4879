//! `equipoise resume`: go on with what a run directory holds.

use super::{run_config, submit};
use crate::jobs;
use crate::output::{self, Format};
use crate::runner::{self, Run};
use equipoise_base::{ExitCode, Result};
use equipoise_config::load_resolved;
use std::path::PathBuf;

/// Go on with a run that stopped, from its run directory alone: as batch jobs if it was submitted, here otherwise.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    equipoise resume runs/quickstart\n  \
    equipoise resume runs/quickstart --set run.ranks=8   elastic settings may change\n  \
    equipoise resume runs/quickstart --here              on this machine, though it was submitted\n\n\
    Of a submitted run the stages that are neither done nor queued are submitted, and jobs that only wait for the begin\n\
    time that Slurm gives to requeued ones may start at once.")]
pub struct Args {
    /// Run directory.
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Change an elastic setting; may be given many times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Run on this machine, even if it was submitted.
    #[arg(long)]
    here: bool,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

/// Resumes the run.
pub fn run(args: &Args) -> Result<ExitCode> {
    let resolved = load_resolved(&run_config(&args.run)?, &args.sets)?;
    let run = Run::new(resolved, args.run.clone())?;
    if args.here || jobs::recorded(&run.dir)?.is_empty() {
        return runner::run(&run, args.output);
    }
    let released = jobs::release(&run.dir)?;
    let placed = jobs::complete(&run, false)?;
    if released > 0 && args.output == Format::Text {
        output::line(format!("{released} requeued jobs may start now"));
    }
    submit::show(&run, &placed, args.output);
    Ok(ExitCode::Done)
}
