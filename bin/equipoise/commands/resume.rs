//! `equipoise resume`: go on with what a run directory holds.

use super::run_config;
use crate::output::Format;
use crate::runner::{self, Run};
use equipoise_base::{ExitCode, Result};
use equipoise_config::load_resolved;
use std::path::PathBuf;

/// Go on with a run that stopped, from its run directory alone.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    equipoise resume runs/quickstart\n  \
    equipoise resume runs/quickstart --set run.ranks=8   elastic settings may change")]
pub struct Args {
    /// Run directory.
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Change an elastic setting; may be given many times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

/// Resumes the run.
pub fn run(args: &Args) -> Result<ExitCode> {
    let resolved = load_resolved(&run_config(&args.run)?, &args.sets)?;
    runner::run(&Run::new(resolved, args.run.clone())?, args.output)
}
