//! `cargo xtask bench`: ours beside what a user would run instead, interleaved.
//!
//! | file | owns |
//! |---|---|
//! | `cases` | what is measured, against what, and the bar |
//! | `peers` | the Python environment and inputs |
//! | `turns` | processes that take turns |
//! | `results`, `docs` | files of a run, and the tables made of them |

mod cases;
mod docs;
mod peers;
mod results;
mod turns;

use crate::{setup, shell};
use anyhow::{Context, Result, bail};
use cases::{CASES, Case};
use results::{Measured, OURS, Results};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Instant, SystemTime};
use turns::Side;

/// Which benchmarks.
#[derive(clap::Args)]
#[command(after_help = names_help())]
pub struct Args {
    /// Names from the list below, or `all`.
    #[arg(required_unless_present = "docs", value_name = "NAME")]
    names: Vec<String>,
    /// A few turns only, to see that everything runs; the page of results is left alone.
    #[arg(long)]
    quick: bool,
    /// Where the results go [default: benches/runs/<date>-<class of machine>, with --quick target/bench].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Folder of programs that are built already; nothing is built then.
    #[arg(long, value_name = "DIR")]
    bin: Option<PathBuf>,
    /// Only write docs/benchmarks.md again from the runs that are there.
    #[arg(long)]
    docs: bool,
}

fn names_help() -> String {
    let lines = CASES.iter().map(|case| format!("  {:<24} {}", case.name, case.about));
    format!("Benchmarks:\n{}", lines.collect::<Vec<_>>().join("\n"))
}

/// Builds, installs, measures, writes.
pub fn run(args: &Args) -> Result<()> {
    if args.docs {
        return docs::write();
    }
    let cases = chosen(&args.names)?;
    let bin = args.bin.clone().unwrap_or_else(|| PathBuf::from("target/release"));
    if args.bin.is_none() {
        build(&cases)?;
    }
    peers::install()?;
    peers::inputs(&cases, &bin)?;
    let machine = machine()?;
    let folder = match (&args.out, args.quick) {
        (Some(out), _) => out.clone(),
        (None, true) => PathBuf::from("target/bench"),
        (None, false) => free(&format!(
            "{}/{}-{}",
            docs::RUNS,
            machine["date"].as_str().unwrap_or_default(),
            class(&machine)
        )),
    };
    let start = Instant::now();
    let mut results = Results::new();
    let mut failed = Vec::new();
    for case in &cases {
        eprintln!("{:>4.0} s  {}: {}", start.elapsed().as_secs_f64(), case.name, case.about);
        match measure(case, &bin, if args.quick { 1. } else { case.seconds }) {
            Ok(measured) => drop(results.insert(case.name.into(), measured)),
            Err(error) => failed.push(format!("{}: {error:#}", case.name)),
        }
        // After every one, so that a run that is broken off leaves what it has.
        results::write(&folder, &results, &machine)?;
    }
    println!("{}", results::table(results.iter().map(|(name, measured)| (name.as_str(), measured))));
    println!("{:.0} s; results in {}", start.elapsed().as_secs_f64(), folder.display());
    if !args.quick {
        docs::write()?;
    }
    if !failed.is_empty() {
        bail!("not measured:\n  {}", failed.join("\n  "));
    }
    Ok(())
}

fn build(cases: &[&Case]) -> Result<()> {
    setup::run()?;
    let mut build = shell::cargo();
    build.args(["build", "--release", "--package", "equipoise", "--package", "equipoise-bench"]);
    if cases.iter().any(|case| case.ours.contains(&"{run}")) {
        build.args(["--package", "step-generate"]);
    }
    shell::run(&mut build)
}

fn chosen(names: &[String]) -> Result<Vec<&'static Case>> {
    if names.iter().any(|name| name == "all") {
        return Ok(CASES.iter().collect());
    }
    let find = |name: &String| {
        CASES
            .iter()
            .find(|case| case.name == name)
            .with_context(|| format!("no benchmark '{name}'\n{}", names_help()))
    };
    names.iter().map(find).collect()
}

