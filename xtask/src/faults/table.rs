//! The list of faults, and the table that results make of it.

use super::record::Record;
#[cfg(test)]
use anyhow::ensure;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::path::Path;

/// One fault.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// What is done.
    fault: String,
    /// What must hold.
    bar: String,
    /// Its tests, as `BINARY TEST`.
    #[serde(default)]
    tests: Vec<String>,
    /// Those of its tests that are ignored, because they take minutes.
    #[serde(default)]
    slow: Vec<String>,
    /// What shows it instead of tests: a command that leaves figures.
    by: Option<String>,
    /// What of the bar no test shows.
    lacks: Option<String>,
}

impl Fault {
    /// Its tests, or its slow ones.
    pub fn tests(&self, slow: bool) -> impl Iterator<Item = &str> {
        if slow { &self.slow } else { &self.tests }.iter().map(String::as_str)
    }

    /// Both.
    fn all_tests(&self) -> impl Iterator<Item = &str> {
        self.tests(false).chain(self.tests(true))
    }
}

/// All faults by number.
pub struct Faults(BTreeMap<String, Fault>);

impl Faults {
    /// Reads the list.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        toml::from_str(&text).map(Self).with_context(|| path.display().to_string())
    }

    /// The named faults, all if none is named, in the order of their numbers.
    pub fn select(&self, named: &[String]) -> Result<Vec<(String, &Fault)>> {
        if let Some(unknown) = named.iter().find(|name| !self.0.contains_key(*name)) {
            bail!("there is no fault {unknown}");
        }
        let wanted = |number: &String| named.is_empty() || named.contains(number);
        let mut selected: Vec<(String, &Fault)> = self
            .0
            .iter()
            .filter(|(number, _)| wanted(number))
            .map(|(number, fault)| (number.clone(), fault))
            .collect();
        selected.sort_by_key(|(number, _)| number[1..].parse::<u32>().unwrap_or(u32::MAX));
        Ok(selected)
    }

    /// Every test of the list.
    pub fn tests(&self) -> impl Iterator<Item = &str> {
        self.0.values().flat_map(Fault::all_tests)
    }

    /// Everything that shows a fault: the tests, and the commands.
    pub fn proofs(&self) -> BTreeSet<&str> {
        self.tests().chain(self.0.values().filter_map(|fault| fault.by.as_deref())).collect()
    }

    /// The command that shows this fault.
    pub fn command(&self, number: &str) -> Option<&str> {
        self.0.get(number)?.by.as_deref()
    }

    /// Every number.
    #[cfg(test)]
    pub fn numbers(&self) -> impl Iterator<Item = String> {
        self.0.keys().cloned()
    }

    /// Each fault has tests, or a command that shows it.
    #[cfg(test)]
    pub fn require_proof(&self) -> Result<()> {
        for (number, fault) in &self.0 {
            ensure!(fault.all_tests().next().is_none() == fault.by.is_some(), "{number}: tests or a command");
        }
        Ok(())
    }
}

/// How the tests of a fault ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Pass,
    Fail(Vec<String>),
    NotRun(String),
}

/// A line of the table.
pub struct Row {
    /// Such as F3.
    pub number: String,
    fault: String,
    bar: String,
    measured: String,
    lacks: Option<String>,
    verdict: Verdict,
}

impl Row {
    /// The line of a fault after what is on record.
    pub fn new(number: &str, fault: &Fault, record: &Record) -> Self {
        let tests: Vec<&str> = fault.all_tests().collect();
        let ran: Vec<(&str, bool)> =
            tests.iter().filter_map(|test| Some((*test, record.get(test)?.passed))).collect();
        let failed: Vec<String> =
            ran.iter().filter(|(_, passed)| !passed).map(|(test, _)| test.to_string()).collect();
        let verdict = match &fault.by {
            Some(command) => match record.get(command) {
                None => Verdict::NotRun(command.clone()),
                Some(outcome) if outcome.passed => Verdict::Pass,
                Some(_) => Verdict::Fail(vec![command.clone()]),
            },
            None if !failed.is_empty() => Verdict::Fail(failed),
            None if ran.is_empty() => Verdict::NotRun("its tests were left out".into()),
            None => Verdict::Pass,
        };
        let mut measured = match (ran.len(), tests.len()) {
            (_, 0) => fault.by.iter().map(|command| format!("`{command}`")).collect(),
            (1, 1) => vec!["1 test".to_string()],
            (ran, all) if ran == all => vec![format!("{all} tests")],
            (ran, all) => vec![format!("{ran} of {all} tests")],
        };
        measured.extend(record.figures(number).map(|(what, value)| format!("{what}: {value}")));
        Self {
            number: number.into(),
            fault: fault.fault.clone(),
            bar: fault.bar.clone(),
            measured: measured.join("; "),
            lacks: fault.lacks.clone(),
            verdict,
        }
    }

