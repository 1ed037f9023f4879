//! `equipoise run`: a recipe, from the first stage that is not done to the report.

use super::RecipeArgs;
use crate::output::Format;
use crate::runner::{self, Run};
use equipoise_base::{ExitCode, Result};
use equipoise_comm::environment::CpuCapability;
use equipoise_config::load_resolved;
use std::path::{Path, PathBuf};

/// Run a recipe on this machine, or go on where it stopped.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    equipoise run my.toml\n  \
    equipoise run my.toml --run /scratch/me/first --set run.ranks=4\n  \
    equipoise run my.toml --set arms.bs.steps=1200\n\n\
    Finished stages are kept. Ctrl-C, TERM and USR2 stop after the current batch or step, with everything committed\n\
    and exit code 75; a second Ctrl-C kills. The same command, or `equipoise resume RUN`, goes on.")]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Run directory [default: run.root/run.name].
    #[arg(long = "run", value_name = "DIR")]
    run: Option<PathBuf>,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

/// Runs the recipe.
pub fn run(args: &Args) -> Result<ExitCode> {
    runner::run(&decided(&args.recipe, args.run.as_deref())?, args.output)
}

/// The run of a recipe in `dir` (if none, the run directory that was given as recipe, else `run.root/run.name`), with the instruction set decided.
///
/// # Errors
/// 78 if something is wrong with the recipe.
pub fn decided(recipe: &RecipeArgs, dir: Option<&Path>) -> Result<Run> {
    let mut resolved = recipe.resolve()?;
    let dir = dir.map(Path::to_owned).or_else(|| recipe.run_dir()).unwrap_or_else(|| resolved.run_dir());
    if resolved.recipe.run.cpu_capability.parse::<CpuCapability>()? == CpuCapability::Auto {
        let decided = format!("run.cpu_capability=\"{}\"", begun_with(&dir)?);
        resolved = recipe.resolve_with(&[decided])?;
    }
    Run::new(resolved, dir)
}

/// The instruction set that a run was begun with, the best of this machine for a new one: it decides bits, so it stays.
fn begun_with(dir: &Path) -> Result<CpuCapability> {
    let config = dir.join("config.toml");
    let begun = match config.is_file() {
        true => load_resolved(&config, &[])?.recipe.run.cpu_capability.parse()?,
        false => CpuCapability::Auto,
    };
    Ok(begun.decided())
}
