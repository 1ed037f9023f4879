//! `equipoise shards verify`: the files of a run's sets against what was recorded when they were committed.

use crate::output::{self, Format, counted};
use crate::sets::{INDEX, Set, class_folder, sets};
use equipoise_base::rng::Key;
use equipoise_base::{Error, ExitCode, Result};
use equipoise_rundir::{RealFs, Vfs};
use equipoise_shards::{Depth, Expect, verify};
use equipoise_stages::{ShardEntry, ShardIndex};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Check every set of a run against its index: files, sizes, checksums, structure.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    equipoise shards verify runs/quickstart\n  \
    equipoise shards verify runs/quickstart --set feedback.k0 --deep\n  \
    equipoise shards verify runs/quickstart --sample 20 --output json\n\n\
    Exits 1 if anything is missing, damaged or too much. `equipoise shards regenerate RUN --failed` makes \
    missing, damaged and failed images again.")]
pub struct Args {
    /// Run directory.
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Only this set; may be repeated.
    #[arg(long = "set", value_name = "NAME.kSEED")]
    sets: Vec<String>,
    /// Also compute the checksum of every image.
    #[arg(long)]
    deep: bool,
    /// Read the contents of this many shards of each set only, always the same ones; all are looked for.
    #[arg(long, value_name = "N")]
    sample: Option<usize>,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

/// What was found in one set.
#[derive(Debug, Serialize)]
pub struct Found {
    set: String,
    /// Shards in the index.
    shards: u64,
    /// Images in intact shards.
    images: u64,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Debug, Serialize)]
pub struct Problem {
    path: PathBuf,
    /// What sort of thing.
    pub kind: Kind,
    problem: String,
}

/// Sorts of problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The index is missing, damaged, or does not list what was planned.
    Index,
    /// A shard is not there.
    Missing,
    /// A shard is not what was committed.
    Damaged,
    /// Some images could not be made.
    Failed,
    /// A file that the index does not list.
    Extra,
}

#[derive(Serialize)]
struct Summary<'a> {
    sets: &'a [Found],
    shards: u64,
    images: u64,
    problems: u64,
}

/// Verifies the sets.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mut found = Vec::new();
    for set in sets(&args.run, &args.sets)? {
        let of_set = check(&set, args.deep, args.sample);
        if args.output == Format::Text {
            for Problem { path, problem, .. } in &of_set.problems {
                output::line(format!("{}: {problem}", path.display()));
            }
        }
        found.push(of_set);
    }
    let total = |count: fn(&Found) -> u64| found.iter().map(count).sum();
    let summary = Summary {
        shards: total(|set| set.shards),
        images: total(|set| set.images),
        problems: total(|set| set.problems.len() as u64),
        sets: &found,
    };
    match args.output {
        Format::Json => output::json(&summary),
        Format::Text => output::line(format!(
            "{}, {} ok / {}",
            counted(summary.shards, "shard"),
            counted(summary.images, "image"),
            counted(summary.problems, "problem")
        )),
    }
    Ok(if summary.problems == 0 { ExitCode::Done } else { ExitCode::CheckFailed })
}

/// Everything that is wrong with a set; never fails itself.
pub fn check(set: &Set, deep: bool, sample: Option<usize>) -> Found {
    let mut found = Found { set: set.name.clone(), shards: 0, images: 0, problems: vec![] };
    let index = match set.index() {
        Ok(index) => index,
        Err(error) => {
            let path = set.folder.join(INDEX);
            let path = if path.exists() { path } else { set.folder.clone() };
            found.problems.push(Problem::of(Kind::Index, path, &error));
            return found;
        }
    };
    found.shards = index.shards.len() as u64;
    let read = sampled(index.shards.len(), sample);
    let checked: Vec<Result<(), Problem>> = index
        .shards
        .par_iter()
        .enumerate()
        .map(|(position, entry)| {
            let depth = read.contains(&position).then_some(if deep { Depth::Deep } else { Depth::Shallow });
            check_shard(set, entry, &index, depth)
        })
        .collect();
    for (entry, result) in index.shards.iter().zip(checked) {
        match result {
            Ok(()) => found.images += entry.images,
            Err(problem) => found.problems.push(problem),
        }
        found.problems.extend(failed(set, entry));
    }
    found.problems.extend(uncovered(set, &index));
    found.problems.extend(extra(set, &index));
    found
}

/// Positions of the shards whose contents are read.
fn sampled(shards: usize, sample: Option<usize>) -> BTreeSet<usize> {
    match sample {
        None => (0..shards).collect(),
        Some(count) => Key::new(0, "verify").stream().permutation(shards).into_iter().take(count).collect(),
    }
}

impl Problem {
    fn new(kind: Kind, path: PathBuf, problem: impl Into<String>) -> Self {
        Self { path, kind, problem: problem.into() }
    }

    /// An error, without the path that it begins with.
    fn of(kind: Kind, path: PathBuf, error: &Error) -> Self {
        let (named, message) = (format!("{}: ", path.display()), error.to_string());
        Self::new(kind, path, message.strip_prefix(&named).unwrap_or(&message))
    }
}

