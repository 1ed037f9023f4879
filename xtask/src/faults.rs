//! `cargo xtask faults`: the fault list of `tests/faults.toml`, run, with a line for each fault and what was measured.

mod junit;
mod record;
mod table;

use crate::{host, shell, test};
use anyhow::{Context, Result, bail, ensure};
use equipoise_testkit::figures;
use record::{Figure, Outcome, Record};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use table::{Fault, Faults, Row};

/// The list.
const LIST: &str = "tests/faults.toml";
/// The table, for people.
const PAGE: &str = "docs/faults.md";
/// Where nextest's `[profile.default.junit]` goes.
const JUNIT: &str = "target/nextest/default/junit.xml";
/// What has been measured, over all runs and machines.
const RECORD: &str = "docs/records/faults.json";
/// What the tests of the last run have measured.
const FIGURES: &str = "target/figures.tsv";
/// The binary whose tests boot a cluster.
const CLUSTER: &str = "equipoise::cluster";

/// Which faults, and whether to run anything.
#[derive(clap::Args)]
pub struct Args {
    /// Only these, such as F3; the others keep what is on record.
    faults: Vec<String>,
    /// Run no test: take up what the last `cargo xtask test` has left.
    #[arg(long)]
    last: bool,
    /// Leave out tests that boot a Slurm cluster, which take many minutes.
    #[arg(long)]
    no_cluster: bool,
    /// Only the tests that take minutes each, half an hour in all.
    #[arg(long)]
    slow: bool,
}

/// Makes ready for a run of tests; where they leave their figures.
pub fn begin() -> Result<PathBuf> {
    let figures = shell::root().join(FIGURES);
    shell::write(&figures, "")?;
    let _ = fs::remove_file(shell::root().join(JUNIT));
    Ok(figures)
}

/// Runs the tests, takes up what they have left, prints the table, writes the page.
pub fn run(args: &Args) -> Result<()> {
    let list = Faults::read(Path::new(LIST))?;
    let selected = list.select(&args.faults)?;
    if !args.last {
        run_tests(&list, &selected, args)?;
    }
    let passed = junit::read(Path::new(JUNIT)).context("no test was run")?;
    let figures = fs::read_to_string(FIGURES).context(FIGURES)?;
    let record = update(&list, |record| record.take(&passed, &figures, &host::describe()))?;
    let rows: Vec<Row> = selected.iter().map(|(number, fault)| Row::new(number, fault, &record)).collect();
    rows.iter().for_each(|row| println!("{row}"));
    println!("{PAGE} written");
    let failed: Vec<&str> =
        rows.iter().filter(|row| row.has_failed()).map(|row| row.number.as_str()).collect();
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// Takes up what the command that shows a fault has measured.
pub fn note(fault: &str, passed: bool, figures: &[(String, String)]) -> Result<()> {
    let list = Faults::read(Path::new(LIST))?;
    let command = list.command(fault).with_context(|| format!("no command shows {fault}"))?;
    let figures =
        figures.iter().map(|(what, value)| Figure(fault.into(), what.clone(), value.clone())).collect();
    update(&list, |record| {
        record.insert(command.into(), Outcome { passed, host: host::describe(), figures });
        Ok(())
    })?;
    Ok(())
}

/// Changes the record, and writes it and the page.
fn update(list: &Faults, change: impl FnOnce(&mut Record) -> Result<()>) -> Result<Record> {
    let mut record = Record::read(Path::new(RECORD))?;
    change(&mut record)?;
    record.retain(&list.proofs());
    record.write(Path::new(RECORD))?;
    let all = list.select(&[])?;
    let rows: Vec<Row> = all.iter().map(|(number, fault)| Row::new(number, fault, &record)).collect();
    shell::write(Path::new(PAGE), table::page(&rows, &Vec::from_iter(record.hosts())))?;
    Ok(record)
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
    let mut runner = shell::cargo();
    runner.args(["nextest", "run", "--workspace", "--no-fail-fast", "-E", &expression]);
    if args.slow {
        runner.args(["--run-ignored", "ignored-only"]);
    }
    runner.env("OMP_NUM_THREADS", "1").env("RAYON_NUM_THREADS", "1").env(figures::VARIABLE, begin()?);
    // What failed is in the table.
    let status = runner.status().context("cargo nextest run: is cargo-nextest installed?")?;
    ensure!(Path::new(JUNIT).exists(), "no test was run ({status})");
    Ok(())
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
