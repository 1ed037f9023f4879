//! `cargo xtask fuzz`: libFuzzer on everything that reads a file or Slurm's text; writes docs/fuzzing.md.
//!
//! The targets are built by a nightly compiler with the coverage that libFuzzer follows. What a run has found worth keeping
//! stays in `target/fuzz/corpus`, so the next one goes on from there. What every run came to is committed, since hours of
//! fuzzing add up over many machines; the page adds up all runs.

// Logs of a build folder, not a run directory.
#![allow(clippy::disallowed_methods)]

use crate::{host, shell};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::mem::MaybeUninit;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// The targets.
const LIST: &str = "fuzz/targets.toml";
/// Where everything goes that is built, found or wrong.
const FOLDER: &str = "target/fuzz";
/// What every run came to, a line each.
const RUNS: &str = "docs/records/fuzzing.jsonl";
/// The table, for people.
const PAGE: &str = "docs/fuzzing.md";
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// What `cargo fuzz` passes, without an address sanitizer: HDF5 and libtorch are not built for it.
const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
/// An input that takes longer, in seconds, or more memory, in MiB, is a finding.
const SLOWEST: u32 = 20;
const MEMORY: u32 = 2048;

/// One entry of the list of targets.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Target {
    /// For the page.
    reads: String,
    /// Folders to begin with.
    seeds: Vec<PathBuf>,
}

/// Which targets, and for how long.
#[derive(clap::Args)]
pub struct Args {
    /// Only these.
    targets: Vec<String>,
    /// Seconds for each target.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Targets at once.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: u16,
    /// Run nothing: write the page of the runs on record.
    #[arg(long, conflicts_with = "targets")]
    page: bool,
}

