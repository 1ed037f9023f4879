//! The command line of every step binary.

use crate::step::{Step, rehearse_stage, run_stage};
use crate::training::Ended;
use crate::{facts, hello, schema};
use clap::Parser;
use equipoise_base::{ExitCode, Result, bail};
use equipoise_config::BUILD_ID;
use std::path::PathBuf;

#[derive(Debug, Parser)]
#[command(about = "A step of an Equipoise run; `equipoise run` and the batch scripts start it", version = BUILD_ID)]
struct Args {
    /// Resolved configuration of the run.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["print_schema", "build_id", "facts", "hello"])]
    config: Option<PathBuf>,
    /// Run directory.
    #[arg(long, value_name = "DIR", required_unless_present_any = ["print_schema", "build_id", "facts", "hello"])]
    run: Option<PathBuf>,
    /// Settings on top of the configuration; `stage=NAME` says which stage.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Work for a few seconds only, commit nothing, and write to this file how fast it was.
    #[arg(long, hide = true, value_name = "FILE")]
    rehearse: Option<PathBuf>,
    /// For about so long.
    #[arg(long, hide = true, value_name = "SECONDS", default_value_t = 5.0)]
    rehearse_seconds: f64,
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
    /// Greet the other ranks, look at this machine and at DIR, and print what was found, as JSON.
    #[arg(long, hide = true, value_name = "DIR")]
    hello: Option<PathBuf>,
    /// With --hello: the node's own disk, as `slurm.scratch` names it.
    #[arg(long, hide = true, value_name = "DIR", requires = "hello")]
    scratch: Option<String>,
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
    let done = |()| ExitCode::Done;
    let result = match &args.hello {
        Some(root) => hello::print(root, args.scratch.as_deref()).map(done),
        None if args.print_schema => schema::print().map(done),
        None if args.facts => facts::print().map(done),
        None => start(&args, body),
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
    match &args.rehearse {
        Some(file) => rehearse_stage(config, run, &args.sets, body, (file, args.rehearse_seconds)),
        None => run_stage(config, run, &args.sets, args.trace.clone(), body),
    }
}
