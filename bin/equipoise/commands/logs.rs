//! `equipoise logs`: what the ranks wrote, once or as it grows, across attempts.

use super::run_config;
use crate::output;
use crate::runner::stage_dir;
use equipoise_base::{Error, ExitCode, Result};
use equipoise_config::nearest::hint;
use equipoise_rundir::{RealFs, RunDir, StageDir, Vfs};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

/// Show the logs of a stage; of the one that wrote last, if none is named.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    equipoise logs -f runs/quickstart                  follow, from attempt to attempt and stage to stage\n  \
    equipoise logs runs/quickstart --stage train.g --rank 1\n  \
    equipoise logs -f runs/quickstart --rank all       every rank of the newest attempt\n  \
    equipoise logs runs/quickstart --attempt all       all attempts, oldest first\n  \
    equipoise logs runs/quickstart --stage train.g --job   what the batch job printed around the step")]
pub struct Args {
    /// Run directory.
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Go on as the logs grow.
    #[arg(short, long)]
    follow: bool,
    /// Stage.
    #[arg(long)]
    stage: Option<String>,
    /// Rank, or `all`.
    #[arg(long, default_value = "0")]
    rank: Which,
    /// Attempt, `last` or `all`.
    #[arg(long, default_value = "last")]
    attempt: Which,
    /// Task of an array job.
    #[arg(long)]
    task: Option<u64>,
    /// What Slurm collected from the batch script instead.
    #[arg(long)]
    job: bool,
}

/// One of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Last,
    All,
    Number(u64),
}

impl FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "last" => Ok(Which::Last),
            "all" => Ok(Which::All),
            number => {
                number.parse().map(Which::Number).map_err(|_| "expected a number, 'last' or 'all'".into())
            }
        }
    }
}

const POLL: Duration = Duration::from_millis(250);

/// A log file.
#[derive(Clone, Debug)]
struct Log {
    attempt: u64,
    rank: u64,
    path: PathBuf,
    written: SystemTime,
}

/// Shows the logs.
pub fn run(args: &Args) -> Result<ExitCode> {
    run_config(&args.run)?;
    let mut shown: BTreeMap<PathBuf, u64> = BTreeMap::new();
    let mut last: Option<PathBuf> = None;
    loop {
        let logs = chosen(args)?;
        if logs.is_empty() && !args.follow {
            let message = format!("{}: there is no such log yet", args.run.display());
            return Err(
                Error::new(ExitCode::BadData, message).next("equipoise logs --job, or equipoise status")
            );
        }
        // What a file got before a newer one began is not lost.
        let earlier: Vec<PathBuf> =
            shown.keys().filter(|path| !logs.iter().any(|log| log.path == **path)).cloned().collect();
        for path in earlier.into_iter().chain(logs.into_iter().map(|log| log.path)) {
            let offset = shown.get(&path).copied();
            let grown = path.metadata().map_or(0, |data| data.len());
            if offset.is_some_and(|offset| offset >= grown) {
                continue;
            }
            if last.as_ref() != Some(&path) {
                output::line(format!("==> {} <==", path.strip_prefix(&args.run).unwrap_or(&path).display()));
                last = Some(path.clone());
            }
            let end = print_from(&path, offset.unwrap_or(0))?;
            shown.insert(path, end);
        }
        if !args.follow {
            return Ok(ExitCode::Done);
        }
        std::thread::sleep(POLL);
    }
}

/// The logs to show now, in the order of attempts and ranks.
fn chosen(args: &Args) -> Result<Vec<Log>> {
    let run = RunDir::new(&args.run);
    let mut logs = match &args.stage {
        Some(name) => stage_logs(args, &run, name)?,
        None if args.job => job_logs(&run, None),
        None => {
            let stages = run.stages(&RealFs)?;
            let logs = stages.iter().map(|dir| step_logs(args, dir));
            // The stage that wrote last.
            logs.max_by_key(|logs| logs.iter().map(|log| log.written).max()).unwrap_or_default()
        }
    };
    if args.job && args.stage.is_none() {
        // The newest only, unless a stage is named.
        logs.sort_by_key(|log| log.written);
        logs = logs.pop().into_iter().collect();
    }
    logs.sort_by_key(|log| (log.attempt, log.rank));
    Ok(logs)
}

fn stage_logs(args: &Args, run: &RunDir, name: &str) -> Result<Vec<Log>> {
    let logs = if args.job { job_logs(run, Some(name)) } else { step_logs(args, &stage_dir(run, name)?) };
    let names: Vec<String> = run.stages(&RealFs)?.iter().map(|dir| dir.key().to_string()).collect();
    if logs.is_empty() && !names.contains(&name.to_string()) {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let message = format!("no stage '{name}' was begun{}", hint(name, &names));
        return Err(Error::new(ExitCode::Usage, message).next("equipoise logs --job"));
    }
    Ok(logs)
}

/// What the ranks of a stage, or of a task of its array, wrote.
fn step_logs(args: &Args, stage: &StageDir) -> Vec<Log> {
    let folder = args.task.map_or(stage.clone(), |task| stage.task(task)).root().join("logs");
    let mut logs = Vec::new();
    for attempt in list(&folder) {
        let Ok(number) = attempt.parse::<u64>() else { continue };
        if matches!(args.attempt, Which::Number(wanted) if wanted != number) {
            continue;
        }
        for name in list(&folder.join(&attempt)) {
            let rank = name.strip_prefix("rank-").and_then(|name| name.strip_suffix(".log")?.parse().ok());
            let Some(rank) = rank else { continue };
            if matches!(args.rank, Which::Number(wanted) if wanted != rank) {
                continue;
            }
            let path = folder.join(&attempt).join(&name);
            let written = path.metadata().and_then(|data| data.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            logs.push(Log { attempt: number, rank, path, written });
        }
    }
    if args.attempt == Which::Last {
        let newest = logs.iter().map(|log| log.attempt).max();
        logs.retain(|log| Some(log.attempt) == newest);
    }
    logs
}

/// What Slurm collected: `<stage>.log`, `<stage>.<task>.log`.
fn job_logs(run: &RunDir, stage: Option<&str>) -> Vec<Log> {
    let of_stage = |name: &str| {
        let rest = stage.map_or(Some(""), |stage| name.strip_prefix(stage));
        rest.is_some_and(|rest| {
            let task = rest.strip_prefix('.').unwrap_or(rest);
            stage.is_none() || task.bytes().all(|byte| byte.is_ascii_digit())
        })
    };
    let log = |name: String| {
        let stem = name.strip_suffix(".log")?;
        let path = run.slurm().join(&name);
        let written = path.metadata().and_then(|data| data.modified()).ok()?;
        of_stage(stem).then_some(Log { attempt: 0, rank: 0, path, written })
    };
    list(&run.slurm()).into_iter().filter_map(log).collect()
}

/// Names in a folder; none if there is no such folder.
fn list(dir: &Path) -> Vec<String> {
    let entries = RealFs.list_if_exists(dir).unwrap_or_default();
    entries.into_iter().map(|entry| entry.name).collect()
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