    /// Whether a test failed.
    pub fn has_failed(&self) -> bool {
        matches!(self.verdict, Verdict::Fail(_))
    }

    fn verdict(&self) -> String {
        let lacks = self.lacks.iter().map(|lacks| format!("; not shown: {lacks}")).collect::<String>();
        match &self.verdict {
            Verdict::Pass => format!("pass{lacks}"),
            Verdict::Fail(tests) => format!("FAIL: {}", tests.join(", ")),
            Verdict::NotRun(reason) => format!("not run: {reason}"),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, fault, bar, measured, .. } = self;
        write!(f, "{number:<4} {} | {fault} | bar: {bar} | {measured}", self.verdict())
    }
}

/// The table as a page.
pub fn page(rows: &[Row], hosts: &[&str]) -> String {
    let mut page = format!(
        "# Faults\n\nWhat is done to Equipoise, what must hold, and what was measured. Written by `cargo xtask faults`\n\
         from the list in `tests/faults.toml` and the record in `{}`; do not edit.\n\n\
         Measured on: {}\n\n| | what is done | bar | measured | verdict |\n|---|---|---|---|---|\n",
        super::RECORD,
        hosts.join("; ")
    );
    for row in rows {
        let cells = [&row.number, &row.fault, &row.bar, &row.measured, &row.verdict()];
        let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(page, "| {} |", cells.join(" | "));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(results: &[(&str, bool)]) -> Row {
        let fault = Fault {
            fault: "a | b".into(),
            bar: "holds".into(),
            tests: vec!["p x".into()],
            slow: vec!["p y".into()],
            by: None,
            lacks: None,
        };
        let results = results.iter().map(|(name, passed)| (name.to_string(), *passed)).collect();
        let mut record = Record::default();
        record.take(&results, "p x\tF3\tpoints\t412\n", "a machine").unwrap();
        Row::new("F3", &fault, &record)
    }

    #[test]
    fn a_row_passes_fails_or_was_not_run() {
        let passed = row(&[("p x", true), ("p y", true), ("p z", false)]);
        assert_eq!(passed.to_string(), "F3   pass | a | b | bar: holds | 2 tests; points: 412");
        assert_eq!(row(&[("p x", true)]).measured, "1 of 2 tests; points: 412");
        let failed = row(&[("p x", true), ("p y", false)]);
        assert!(failed.has_failed() && failed.verdict() == "FAIL: p y");
        assert_eq!(row(&[]).verdict(), "not run: its tests were left out");
        let soak = Fault {
            fault: "soak".into(),
            bar: "holds".into(),
            tests: vec![],
            slow: vec![],
            by: Some("soak".into()),
            lacks: None,
        };
        let mut record = Record::default();
        assert_eq!(Row::new("F34", &soak, &record).verdict(), "not run: soak");
        record.take(&[("soak".into(), true)].into(), "soak\tF34\tgoodput\t83 %\n", "a machine").unwrap();
        let soaked = Row::new("F34", &soak, &record);
        assert_eq!((soaked.verdict(), &*soaked.measured), ("pass".into(), "`soak`; goodput: 83 %"));
        let page = page(&[passed], &["a machine"]);
        assert!(page.ends_with("| F3 | a \\| b | holds | 2 tests; points: 412 | pass |\n"), "{page}");
    }
}
