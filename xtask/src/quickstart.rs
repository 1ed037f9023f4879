//! `cargo xtask quickstart`: the main job on real images, on a fresh machine, with one command.

use crate::{setup, shell};
use anyhow::Result;
use std::process::Command;

/// Where and how.
#[derive(clap::Args)]
pub struct Args {
    /// Run directory.
    #[arg(long, default_value = "shards/runs/quickstart")]
    run: String,
    /// More settings, as `equipoise run --set`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

/// Sets up, builds, runs the recipe. Typed again it goes on where it stopped.
pub fn run(args: &Args) -> Result<()> {
    setup::run()?;
    shell::run(shell::cargo().args(["build", "--release"]))?;
    let mut equipoise = Command::new("target/release/equipoise");
    equipoise.args(["run", "configs/recipes/quickstart.toml", "--run", &args.run]);
    for set in &args.sets {
        equipoise.args(["--set", set]);
    }
    shell::run(&mut equipoise)
}