/// Builds, runs, and writes the page; fails if there is a finding.
pub fn run(args: &Args) -> Result<()> {
    let list: BTreeMap<String, Target> =
        toml::from_str(&fs::read_to_string(LIST).context(LIST)?).context(LIST)?;
    if let Some(unknown) = args.targets.iter().find(|name| !list.contains_key(*name)) {
        bail!("there is no target {unknown}; there are {}", Vec::from_iter(list.into_keys()).join(", "));
    }
    if args.page {
        return write_page(&list);
    }
    build()?;
    let mut waiting: Vec<_> = list
        .iter()
        .filter(|(name, _)| args.targets.is_empty() || args.targets.contains(name))
        .rev()
        .collect();
    let (mut running, mut rows) = (Vec::new(), Vec::new());
    while !(waiting.is_empty() && running.is_empty()) {
        while running.len() < usize::from(args.jobs)
            && let Some((name, target)) = waiting.pop()
        {
            running.push(Fuzzing::start(name, target, args.seconds)?);
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
        for at in (0..running.len()).rev() {
            if let Some(end) = reap(&running[at].child)? {
                let row = running.swap_remove(at).finish(end)?;
                println!("{row}");
                note(&row)?;
                rows.push(row);
            }
        }
    }
    write_page(&list)?;
    let found: Vec<&str> =
        rows.iter().filter(|row| row.finding.is_some()).map(|row| row.name.as_str()).collect();
    ensure!(found.is_empty(), "findings in {}: see {FOLDER}/artifacts", found.join(", "));
    Ok(())
}

fn write_page(list: &BTreeMap<String, Target>) -> Result<()> {
    shell::write(Path::new(PAGE), page(list, &runs()?))?;
    println!("{PAGE} written");
    Ok(())
}

fn build() -> Result<()> {
    let toolchain = ["run", "nightly", "rustc", "--version"];
    ensure!(
        shell::succeeds("rustup", &toolchain),
        "coverage needs a nightly compiler: rustup toolchain install nightly"
    );
    let mut build = Command::new("rustup");
    build.args([
        "run",
        "nightly",
        "cargo",
        "build",
        "--package",
        "equipoise-fuzz",
        "--features",
        "libfuzzer",
    ]);
    // A target of its own keeps the coverage out of build scripts.
    build.args(["--profile", "fuzz", "--target", TRIPLE, "--target-dir", FOLDER]);
    // The variables of the cargo that runs us would win over rustup's choice.
    build.env("RUSTFLAGS", COVERAGE).env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO").env_remove("RUSTC");
    shell::run(&mut build)
}

/// A target at work.
struct Fuzzing {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Fuzzing {
    fn start(name: &str, target: &Target, seconds: u64) -> Result<Self> {
        let folder = |what: &str| -> Result<PathBuf> {
            let path = Path::new(FOLDER).join(what).join(name);
            fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
            Ok(path)
        };
        let (corpus, artifacts) = (folder("corpus")?, folder("artifacts")?);
        let log = Path::new(FOLDER).join(format!("{name}.log"));
        let file = fs::File::create(&log).with_context(|| log.display().to_string())?;
        let mut command = Command::new(Path::new(FOLDER).join(TRIPLE).join("fuzz/equipoise-fuzz"));
        command.env("EQUIPOISE_FUZZ_TARGET", name).arg(corpus).args(&target.seeds);
        command.args([format!("-max_total_time={seconds}"), format!("-timeout={SLOWEST}")]);
        command.args([format!("-rss_limit_mb={MEMORY}"), "-print_final_stats=1".into()]);
        command.arg(format!("-artifact_prefix={}/", artifacts.display()));
        command
            .env("LD_LIBRARY_PATH", ".libtorch/lib")
            .env("OMP_NUM_THREADS", "1")
            .env("RAYON_NUM_THREADS", "1");
        let child = command.stdout(Stdio::null()).stderr(file).spawn();
        let child = child.with_context(|| format!("cannot start the target {name}"))?;
        Ok(Self { name: name.into(), child, log })
    }

    fn finish(self, end: End) -> Result<Row> {
        let text = String::from_utf8_lossy(&fs::read(&self.log)?).into_owned();
        let row = Row { name: self.name, host: host::describe(), seconds: end.seconds, ..Row::of_log(&text) };
        let finding =
            (!end.status.success()).then(|| row.finding.clone().unwrap_or_else(|| end.status.to_string()));
        Ok(Row { finding, ..row })
    }
}

/// How a child ended, and the processor time it took, in seconds: a busy machine lets a fuzzer wait.
struct End {
    status: ExitStatus,
    seconds: u64,
}

/// The end of a child, if it has come.
fn reap(child: &Child) -> Result<Option<End>> {
    let pid = libc::pid_t::try_from(child.id())?;
    let (mut status, mut usage) = (0, MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: both places outlive the call; nothing else waits for this child.
    match unsafe { libc::wait4(pid, &raw mut status, libc::WNOHANG, usage.as_mut_ptr()) } {
        0 => Ok(None),
        ended if ended == pid => {
            // SAFETY: wait4 has filled it in.
            let usage = unsafe { usage.assume_init() };
            let seconds = u64::try_from(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec)?;
            Ok(Some(End { status: ExitStatus::from_raw(status), seconds }))
        }
        _ => Err(std::io::Error::last_os_error()).context("wait4"),
    }
}

/// What a run of a target came to, or several.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Row {
    name: String,
    host: String,
    seconds: u64,
    inputs: u64,
    branches: u64,
    finding: Option<String>,
}

impl Row {
    /// Of what libFuzzer printed.
    fn of_log(text: &str) -> Self {
        let number =
            |text: &str| text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0);
        let after = |key: &str| text.lines().rev().find_map(|line| Some(number(line.split_once(key)?.1)));
        let error =
            text.lines().find(|line| line.contains("ERROR: libFuzzer") || line.contains("panicked at"));
        Self {
            inputs: after("stat::number_of_executed_units:").unwrap_or(0),
            branches: after(" cov: ").unwrap_or(0),
            finding: error.map(str::to_string),
            ..Self::default()
        }
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, seconds, inputs, branches, .. } = self;
        let finding = self.finding.as_deref().unwrap_or("nothing found");
        write!(f, "{name:<14} {seconds:>6} CPU s  {inputs:>10} inputs  {branches:>6} branches  {finding}")
    }
}

