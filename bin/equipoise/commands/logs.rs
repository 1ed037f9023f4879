//! `equipoise logs`: what a rank wrote, once or as it grows.

use super::run_config;
use crate::output;
use crate::runner::stage_dir;
use equipoise_base::{Error, ExitCode, Result};
use equipoise_config::nearest::hint;
use equipoise_rundir::{RealFs, RunDir};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Show the log of a stage; of the one that wrote last, if none is named.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    equipoise logs -f runs/quickstart                  follow, from stage to stage\n  \
    equipoise logs runs/quickstart --stage train.g --rank 1")]
pub struct Args {
    /// Run directory.
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Go on as the log grows.
    #[arg(short, long)]
    follow: bool,
    /// Stage.
    #[arg(long)]
    stage: Option<String>,
    /// Rank.
    #[arg(long, default_value_t = 0)]
    rank: usize,
}

const POLL: Duration = Duration::from_millis(250);

/// Shows the log.
pub fn run(args: &Args) -> Result<ExitCode> {
    run_config(&args.run)?;
    let mut shown: Option<(PathBuf, u64)> = None;
    loop {
        let newest = newest_log(args)?;
        if let Some(path) = newest.filter(|path| shown.as_ref().is_none_or(|(old, _)| old != path)) {
            if let Some((old, offset)) = &shown {
                print_from(old, *offset)?;
            }
            output::line(format!("==> {} <==", path.strip_prefix(&args.run).unwrap_or(&path).display()));
            shown = Some((path, 0));
        }
        match &mut shown {
            Some((path, offset)) => *offset = print_from(path, *offset)?,
            None if !args.follow => {
                let message = format!("{}: there is no log of rank {} yet", args.run.display(), args.rank);
                return Err(Error::new(ExitCode::BadData, message));
            }
            None => {}
        }
        if !args.follow {
            return Ok(ExitCode::Done);
        }
        std::thread::sleep(POLL);
    }
}

/// The log that was written last: of the named stage, or of any.
fn newest_log(args: &Args) -> Result<Option<PathBuf>> {
    let run = RunDir::new(&args.run);
    let begun = run.stages(&RealFs)?;
    if let Some(name) = &args.stage {
        let names: Vec<String> = begun.iter().map(|dir| dir.key().to_string()).collect();
        if !names.contains(name) {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let message = format!("no stage '{name}' was begun{}", hint(name, &names));
            return Err(Error::new(ExitCode::Usage, message));
        }
        return Ok(newest(&stage_dir(&run, name)?.root().join("logs"), args.rank).map(|(_, path)| path));
    }
    let logs = begun.iter().filter_map(|dir| newest(&dir.root().join("logs"), args.rank));
    Ok(logs.max_by_key(|(written, _)| *written).map(|(_, path)| path))
}

/// The log of the newest attempt that has one of this rank, and when it was written.
fn newest(logs: &Path, rank: usize) -> Option<(SystemTime, PathBuf)> {
    let attempts = std::fs::read_dir(logs).into_iter().flatten().flatten();
    let files = attempts.filter_map(|attempt| {
        let number: u64 = attempt.file_name().to_str()?.parse().ok()?;
        let path = attempt.path().join(format!("rank-{rank:04}.log"));
        Some((number, path.metadata().ok()?.modified().ok()?, path))
    });
    files.max_by_key(|(number, ..)| *number).map(|(_, written, path)| (written, path))
}

/// Prints what stands behind `offset`; returns where it ends.
fn print_from(path: &Path, offset: u64) -> Result<u64> {
    let failed = |error| Error::io("read", path, error);
    let mut file = File::open(path).map_err(failed)?;
    file.seek(SeekFrom::Start(offset)).map_err(failed)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(failed)?;
    let mut stdout = std::io::stdout();
    stdout
        .write_all(&bytes)
        .and_then(|()| stdout.flush())
        .map_err(|error| Error::io("print", path, error))?;
    Ok(offset + bytes.len() as u64)
}