/// One shard, without its contents if `depth` is none.
fn check_shard(
    set: &Set,
    entry: &ShardEntry,
    index: &ShardIndex,
    depth: Option<Depth>,
) -> Result<(), Problem> {
    let path = set.shard(entry).map_err(|error| Problem::of(Kind::Index, set.folder.join(INDEX), &error))?;
    let damaged = |problem: String| Problem::new(Kind::Damaged, path.clone(), problem);
    match RealFs.metadata(&path) {
        Ok(metadata) if metadata.len == entry.bytes => {}
        Ok(metadata) => return Err(damaged(format!("{} bytes instead of {}", metadata.len, entry.bytes))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Problem::new(Kind::Missing, path, "missing"));
        }
        Err(error) => return Err(damaged(format!("cannot read: {error}"))),
    }
    let Some(depth) = depth else { return Ok(()) };
    let Ok(recorded) = u64::from_str_radix(&entry.xxh3, 16) else {
        return Err(damaged(format!("{INDEX} lists '{}', which is no checksum", entry.xxh3)));
    };
    let planned = entry.images.saturating_add(entry.failed.len() as u64);
    let expect = Expect {
        identity: Some(index.identity.to_string()),
        class: Some(entry.class),
        plan: Name::of(entry).map(|name| (name.first, planned)),
        finished: true,
        file_xxh3: Some(recorded),
    };
    let verified =
        verify(&path, depth, &expect).map_err(|error| Problem::of(Kind::Damaged, path.clone(), &error))?;
    if (verified.rows, &verified.failed) != (entry.images, &entry.failed) {
        let (rows, failed) = (verified.rows, verified.failed.len());
        let (listed, gone) = (entry.images, entry.failed.len());
        let message = format!("{rows} images and {failed} failed ones; {INDEX} lists {listed} and {gone}");
        return Err(damaged(message));
    }
    Ok(())
}

/// Images of a shard that are not there because they could not be made.
fn failed(set: &Set, entry: &ShardEntry) -> Option<Problem> {
    let indices: Vec<String> = entry.failed.iter().map(u64::to_string).collect();
    let count = counted(indices.len() as u64, "image");
    let message = format!("{count} could not be made: {}", indices.join(", "));
    (!indices.is_empty()).then(|| Problem::new(Kind::Failed, set.folder.join(&entry.path), message))
}

/// What the name `<class>-<first>-of-<n>.h5` says.
struct Name {
    first: u64,
    of_class: u64,
}

impl Name {
    fn of(entry: &ShardEntry) -> Option<Self> {
        let (rest, of_class) = entry.path.file_name()?.to_str()?.strip_suffix(".h5")?.rsplit_once("-of-")?;
        let (_, first) = rest.rsplit_once('-')?;
        Some(Self { first: first.parse().ok()?, of_class: of_class.parse().ok()? })
    }
}

/// Classes whose shards are not all in the index, each once.
fn uncovered(set: &Set, index: &ShardIndex) -> Vec<Problem> {
    let of_index = |message: String| Problem::new(Kind::Index, set.folder.join(INDEX), message);
    let mut classes: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut problems = Vec::new();
    let mut listed = BTreeSet::new();
    for entry in &index.shards {
        let Some(name) = Name::of(entry) else {
            problems.push(of_index(format!("'{}' is no name of a shard", entry.path.display())));
            continue;
        };
        if !listed.insert(&entry.path) {
            problems.push(of_index(format!("lists '{}' twice", entry.path.display())));
        }
        let (seen, planned) = classes.entry(class_folder(entry)).or_default();
        *seen = seen.saturating_add(entry.images).saturating_add(entry.failed.len() as u64);
        *planned = name.of_class;
    }
    let short = classes.into_iter().filter(|(_, (seen, planned))| seen != planned);
    problems.extend(short.map(|(class, (seen, planned))| {
        of_index(format!("lists {seen} of {planned} planned images of class {class}"))
    }));
    problems
}

/// Files that nobody asked for. Hidden ones are unfinished work, which the stage itself removes.
fn extra(set: &Set, index: &ShardIndex) -> Vec<Problem> {
    let listed: BTreeSet<PathBuf> = index.shards.iter().map(|entry| set.folder.join(&entry.path)).collect();
    let mut folders = vec![set.folder.clone()];
    let mut problems = Vec::new();
    while let Some(folder) = folders.pop() {
        let entries = match RealFs.list(&folder) {
            Ok(entries) => entries,
            Err(error) => {
                problems.push(Problem::new(Kind::Damaged, folder, format!("cannot list: {error}")));
                continue;
            }
        };
        for entry in entries.into_iter().filter(|entry| !entry.name.starts_with('.')) {
            let path = folder.join(&entry.name);
            if entry.is_dir {
                folders.push(path);
            } else if !listed.contains(&path) && path != set.folder.join(INDEX) {
                problems.push(Problem::new(Kind::Extra, path, format!("not listed in {INDEX}")));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_always_the_same_and_never_too_large() {
        assert_eq!(sampled(5, None).len(), 5);
        assert_eq!(sampled(5, Some(9)).len(), 5);
        let three = sampled(100, Some(3));
        assert_eq!(three.len(), 3);
        assert_eq!(three, sampled(100, Some(3)));
    }
}
