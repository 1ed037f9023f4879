//! `cargo xtask fuzz`: libFuzzer over the targets of `fuzz/`, which take every parser that reads a file or Slurm's text.
//!
//! It needs no nightly compiler: the coverage that libFuzzer follows is a pass of LLVM, and only sanitizers are not stable.

use crate::shell;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What `cargo fuzz` passes to the compiler, without a sanitizer.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// A run that takes longer is a finding, in seconds.
const TIMEOUT: u32 = 20;
/// More memory is a finding, in MiB.
const MEMORY: u32 = 2048;

/// Targets, with files or folders of the repository to begin with.
const TARGETS: [(&str, &[&str]); 11] = [
    ("recipe", &["configs/recipes", "tests/recipes", "configs/site", "configs/default.toml"]),
    ("set_argument", &[]),
    ("slurm", &["crates/slurm/tests/recorded"]),
    ("lists", &["configs/data/fashion-mnist-lt/classes.txt", "configs/classes"]),
    ("archive", &[]),
    ("image", &["crates/data/tests/files", "docs/images"]),
    ("binary_set", &[]),
    ("shard", &["shards/fixtures"]),
    ("run_directory", &["crates/rundir/tests/files/ckpt-v1/step-00000007"]),
    ("weights", &["tests/oracle/clip_text/gelu/model"]),
    ("results", &[]),
];

/// How long, and which.
#[derive(clap::Args)]
pub struct Args {
    /// Only these targets.
    targets: Vec<String>,
    /// Minutes for each target.
    #[arg(long, default_value_t = 5)]
    minutes: u32,
}

/// Builds, runs one target after the other, and prints a line for each.
pub fn run(args: &Args) -> Result<()> {
    if let Some(unknown) = args.targets.iter().find(|name| !TARGETS.iter().any(|(target, _)| target == name))
    {
        let known = TARGETS.map(|(target, _)| target);
        bail!("there is no target {unknown}; there are {}", known.join(", "));
    }
    let target = shell::root().join("target/fuzz");
    build(&target)?;
    let mut found = Vec::new();
    for (name, seeds) in TARGETS {
        if !args.targets.is_empty() && !args.targets.iter().any(|wanted| wanted == name) {
            continue;
        }
        let line = fuzz(&target, name, seeds, args.minutes)?;
        println!("{name:<14} {line}");
        if line.contains("FOUND") {
            found.push(name);
        }
    }
    ensure!(found.is_empty(), "findings in {}: see {}", found.join(", "), target.join("findings").display());
    Ok(())
}

fn build(target: &Path) -> Result<()> {
    let mut cargo = shell::cargo();
    cargo.args(["build", "--release", "--manifest-path", "fuzz/Cargo.toml", "--target", TRIPLE]);
    // The repository's own flags come from .cargo/config.toml, which the variable would hide.
    cargo.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", FLAGS);
    shell::run(cargo.env("CARGO_TARGET_DIR", target).env("OMP_NUM_THREADS", "1"))
}

/// Runs a target; what it did, in one line.
fn fuzz(target: &Path, name: &str, seeds: &[&str], minutes: u32) -> Result<String> {
    let (corpus, findings) = (target.join("corpus").join(name), target.join("findings").join(name));
    for folder in [&corpus, &findings] {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let mut seeds =
        seeds.iter().map(|seed| seed_files(Path::new(seed))).collect::<Result<Vec<_>>>()?.concat();
    seeds.retain(|seed| seed.metadata().is_ok_and(|found| found.len() < 1 << 20));
    for seed in &seeds {
        let name = seed.to_string_lossy().replace('/', "_");
        fs::copy(seed, corpus.join(name)).with_context(|| seed.display().to_string())?;
    }
    let mut command = Command::new(target.join(TRIPLE).join("release").join(name));
    command.arg(&corpus).arg(format!("-artifact_prefix={}/", findings.display()));
    command.arg(format!("-max_total_time={}", minutes * 60));
    command.arg(format!("-timeout={TIMEOUT}")).arg(format!("-rss_limit_mb={MEMORY}"));
    command
        .args(["-print_final_stats=1", "-max_len=65536", "-use_value_profile=1"])
        .env("OMP_NUM_THREADS", "1");
    let output = command.output().with_context(|| format!("cannot start {name}"))?;
    let log = String::from_utf8_lossy(&output.stderr);
    let stat = |key: &str| {
        let line = log.lines().find_map(|line| line.strip_prefix(&format!("stat::{key}:")));
        line.map_or("?".to_string(), |value| value.trim().to_string())
    };
    let corpus = fs::read_dir(&corpus).map_or(0, Iterator::count);
    let summary = format!(
        "{} executions in {minutes} min, {} a second, corpus {corpus}, peak {} MiB",
        stat("number_of_executed_units"),
        stat("average_exec_per_sec"),
        stat("peak_rss_mb")
    );
    if output.status.success() {
        return Ok(format!("clean: {summary}"));
    }
    let last: Vec<&str> = log.lines().rev().take(40).collect();
    eprintln!("{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
    Ok(format!("FOUND something ({}): {summary}", output.status))
}

/// The files at or directly below a path.
fn seed_files(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_path_buf()]);
    }
    let entries = fs::read_dir(path).with_context(|| path.display().to_string())?;
    Ok(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect())
}
