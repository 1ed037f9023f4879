//! `cargo xtask test`: everything that CI checks, the test runner's summary last.

use crate::{deps, faults, schema, setup, shell};
use anyhow::Result;

/// Which part to run.
#[derive(clap::Args)]
pub struct Args {
    /// Skip formatting and lints.
    #[arg(long)]
    no_lints: bool,
    /// Passed on to the test runner, after `--`.
    #[arg(last = true)]
    runner: Vec<String>,
}

/// Sets up, then checks from cheap to dear.
pub fn run(args: &Args) -> Result<()> {
    setup::run()?;
    deps::run()?;
    if !args.no_lints {
        shell::run(shell::cargo().args(["fmt", "--all", "--check"]))?;
        shell::run(shell::cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    }
    build()?;
    schema::of_built(true)?;
    shell::run(std::process::Command::new("target/debug/equipoise-verify").arg("tests/oracle"))?;
    let nextest = shell::succeeds("cargo", &["nextest", "--version"]);
    if nextest {
        faults::check()?;
    }
    let mut runner = shell::cargo();
    match nextest {
        true => runner.args(["nextest", "run", "--workspace"]).args(&args.runner),
        false => runner.args(["test", "--workspace", "--"]).arg("--test-threads=2").args(&args.runner),
    };
    // For `cargo xtask faults --last`.
    runner.env(equipoise_testkit::figures::VARIABLE, faults::begin()?);
    // Two cores: parallel tests and their libraries would otherwise fight for them.
    shell::run(runner.env("OMP_NUM_THREADS", "1").env("RAYON_NUM_THREADS", "1"))
}

/// Builds the tests and the step binaries, which black-box tests start and no test target builds by itself. With
/// `--all-targets` the libraries have the features that the tests' build gives them, and are compiled once for both.
pub fn build() -> Result<()> {
    shell::run(shell::cargo().args(["build", "--workspace", "--all-targets"]))
}
