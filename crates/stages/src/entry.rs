//! The command line of every step binary.

use crate::step::{Step, run_stage};
use crate::training::Ended;
use crate::{facts, schema};
use clap::Parser;
use equipoise_base::{ExitCode, Result, bail};
use equipoise_config::BUILD_ID;
use std::path::PathBuf;

#[derive(Debug, Parser)]
#[command(about = "A step of an Equipoise run; `equipoise run` and the batch scripts start it", version = BUILD_ID)]
struct Args {
    /// Resolved configuration of the run.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["print_schema", "build_id", "facts"])]
    config: Option<PathBuf>,
    /// Run directory.
    #[arg(long, value_name = "DIR", required_unless_present_any = ["print_schema", "build_id", "facts"])]
    run: Option<PathBuf>,
    /// Settings on top of the configuration; `stage=NAME` says which stage.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Record what the ranks do when, as a file for a trace viewer (chrome://tracing, Perfetto).
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Print the schema of recipes.
    #[arg(long, hide = true)]
    print_schema: bool,
    /// Print the build that front end and steps must share.
    #[arg(long, hide = true)]
    build_id: bool,
    /// Print what this machine computes with, as JSON.
    #[arg(long, hide = true)]
    facts: bool,
}

/// Runs a step binary.
pub fn main(body: fn(&Step) -> Result<Ended>) -> std::process::ExitCode {
    let args = Args::try_parse().unwrap_or_else(|error| {
        let _ = error.print();
        std::process::exit(if error.use_stderr() { ExitCode::Usage.status() } else { 0 });
    });
    if args.build_id {
        println!("{BUILD_ID}");
        return ExitCode::Done.into();
    }
    let result = match (args.print_schema, args.facts) {
        (true, _) => schema::print().map(|()| ExitCode::Done),
        (_, true) => facts::print().map(|()| ExitCode::Done),
        _ => start(&args, body),
    };
    result
        .unwrap_or_else(|error| {
            eprintln!("error: {error}");
            error.code()
        })
        .into()
}

fn start(args: &Args, body: fn(&Step) -> Result<Ended>) -> Result<ExitCode> {
    let (Some(config), Some(run)) = (&args.config, &args.run) else {
        bail!(Usage, "--config and --run are needed");
    };
    run_stage(config, run, &args.sets, args.trace.clone(), body)
}
