//! One file per subcommand.

mod batch;
mod calibrate;
mod cancel;
mod completions;
mod config;
mod doctor;
mod init;
mod logs;
pub mod plan;
pub mod report;
mod resume;
mod run;
mod shards;
mod status;
mod submit;
mod verify;
mod weights;

use crate::runner::shell_word;
use clap::Subcommand;
use equipoise_base::{Error, ExitCode, Result};
use equipoise_config::{Resolved, load_recipe, load_resolved};
use std::path::{Path, PathBuf};

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    Init(init::Args),
    Calibrate(calibrate::Args),
    Plan(plan::Args),
    Run(run::Args),
    Submit(submit::Args),
    Resume(resume::Args),
    Cancel(cancel::Args),
    Status(status::Args),
    Logs(logs::Args),
    Report(report::Args),
    Shards(shards::Args),
    Verify(verify::Args),
    Doctor(doctor::Args),
    Weights(weights::Args),
    Config(config::Args),
    Completions(completions::Args),
    Batch(batch::Args),
}

impl Command {
    /// Does it.
    pub fn run(&self) -> Result<ExitCode> {
        match self {
            Command::Init(args) => init::run(args),
            Command::Calibrate(args) => calibrate::run(args),
            Command::Plan(args) => plan::run(args),
            Command::Run(args) => run::run(args),
            Command::Submit(args) => submit::run(args),
            Command::Resume(args) => resume::run(args),
            Command::Cancel(args) => cancel::run(args),
            Command::Status(args) => status::run(args),
            Command::Logs(args) => logs::run(args),
            Command::Report(args) => report::run(args),
            Command::Shards(args) => shards::run(args),
            Command::Verify(args) => verify::run(args),
            Command::Doctor(args) => doctor::run(args),
            Command::Weights(args) => weights::run(args),
            Command::Config(args) => config::run(args),
            Command::Completions(args) => completions::run(args),
            Command::Batch(args) => batch::run(args),
        }
    }

    /// It starts step binaries and waits for them.
    pub fn starts_steps(&self) -> bool {
        matches!(self, Command::Run(_) | Command::Resume(_) | Command::Calibrate(_))
    }
}

/// A recipe and changes to it.
#[derive(Debug, clap::Args)]
pub struct RecipeArgs {
    /// Recipe, or a run directory.
    #[arg(value_name = "RECIPE")]
    recipe: PathBuf,
    /// Change a setting; may be given many times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

impl RecipeArgs {
    /// The configuration: a recipe with the site's and the user's settings, or what a run directory holds.
    fn resolve(&self) -> Result<Resolved> {
        self.resolve_with(&[])
    }

    /// The run directory that was given instead of a recipe.
    fn run_dir(&self) -> Option<PathBuf> {
        self.recipe.is_dir().then(|| self.recipe.clone())
    }

    /// The recipe, its changes and the run directory as one would type them again.
    fn as_typed(&self, run: Option<&Path>) -> String {
        let sets = self.sets.iter().map(|set| format!(" --set {}", shell_word(Path::new(set))));
        let run = run.map(|run| format!(" --run {}", shell_word(run))).unwrap_or_default();
        format!("{}{run}{}", shell_word(&self.recipe), sets.collect::<String>())
    }

    /// The configuration with more settings on top.
    fn resolve_with(&self, more: &[String]) -> Result<Resolved> {
        let sets: Vec<String> = self.sets.iter().chain(more).cloned().collect();
        if self.recipe.is_dir() {
            return load_resolved(&run_config(&self.recipe)?, &sets);
        }
        load_recipe(&self.recipe, &sets)
    }
}

/// The resolved configuration of a run directory.
fn run_config(run: &Path) -> Result<PathBuf> {
    let config = run.join("config.toml");
    if config.is_file() {
        return Ok(config);
    }
    let message = format!("{}: no run directory: it has no config.toml", run.display());
    Err(Error::new(ExitCode::Usage, message).next("equipoise run RECIPE"))
}