/// Appends a finished run to the record.
fn note(row: &Row) -> Result<()> {
    let mut file = fs::OpenOptions::new().create(true).append(true).open(RUNS).context(RUNS)?;
    writeln!(file, "{}", serde_json::to_string(row)?).context(RUNS)
}

/// The record, oldest first.
fn runs() -> Result<Vec<Row>> {
    let text = fs::read_to_string(RUNS).context(RUNS)?;
    text.lines().map(|line| serde_json::from_str(line).context(RUNS)).collect()
}

/// The runs of every target: times and inputs added up, the most branches, the newest finding.
fn total(runs: &[Row]) -> BTreeMap<&str, Row> {
    let mut total: BTreeMap<&str, Row> = BTreeMap::new();
    for row in runs {
        let sum = total.entry(&row.name).or_default();
        *sum = Row {
            seconds: sum.seconds + row.seconds,
            inputs: sum.inputs + row.inputs,
            branches: sum.branches.max(row.branches),
            ..row.clone()
        };
    }
    total
}

fn page(list: &BTreeMap<String, Target>, runs: &[Row]) -> String {
    let hosts = Vec::from_iter(runs.iter().map(|row| row.host.as_str()).collect::<BTreeSet<_>>());
    let mut page = format!(
        "# Fuzzing\n\nEverything that reads a file or Slurm's text, given inputs that libFuzzer makes up. Written by\n\
         `cargo xtask fuzz` from the runs in `{RUNS}`; do not edit. A panic, a crash, {SLOWEST} s or\n\
         {MEMORY} MiB for one input is a finding.\n\n\
         Run on: {}\n\n| target | reads | CPU s | inputs | branches reached | finding |\n|---|---|---|---|---|---|\n",
        hosts.join("; ")
    );
    let total = total(runs);
    for (name, Target { reads, .. }) in list {
        // Writing to a string cannot fail.
        let _ = match total.get(name.as_str()) {
            Some(Row { seconds, inputs, branches, finding, .. }) => {
                let finding = finding.as_deref().unwrap_or("none").replace('|', "\\|");
                writeln!(page, "| {name} | {reads} | {seconds} | {inputs} | {branches} | {finding} |")
            }
            None => writeln!(page, "| {name} | {reads} | 0 | | | not run yet |"),
        };
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_of_libfuzzer_are_understood() {
        let quiet = "#2 INITED cov: 10 ft: 11\n#900 NEW    cov: 57 ft: 80 corp: 3/9b\nDone 1024 runs in 2 second(s)\n\
                     stat::number_of_executed_units: 1024\n";
        let row = Row::of_log(quiet);
        assert_eq!((row.inputs, row.branches, row.finding), (1024, 57, None));
        let row = Row::of_log(
            "thread '<unnamed>' panicked at crates/x.rs:1:2:\n==9== ERROR: libFuzzer: deadly signal\n",
        );
        assert!(row.finding.unwrap().contains("crates/x.rs:1:2"));
    }

    #[test]
    fn runs_of_a_target_add_up_and_a_repaired_finding_goes() {
        let run = |seconds, finding: Option<&str>| Row {
            name: "shard".into(),
            host: "a machine".into(),
            seconds,
            finding: finding.map(str::to_string),
            ..Row::default()
        };
        let target = |reads: &str| Target { reads: reads.into(), seeds: Vec::new() };
        let list = [("shard".into(), target("HDF5")), ("slurm".into(), target("text"))].into();
        let page = page(&list, &[run(20, Some("panicked")), run(3600, None)]);
        assert!(page.contains("| shard | HDF5 | 3620 | 0 | 0 | none |"), "{page}");
        assert!(page.contains("| slurm | text | 0 | | | not run yet |"), "{page}");
    }
}
