//! `docs/benchmarks.md`: the newest committed measurement of every benchmark.

use super::results::{self, Measured, describe};
use crate::shell;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Folders of runs, by name: they begin with the date.
pub const RUNS: &str = "benches/runs";
/// The page.
pub const PAGE: &str = "docs/benchmarks.md";

const HEAD: &str = "# Benchmarks

Written by `cargo xtask bench` from the files under `benches/runs/`; do not edit. How it is measured is in
`benches/README.md`: same work on both sides, processes that take turns, medians ± median absolute deviation (number of
turns). A ratio above 1 says that ours is faster. Where a bar is missed, that file says where the time goes.
";

/// The page as the runs on disk say.
///
/// # Errors
/// When a run cannot be read.
pub fn render(runs: &Path) -> Result<String> {
    let mut folders: Vec<PathBuf> = fs::read_dir(runs)
        .with_context(|| runs.display().to_string())?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.join("raw.csv").exists())
        .collect();
    folders.sort();
    // Later runs replace what earlier ones measured; runs on different machines stand apart.
    let mut machines: BTreeMap<String, (Vec<String>, BTreeMap<String, Measured>)> = BTreeMap::new();
    for folder in &folders {
        let (found, machine) = results::read(folder)?;
        let class = format!("{}, {} cores", machine["cpu"].as_str().unwrap_or("?"), machine["cores"]);
        let (sources, newest) = machines.entry(class).or_default();
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        sources.push(format!("- `{name}`: {}", describe(&machine)));
        newest.extend(found);
    }
    let mut page = String::from(HEAD);
    if machines.is_empty() {
        page += "\nNo run is committed yet.\n";
    }
    for (class, (sources, newest)) in &machines {
        let table = results::table(newest.iter().map(|(name, measured)| (name.as_str(), measured)));
        write!(page, "\n## {class}\n\n{table}\n{}\n", sources.join("\n"))?;
    }
    Ok(page)
}

/// Writes the page.
///
/// # Errors
/// As [`render`].
pub fn write() -> Result<()> {
    shell::write(Path::new(PAGE), &render(Path::new(RUNS))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who commits a run commits the page too.
    #[test]
    fn the_page_says_what_the_runs_say() {
        let root = crate::shell::root();
        let committed = fs::read_to_string(root.join(PAGE)).unwrap();
        assert_eq!(committed, render(&root.join(RUNS)).unwrap(), "run `cargo xtask bench --docs`");
    }
}
