//! A run's files, `raw.csv` and `sides.jsonl`, and the tables that are made of them, and of nothing else.

use super::cases::{Bar, CASES, Case};
use crate::shell;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// Our side in the files.
pub const OURS: &str = "equipoise";

/// One benchmark's turns and last lines, by side.
#[derive(Debug, Default)]
pub struct Measured {
    /// Seconds of each turn.
    pub seconds: BTreeMap<String, Vec<f64>>,
    /// What each side said of itself.
    pub lines: BTreeMap<String, Value>,
}

/// The benchmarks of a run by name.
pub type Results = BTreeMap<String, Measured>;

/// Writes a run's files.
///
/// # Errors
/// When they cannot be written.
pub fn write(folder: &Path, results: &Results, machine: &Value) -> Result<()> {
    let (mut raw, mut sides) = (String::from("bench,side,turn,seconds\n"), String::new());
    for (bench, measured) in results {
        for (side, seconds) in &measured.seconds {
            for (turn, seconds) in seconds.iter().enumerate() {
                writeln!(raw, "{bench},\"{side}\",{turn},{seconds:.6}")?;
            }
        }
        for (side, line) in &measured.lines {
            writeln!(sides, "{}", json!({ "name": bench, "side": side, "line": line }))?;
        }
    }
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    shell::write(&folder.join("raw.csv"), &raw)?;
    shell::write(&folder.join("sides.jsonl"), &sides)?;
    shell::write(&folder.join("machine.json"), format!("{machine:#}\n"))?;
    shell::write(&folder.join("README.md"), page(results, machine))
}

/// Reads a run's files.
///
/// # Errors
/// When one is missing or is something else.
pub fn read(folder: &Path) -> Result<(Results, Value)> {
    let text = |name: &str| {
        fs::read_to_string(folder.join(name)).with_context(|| format!("{}/{name}", folder.display()))
    };
    let mut results = Results::new();
    for line in text("raw.csv")?.lines().skip(1) {
        let fields = line.split_once(",\"").and_then(|(bench, rest)| {
            let (side, rest) = rest.split_once("\",")?;
            Some((bench, side, rest.split_once(',')?.1.parse().ok()?))
        });
        let (bench, side, seconds) = fields.with_context(|| format!("raw.csv: {line}"))?;
        results.entry(bench.into()).or_default().seconds.entry(side.into()).or_default().push(seconds);
    }
    for line in text("sides.jsonl")?.lines() {
        let value: Value = serde_json::from_str(line).context("sides.jsonl")?;
        let word = |key: &str| value[key].as_str().unwrap_or_default().to_string();
        results.entry(word("name")).or_default().lines.insert(word("side"), value["line"].clone());
    }
    Ok((results, serde_json::from_str(&text("machine.json")?)?))
}

/// The page of one run.
fn page(results: &Results, machine: &Value) -> String {
    let mut page =
        format!("# Benchmarks, {}\n\n{}\n\n", machine["date"].as_str().unwrap_or("?"), describe(machine));
    page += &table(results.iter().map(|(name, measured)| (name.as_str(), measured)));
    page + "\nTurns are in `raw.csv`, what each side said of itself (settings, differences, profiles) in `sides.jsonl`.\n"
}

/// Machine and versions in a sentence or two.
pub fn describe(machine: &Value) -> String {
    let word = |key: &str| machine[key].as_str().unwrap_or("?").to_string();
    let number = |key: &str| machine[key].as_f64().unwrap_or(f64::NAN);
    format!(
        "{}, {} cores; both sides with one thread; libtorch and PyTorch {}; commit {}. Load average of the machine \
         before the first turn: {:.2}.",
        word("cpu"),
        number("cores"),
        word("torch"),
        word("commit"),
        number("load")
    )
}

/// A row for each benchmark: medians, spread, ratio and bar.
pub fn table<'a>(results: impl Iterator<Item = (&'a str, &'a Measured)>) -> String {
    let mut table = String::from(
        "| benchmark | what | ours, ms | peer, ms | peer | ratio | bar | |\n|---|---|---|---|---|---|---|---|\n",
    );
    let mut rows: Vec<(usize, String)> = Vec::new();
    for (name, measured) in results {
        let Some(at) = CASES.iter().position(|case| case.name == name) else { continue };
        rows.extend(row(&CASES[at], measured).map(|row| (at, row)));
    }
    rows.sort();
    rows.into_iter().for_each(|(_, row)| table += &row);
    table
}

