//! `cargo xtask faults`: the fault list of `tests/faults.toml`, run, with a line for each fault and what was measured.

mod junit;
mod table;

use crate::{shell, test};
use anyhow::{Context, Result, bail, ensure};
use equipoise_testkit::figures;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use table::{Fault, Faults};

/// The list.
const LIST: &str = "tests/faults.toml";
/// The table, for people.
const PAGE: &str = "docs/faults.md";
/// Where nextest's `[profile.default.junit]` goes.
const JUNIT: &str = "target/nextest/default/junit.xml";
/// What the last run of all left, and those of single faults since.
const MAIN: Store = Store { results: "target/fault-results.tsv", figures: "target/figures.tsv" };
/// The same of the slow tests: they take most of an hour, so a run of the others does not take it away.
const SLOW: Store = Store { results: "target/slow-fault-results.tsv", figures: "target/slow-figures.tsv" };
/// The binary whose tests boot a cluster.
const CLUSTER: &str = "equipoise::cluster";

/// Which faults, and whether to run anything.
#[derive(clap::Args)]
pub struct Args {
    /// Only these, such as F3; they join the table of the last run of all.
    faults: Vec<String>,
    /// Run nothing: the table of the last `cargo xtask faults` or `cargo xtask test`.
    #[arg(long)]
    last: bool,
    /// Leave out tests that boot a Slurm cluster, which take many minutes; the table says so.
    #[arg(long)]
    no_cluster: bool,
    /// Only the tests that take minutes each, half an hour in all: they join the table of the last run of the others.
    #[arg(long)]
    slow: bool,
}

/// What tests have left: whether they passed, and what they measured.
struct Store {
    results: &'static str,
    figures: &'static str,
}

impl Store {
    fn figures_file(&self) -> PathBuf {
        shell::root().join(self.figures)
    }

    /// Forgets what is there.
    fn clear(&self) -> Result<()> {
        shell::write(&shell::root().join(self.results), "")?;
        shell::write(&self.figures_file(), "")
    }

    /// Takes up what nextest has left.
    fn take(&self) -> Result<()> {
        let mut kept = self.results()?;
        kept.extend(junit::read(&shell::root().join(JUNIT))?);
        let lines: String = kept.iter().map(|(test, passed)| format!("{test}\t{passed}\n")).collect();
        shell::write(&shell::root().join(self.results), &lines)
    }

    /// `BINARY TEST` to whether it passed.
    fn results(&self) -> Result<BTreeMap<String, bool>> {
        let text = fs::read_to_string(shell::root().join(self.results)).unwrap_or_default();
        let line = |line: &str| {
            let (test, passed) = line.split_once('\t')?;
            Some((test.to_string(), passed.parse().ok()?))
        };
        text.lines().map(|text| line(text).with_context(|| format!("{}: {text:?}", self.results))).collect()
    }
}

/// Makes ready for a run of `all` tests, or of some that join the last of all; where they leave their figures.
pub fn begin(all: bool) -> Result<PathBuf> {
    if all {
        MAIN.clear()?;
    }
    Ok(MAIN.figures_file())
}

/// Keeps the results of such a run for the table.
pub fn end() -> Result<()> {
    MAIN.take()
}

/// The same of the last soak.
pub fn soak_figures_file() -> PathBuf {
    shell::root().join("target/soak-figures.tsv")
}

