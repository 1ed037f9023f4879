//! `equipoise`: the front end. Links nothing native; what needs libtorch, MPI or HDF5 is done by step binaries
//! beside it.

mod classes;
mod commands;
mod cost;
mod jobs;
mod output;
mod runner;
mod steps;

use clap::Parser;
use commands::Command;
use equipoise_base::ExitCode;

/// Balanced data sets and trained classifiers from long-tailed images, on preemptible clusters.
#[derive(Debug, Parser)]
#[command(name = "equipoise", version = equipoise_config::BUILD_ID, max_term_width = 110)]
#[command(after_help = "Examples:\n  \
    equipoise init quickstart > my.toml   a commented recipe to start from\n  \
    equipoise calibrate my.toml           how fast this machine is at it\n  \
    equipoise plan my.toml                what it would do and take, and whether it fits on the disk\n  \
    equipoise run my.toml                 do it; type it again to go on after a stop\n  \
    equipoise submit my.toml              the same as batch jobs of Slurm\n  \
    equipoise status runs/quickstart      how far it is\n\n\
    Exit codes: 0 done, 1 a check failed, 64 usage, 65 bad data, 69 owned by another job,\n\
    70 no progress, 71 non-finite, 73 no space, 74 I/O error, 75 stopped with everything\n\
    committed (resume), 78 bad configuration, 101 bug")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

fn main() -> std::process::ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| {
        let _ = error.print();
        std::process::exit(if error.use_stderr() { ExitCode::Usage.status() } else { 0 });
    });
    output::let_pipes_close(&cli.command);
    match cli.command.run() {
        Ok(code) => code.into(),
        Err(error) => {
            output::error(&error);
            error.code().into()
        }
    }
}
