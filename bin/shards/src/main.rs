//! `equipoise-shards`: checks, shows, makes again and exports generated images; `equipoise shards` becomes it.

mod environment;
mod export;
mod output;
mod regenerate;
mod sets;
mod show;
mod verify;

use clap::{Parser, Subcommand};
use equipoise_base::{ExitCode, Result};
use equipoise_config::BUILD_ID;

/// Check, show, regenerate or export generated images.
#[derive(Debug, Parser)]
#[command(name = "equipoise-shards", bin_name = "equipoise shards", version = BUILD_ID, max_term_width = 110)]
#[command(arg_required_else_help = true)]
#[command(after_help = "Examples:\n  \
    equipoise shards verify runs/quickstart --deep\n  \
    equipoise shards show runs/quickstart --set feedback.k0 > sheet.png\n  \
    equipoise shards regenerate runs/quickstart --failed\n  \
    equipoise shards export imagefolder runs/quickstart out/ --set feedback.k0")]
struct Cli {
    /// Print the build that front end and steps must share.
    #[arg(long, hide = true, exclusive = true)]
    build_id: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Verify(verify::Args),
    Show(show::Args),
    Regenerate(regenerate::Args),
    Export(export::Args),
}

fn main() -> std::process::ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| {
        let _ = error.print();
        std::process::exit(if error.use_stderr() { ExitCode::Usage.status() } else { 0 });
    });
    environment::read_without_locks();
    match run(&cli) {
        Ok(code) => code.into(),
        Err(error) => {
            output::error(&error);
            error.code().into()
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode> {
    match &cli.command {
        Some(Command::Verify(args)) => verify::run(args),
        Some(Command::Show(args)) => show::run(args),
        Some(Command::Regenerate(args)) => regenerate::run(args),
        Some(Command::Export(args)) => export::run(args),
        None => {
            output::line(BUILD_ID);
            Ok(ExitCode::Done)
        }
    }
}