/// Runs the tests, prints the table, writes the page.
pub fn run(args: &Args) -> Result<()> {
    let list = Faults::read(Path::new(LIST))?;
    let selected = list.select(&args.faults)?;
    if !args.last {
        run_tests(&list, &selected, args)?;
    }
    let mut results = MAIN.results()?;
    results.extend(SLOW.results()?);
    ensure!(!results.is_empty(), "nothing was run yet");
    let figures = read_figures()?;
    let rows = |faults: &[(String, &Fault)]| -> Vec<table::Row> {
        faults.iter().map(|(number, fault)| table::Row::new(number, fault, &results, &figures)).collect()
    };
    shell::write(Path::new(PAGE), table::page(&rows(&list.select(&[])?), &crate::host::describe()))?;
    let rows = rows(&selected);
    rows.iter().for_each(|row| println!("{row}"));
    println!("{PAGE} written");
    let failed: Vec<&str> =
        rows.iter().filter(|row| row.has_failed()).map(|row| row.number.as_str()).collect();
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

fn run_tests(list: &Faults, selected: &[(String, &Fault)], args: &Args) -> Result<()> {
    test::build()?;
    require_known(list)?;
    let tests: BTreeSet<&str> = selected
        .iter()
        .flat_map(|(_, fault)| fault.tests(args.slow))
        .filter(|test| !(args.no_cluster && test.starts_with(CLUSTER)))
        .collect();
    let terms = tests.iter().map(|test| {
        let (binary, name) = test.split_once(' ').unwrap_or((test, ""));
        format!("(binary_id(={binary}) & test(={name}))")
    });
    let expression = terms.collect::<Vec<_>>().join(" | ");
    let store = if args.slow { SLOW } else { MAIN };
    // Figures of tests that have gone would stay for ever.
    if args.faults.is_empty() {
        store.clear()?;
    }
    let _ = fs::remove_file(JUNIT);
    let mut runner = shell::cargo();
    runner.args(["nextest", "run", "--workspace", "--no-fail-fast", "-E", &expression]);
    if args.slow {
        runner.args(["--run-ignored", "ignored-only"]);
    }
    runner
        .env("OMP_NUM_THREADS", "1")
        .env("RAYON_NUM_THREADS", "1")
        .env(figures::VARIABLE, store.figures_file());
    // What failed is in the table.
    let status = runner.status().context("cargo nextest run: is cargo-nextest installed?")?;
    ensure!(Path::new(JUNIT).exists(), "no test was run ({status})");
    store.take()
}

/// Every test of the list exists: a renamed one must not silently leave the table.
pub fn check() -> Result<()> {
    require_known(&Faults::read(Path::new(LIST))?)
}

fn require_known(list: &Faults) -> Result<()> {
    let mut command = shell::cargo();
    let output = command.args(["nextest", "list", "--workspace", "--message-format", "json"]).output()?;
    ensure!(output.status.success(), "cargo nextest list: {}", String::from_utf8_lossy(&output.stderr));
    let listed: Value = serde_json::from_slice(&output.stdout).context("cargo nextest list")?;
    let mut known = BTreeSet::new();
    for (binary, suite) in listed["rust-suites"].as_object().context("no suites")? {
        known.extend(
            suite["testcases"].as_object().into_iter().flatten().map(|(test, _)| format!("{binary} {test}")),
        );
    }
    let unknown: Vec<&str> = list.tests().filter(|test| !known.contains(*test)).collect();
    if !unknown.is_empty() {
        bail!("{LIST} names tests that do not exist:\n  {}", unknown.join("\n  "));
    }
    Ok(())
}

/// Fault to figures; of one that was measured again, the newest.
fn read_figures() -> Result<BTreeMap<String, Vec<(String, String)>>> {
    let files = [MAIN.figures_file(), SLOW.figures_file(), soak_figures_file()];
    let text: String = files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect();
    let mut figures: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for line in text.lines() {
        let [fault, what, value] = line.split('\t').collect::<Vec<_>>()[..] else {
            bail!("{}: {line:?} is no figure", files.map(|file| file.display().to_string()).join(" or "));
        };
        let known = figures.entry(fault.into()).or_default();
        known.retain(|(other, _)| other != what);
        known.push((what.into(), value.into()));
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_complete_and_every_fault_is_shown() {
        let list = Faults::read(&shell::root().join(LIST)).unwrap();
        let numbers: BTreeSet<String> = (1..=34).map(|number| format!("F{number}")).collect();
        assert_eq!(list.numbers().collect::<BTreeSet<_>>(), numbers);
        list.require_proof().unwrap();
    }
}