fn measure(case: &Case, bin: &Path, seconds: f64) -> Result<Measured> {
    if case.ours.first() == Some(&"equipoise") {
        let args = peers::fill(&case.ours[1..], case.name);
        let mut command = || {
            let mut command = Command::new(bin.join("equipoise"));
            command.args(&args);
            command
        };
        let seconds = turns::restart(&mut command, seconds)?;
        return Ok(Measured { seconds: [(OURS.to_string(), seconds)].into(), lines: Default::default() });
    }
    let mut ours = Command::new(bin.join("equipoise-bench"));
    // As the ranks of a run are started.
    ours.envs(equipoise_comm::environment::pinned(1, None));
    ours.args(["--device", "cpu"]).args(peers::fill(case.ours, case.name)).arg("--serve");
    // One after the other: the peer starts from what ours has written by the time that it is ready.
    let mut sides = vec![Side::start(OURS, &mut ours)?];
    for peer in case.peers {
        let mut command = peers::python();
        command.arg(format!("benches/peers/{}.py", peer.script)).args(["--device", "cpu", "--serve"]);
        sides.push(Side::start(peer.label, command.args(peers::fill(peer.args, case.name)))?);
    }
    turns::alternate(&mut sides, seconds)?;
    let mut measured = Measured::default();
    for side in sides {
        let (name, seconds, line) = side.finish()?;
        measured.seconds.insert(name.clone(), seconds);
        measured.lines.insert(name, line);
    }
    Ok(measured)
}

/// What the results depend on; nothing that tells which machine it was.
fn machine() -> Result<Value> {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, it)| it.trim()));
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = load.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN);
    let said = |command: &mut Command| -> Result<String> {
        Ok(String::from_utf8_lossy(&command.output()?.stdout).trim().to_string())
    };
    let versions = "import torch, torchvision, diffusers, h5py, PIL; print(torch.__version__, torchvision.__version__, \
                    diffusers.__version__, h5py.__version__, PIL.__version__)";
    let versions = said(peers::python().args(["-c", versions]))?;
    let mut versions = versions.split(' ');
    let mut version = || versions.next().unwrap_or("?").to_string();
    Ok(json!({
        "date": date(),
        "cpu": model.unwrap_or("unknown CPU"),
        "cores": std::thread::available_parallelism()?.get(),
        "load": load,
        "commit": said(Command::new("git").args(["describe", "--always", "--dirty"]))?,
        "torch": version(), "torchvision": version(), "diffusers": version(), "h5py": version(), "pillow": version(),
    }))
}

/// A folder of its own for every run of a day: the page takes of each benchmark the newest.
fn free(folder: &str) -> PathBuf {
    let mut path = PathBuf::from(folder);
    let mut number = 2;
    while path.exists() {
        path = format!("{folder}-{number}").into();
        number += 1;
    }
    path
}

/// The CPU model as part of a folder's name, with the number of cores.
fn class(machine: &Value) -> String {
    let model = machine["cpu"].as_str().unwrap_or_default().to_lowercase();
    let words = model.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let words: Vec<&str> =
        words.filter(|word| !["r", "tm", "cpu", "processor"].contains(word)).take(4).collect();
    format!("{}-{}core", words.join("-"), machine["cores"])
}

/// Today, UTC.
fn date() -> String {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (year, month, day) = civil(seconds / 86_400);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Year, month and day of a number of days since 1970-01-01 (Hinnant's civil_from_days).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + u64::from(month <= 2), month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_classes() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(20_785), (2026, 11, 28));
        assert_eq!(civil(11_016), (2000, 2, 29));
        let machine = json!({ "cpu": "AMD EPYC 9R45 Processor", "cores": 2 });
        assert_eq!(class(&machine), "amd-epyc-9r45-2core");
    }

    #[test]
    fn an_unknown_name_is_told_with_those_that_exist() {
        assert_eq!(chosen(&["all".into()]).unwrap().len(), CASES.len());
        let error = chosen(&["nothing".into()]).err().unwrap().to_string();
        assert!(error.contains("no benchmark 'nothing'") && error.contains("latent-medium"), "{error}");
    }
}