fn row(case: &Case, measured: &Measured) -> Option<String> {
    let ours = measured.seconds.get(OURS)?;
    let peers = measured.seconds.iter().filter(|(side, _)| *side != OURS);
    let peer = peers.min_by(|a, b| median(a.1).total_cmp(&median(b.1)));
    let ratio = peer.map(|(_, seconds)| median(seconds) / median(ours));
    let number = |key: &str| measured.lines.get(OURS).and_then(|line| line[key].as_f64());
    let (bar, met) = match case.bar {
        Bar::Ratio(least) => (format!("≥ {least:.2}x"), ratio.is_some_and(|ratio| ratio >= least)),
        Bar::Seconds(most) => (format!("≤ {:.0} ms", 1e3 * most), median(ours) <= most),
        Bar::Number(key, most, of) => {
            let value = number(key);
            let shown = value.map_or("?".into(), |value| format!("{:.2} %", 100. * value));
            (format!("{shown} {of}, ≤ {:.0} %", 100. * most), value.is_some_and(|value| value <= most))
        }
    };
    let (name, about) = (case.name, case.about);
    let (theirs, label) = peer.map_or(("".into(), ""), |(label, seconds)| (show(seconds), label.as_str()));
    let ratio = ratio.map_or(String::new(), |ratio| format!("**{ratio:.2}x**"));
    let verdict = if met { "met" } else { "**missed**" };
    Some(format!(
        "| {name} | {about} | {} | {theirs} | {label} | {ratio} | {bar} | {verdict} |\n",
        show(ours)
    ))
}

/// Median and median absolute deviation in milliseconds.
fn show(seconds: &[f64]) -> String {
    let middle = median(seconds);
    let deviations: Vec<f64> = seconds.iter().map(|second| (second - middle).abs()).collect();
    let digits = if middle < 0.1 { 2 } else { 0 };
    format!("{:.digits$} ± {:.digits$} ({})", 1e3 * middle, 1e3 * median(&deviations), seconds.len())
}

/// The middle of some numbers; NaN of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (middle, odd) = (sorted.len() / 2, sorted.len() % 2 == 1);
    match (sorted.get(middle), middle.checked_sub(1).and_then(|below| sorted.get(below))) {
        (Some(middle), _) if odd => *middle,
        (Some(middle), Some(below)) => (below + middle) / 2.,
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(ours: &[f64], peers: &[(&str, &[f64])], line: Value) -> Measured {
        let peers = peers.iter().map(|(side, seconds)| (side.to_string(), seconds.to_vec()));
        let seconds = std::iter::once((OURS.to_string(), ours.to_vec())).chain(peers).collect();
        Measured { seconds, lines: [(OURS.to_string(), line)].into() }
    }

    #[test]
    fn files_come_back_and_the_fastest_peer_counts() {
        let folder = tempfile::tempdir().unwrap();
        let peers: [(&str, &[f64]); 2] = [("0 workers", &[3., 3., 4.]), ("1 worker, more", &[2., 9., 1.])];
        let results: Results =
            [("end-to-end-memory".into(), measured(&[1., 1., 1.5], &peers, json!({ "loss": 2. })))].into();
        let machine = json!({ "date": "2026-01-02", "cpu": "some CPU", "cores": 2, "load": 0.1 });
        write(folder.path(), &results, &machine).unwrap();
        let (read, again) = read(folder.path()).unwrap();
        assert_eq!((&again, format!("{read:?}")), (&machine, format!("{results:?}")));
        let table = table(read.iter().map(|(name, measured)| (name.as_str(), measured)));
        let row = table.lines().nth(2).unwrap();
        assert!(row.contains("| 1 worker, more | **2.00x** | ≥ 1.30x | met |"), "{row}");
    }

    #[test]
    fn bars_can_be_missed() {
        let slow = |name: &str, measured| table(std::iter::once((name, &measured))).contains("**missed**");
        assert!(slow("fid", measured(&[1.], &[("pytorch-fid", &[4.9])], json!({}))));
        assert!(!slow("fid", measured(&[1.], &[("pytorch-fid", &[5.1])], json!({}))));
        assert!(slow("front-end-help", measured(&[0.021], &[], json!({}))));
        assert!(slow("checkpoint-stall", measured(&[1.], &[], json!({ "share": 0.011 }))));
        assert!(slow("checkpoint-stall", measured(&[1.], &[], json!({}))), "nothing measured is not met");
    }

    #[test]
    fn medians() {
        assert_eq!((median(&[3., 1., 2.]), median(&[4., 1., 2., 3.])), (2., 2.5));
        assert!(median(&[]).is_nan());
    }
}
