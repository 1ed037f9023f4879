//! `equipoise completions`: for the shell.

use clap::CommandFactory;
use clap_complete::Shell;
use equipoise_base::{ExitCode, Result};

/// Print completions for a shell.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    equipoise completions bash > ~/.local/share/bash-completion/completions/equipoise\n  \
    equipoise completions zsh > ~/.zfunc/_equipoise")]
pub struct Args {
    /// Shell.
    shell: Shell,
}

/// Prints them.
pub fn run(args: &Args) -> Result<ExitCode> {
    clap_complete::generate(args.shell, &mut crate::Cli::command(), "equipoise", &mut std::io::stdout());
    Ok(ExitCode::Done)
}
