//! The committed record of what the tests of faults came to. A run of some of them replaces what it measured again; the
//! rest stays, since the slow tests and the soak take hours.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// How a test, or a command that shows a fault, has ended.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Outcome {
    /// Whether it passed.
    pub passed: bool,
    /// Where it ran.
    pub host: String,
    /// What it measured, in its order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub figures: Vec<Figure>,
}

/// A figure: the fault's number, what was measured, its value.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Figure(pub String, pub String, pub String);

/// Outcomes by test (`BINARY TEST`) or command.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Record(BTreeMap<String, Outcome>);

impl Record {
    /// Reads the record.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }

    /// Writes it.
    pub fn write(&self, path: &Path) -> Result<()> {
        crate::shell::write(path, serde_json::to_string_pretty(self)? + "\n")
    }

    /// Takes up a run: whether each test passed, and the lines that [`equipoise_testkit::figure`] left.
    pub fn take(&mut self, passed: &BTreeMap<String, bool>, figures: &str, host: &str) -> Result<()> {
        let outcome = |passed| Outcome { passed, host: host.into(), figures: Vec::new() };
        let mut run: BTreeMap<String, Outcome> =
            passed.iter().map(|(test, passed)| (test.clone(), outcome(*passed))).collect();
        for line in figures.lines() {
            let [test, fault, what, value] = line.split('\t').collect::<Vec<_>>()[..] else {
                bail!("{line:?} is no figure");
            };
            // The figures of a run that was cut short have no outcomes.
            let Some(outcome) = run.get_mut(test) else { continue };
            // A test that failed and passed at its second try has left them twice.
            outcome.figures.retain(|Figure(other, name, _)| (other.as_str(), name.as_str()) != (fault, what));
            outcome.figures.push(Figure(fault.into(), what.into(), value.into()));
        }
        self.0.append(&mut run);
        Ok(())
    }

    /// Takes up one outcome.
    pub fn insert(&mut self, name: String, outcome: Outcome) {
        self.0.insert(name, outcome);
    }

    /// Forgets whatever is not among these.
    pub fn retain(&mut self, names: &BTreeSet<&str>) {
        self.0.retain(|name, _| names.contains(name.as_str()));
    }

    /// How this test or command ended, if it ever ran.
    pub fn get(&self, name: &str) -> Option<&Outcome> {
        self.0.get(name)
    }

    /// What was measured of a fault, and its value.
    pub fn figures(&self, fault: &str) -> impl Iterator<Item = (&str, &str)> {
        let figures = self.0.values().flat_map(|outcome| &outcome.figures);
        figures.filter_map(move |Figure(of, what, value)| {
            (of == fault).then_some((what.as_str(), value.as_str()))
        })
    }

    /// The machines that it was measured on.
    pub fn hosts(&self) -> BTreeSet<&str> {
        self.0.values().map(|outcome| outcome.host.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ran_again_replaces_what_was_known_and_the_rest_stays() {
        let mut record = Record::default();
        let both = [("p x".to_string(), true), ("p y".to_string(), true)].into();
        record.take(&both, "p x\tF3\tpoints\t400\np y\tF3\tsyncs\t7\n", "a machine").unwrap();
        let lines = "p x\tF3\tpoints\t1\np x\tF3\tpoints\t412\np z\tF3\tgone\t1\n";
        record.take(&[("p x".to_string(), false)].into(), lines, "another").unwrap();
        assert_eq!(Vec::from_iter(record.figures("F3")), [("points", "412"), ("syncs", "7")]);
        assert!(!record.get("p x").unwrap().passed && record.get("p y").unwrap().passed);
        assert_eq!(Vec::from_iter(record.hosts()), ["a machine", "another"]);
        record.retain(&["p x"].into());
        assert!(record.get("p y").is_none());
        assert!(record.take(&both, "p x\tF3\tpoints\n", "a machine").is_err());
    }
}
