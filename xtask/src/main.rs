//! Developer tasks: `cargo xtask --help`.

mod bench;
mod deps;
mod faults;
mod fuzz;
mod gpu;
mod host;
mod oracle;
mod quickstart;
mod schema;
mod setup;
mod shell;
mod soak;
mod test;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Set-up, tests and checks of Equipoise.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install or find what the build needs; quick when nothing is missing.
    Setup,
    /// Everything that CI checks: format, lints, crate graph, schema, tests, numerical oracle.
    Test(test::Args),
    /// Check that crates depend downward only (docs/design/architecture.md).
    Deps,
    /// Regenerate configs/schema.json from the method crates.
    Schema {
        /// Only compare; fail if the file is out of date.
        #[arg(long)]
        check: bool,
    },
    /// Run the tests of every fault of tests/faults.toml; prints a line for each and writes docs/faults.md.
    Faults(faults::Args),
    /// Let libFuzzer make up inputs for everything that reads a file or Slurm's text; writes docs/fuzzing.md.
    Fuzz(fuzz::Args),
    /// Regenerate our own cases of the numerical oracle from tests/oracle/scripts, and check them.
    Oracle(oracle::Args),
    /// Random kills, preemptions and node losses over a run on a real cluster; prints goodput.
    Soak(soak::Args),
    /// On a fresh machine: set up, build, and run the main job on real images.
    Quickstart(quickstart::Args),
    /// Measure ours beside what a user would run instead.
    Bench(bench::Args),
    /// Build and pack what benches/gpu/run.sh needs on a machine with a GPU.
    Gpu,
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        // What failed has said why; where xtask stood then helps nobody.
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<()> {
    std::env::set_current_dir(shell::root())?;
    match task {
        Task::Setup => setup::run(),
        Task::Test(args) => test::run(&args),
        Task::Deps => deps::run(),
        Task::Schema { check } => schema::run(check),
        Task::Faults(args) => faults::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Oracle(args) => oracle::run(&args),
        Task::Soak(args) => soak::run(&args),
        Task::Quickstart(args) => quickstart::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Gpu => gpu::run(),
    }
}
