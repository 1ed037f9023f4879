//! `equipoise cancel`: ask a run to stop, and wait until it has.

use super::run_config;
use crate::jobs;
use crate::output;
use crate::runner::{launcher_of, shell_word};
use equipoise_base::{Error, ExitCode, Result};
use equipoise_rundir::{Process, RunDir};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Stop a run, here or on the cluster; finished work is committed first.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    equipoise cancel runs/quickstart\n  \
    equipoise cancel runs/quickstart --now   kill; at most one shard per rank is lost")]
pub struct Args {
    /// Run directory.
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Kill instead of waiting for the current batch or step.
    #[arg(long)]
    now: bool,
    /// Seconds to wait for the end.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
}

/// Stops the run.
pub fn run(args: &Args) -> Result<ExitCode> {
    run_config(&args.run)?;
    let run = RunDir::new(&args.run);
    let cancelled = jobs::cancel(&run)?;
    if cancelled > 0 {
        let root = shell_word(&args.run);
        output::line(format!("{cancelled} jobs were cancelled; to go on: equipoise resume {root}"));
    }
    let Some(launcher) = launcher_of(&run)? else {
        if cancelled == 0 {
            output::line("nothing is running there");
        }
        return Ok(ExitCode::Done);
    };
    let here = Process::current();
    if (&launcher.host, &launcher.namespace) != (&here.host, &here.namespace) {
        let message = format!("it runs on host {}, which this one cannot signal", launcher.host);
        let next = format!("ssh {} equipoise cancel {}", launcher.host, shell_word(&args.run));
        return Err(Error::new(ExitCode::Owned, message).next(next));
    }
    signal(&launcher, if args.now { libc::SIGINT } else { libc::SIGTERM })?;
    let start = Instant::now();
    while launcher_of(&run)?.is_some() {
        if args.now {
            // The second one kills; when it comes makes no difference.
            signal(&launcher, libc::SIGINT)?;
        }
        if start.elapsed() > Duration::from_secs(args.timeout) {
            let message =
                format!("process {} was told to stop and has not ended in {} s", launcher.pid, args.timeout);
            let next = format!("equipoise cancel --now {}", shell_word(&args.run));
            return Err(Error::new(ExitCode::Owned, message).next(next));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    output::line(format!("stopped; to go on: equipoise resume {}", shell_word(&args.run)));
    Ok(ExitCode::Done)
}

fn signal(process: &Process, signal: i32) -> Result<()> {
    if Process::current().sees_gone(process) {
        return Ok(());
    }
    // SAFETY: kill has no memory preconditions.
    if unsafe { libc::kill(process.pid as libc::pid_t, signal) } == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ESRCH) => Ok(()),
        _ => Err(Error::new(ExitCode::Io, format!("cannot signal process {}: {error}", process.pid))),
    }
}
