//! `equipoise shards`: what was generated. Listing needs names and sizes only; all else is done by `equipoise-shards`.

use super::run_config;
use crate::output::{self, Format};
use crate::steps;
use clap::Subcommand;
use equipoise_base::{Error, ExitCode, Result};
use equipoise_config::load_resolved;
use equipoise_rundir::{RealFs, read_json};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// List, check, show, regenerate or export generated images.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    equipoise shards ls runs/quickstart\n  \
    equipoise shards verify runs/quickstart --deep\n  \
    equipoise shards show runs/quickstart --set feedback.k0 > sheet.png\n  \
    equipoise shards regenerate runs/quickstart --failed\n  \
    equipoise shards export imagefolder runs/quickstart out/ --set feedback.k0")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List sets and classes: files, images, bytes.
    Ls {
        /// Run directory.
        #[arg(value_name = "RUN")]
        run: PathBuf,
        /// How to print.
        #[arg(long, value_enum, default_value_t)]
        output: Format,
    },
    /// Check files against the index; with --deep also the checksum of every image.
    #[command(disable_help_flag = true)]
    Verify(Passed),
    /// Write a contact sheet.
    #[command(disable_help_flag = true)]
    Show(Passed),
    /// Make images again from their identity and compare, or complete what failed.
    #[command(disable_help_flag = true)]
    Regenerate(Passed),
    /// Write an image folder or webdataset archives.
    #[command(disable_help_flag = true)]
    Export(Passed),
}

#[derive(Debug, clap::Args)]
struct Passed {
    /// Passed on to `equipoise-shards`, which explains them with --help.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    arguments: Vec<OsString>,
}

/// Lists, or becomes the step binary.
pub fn run(args: &Args) -> Result<ExitCode> {
    let (name, passed) = match &args.what {
        What::Ls { run, output } => return list(run, *output),
        What::Verify(passed) => ("verify", passed),
        What::Show(passed) => ("show", passed),
        What::Regenerate(passed) => ("regenerate", passed),
        What::Export(passed) => ("export", passed),
    };
    let mut line = vec![OsString::from(name)];
    line.extend(passed.arguments.iter().cloned());
    steps::become_program("equipoise-shards", &line)
}

/// The shards of one class of a set.
#[derive(Debug, Default, Serialize)]
struct Row {
    set: String,
    class: String,
    shards: u64,
    /// Images in them.
    images: u64,
    planned: u64,
    bytes: u64,
    /// Images that could not be made, once the set is complete.
    failed: Option<u64>,
}

fn list(run: &Path, format: Format) -> Result<ExitCode> {
    let resolved = load_resolved(&run_config(run)?, &[])?;
    let mut rows = Vec::new();
    for set in folders(&run.join("sets"))? {
        // A set's folder is its name and seed.
        let recipe = resolved.recipe.sets.get(set.split('.').next().unwrap_or_default());
        let size = recipe.map_or(u64::MAX, |set| set.generate.batch * set.generate.batches_per_shard);
        let failed = failed_by_folder(&run.join("sets").join(&set))?;
        for class in folders(&run.join("sets").join(&set))? {
            let mut row = class_row(run, &set, &class, size)?;
            row.failed = failed.as_ref().map(|failed| failed.get(&class).copied().unwrap_or(0));
            row.images -= row.failed.unwrap_or(0).min(row.images);
            rows.push(row);
        }
    }
    if format == Format::Json {
        output::json(&rows);
        return Ok(ExitCode::Done);
    }
    let cells = rows.iter().map(|row| {
        let images = format!("{}/{}", row.images, row.planned);
        let failed = row.failed.map_or("not complete".into(), |failed| failed.to_string());
        let (set, class) = (row.set.clone(), row.class.clone());
        vec![set, class, row.shards.to_string(), images, failed, output::bytes(row.bytes)]
    });
    let header = ["set", "class", "shards", "images", "failed", "size"];
    output::table(&header, &cells.collect::<Vec<_>>(), &[2, 3, 4, 5]);
    Ok(ExitCode::Done)
}

/// What `index.json` tells of a complete set: images that could not be made, by class folder.
fn failed_by_folder(set: &Path) -> Result<Option<BTreeMap<String, u64>>> {
    let Some(index) = read_json::<Value>(&RealFs, &set.join("index.json"))? else { return Ok(None) };
    let mut failed = BTreeMap::new();
    for shard in index["shards"].as_array().into_iter().flatten() {
        let folder = shard["path"].as_str().and_then(|path| path.split('/').next()).unwrap_or_default();
        *failed.entry(folder.to_string()).or_insert(0) +=
            shard["failed"].as_array().map_or(0, Vec::len) as u64;
    }
    Ok(Some(failed))
}

/// Names of the folders in `dir`, sorted; none if it is missing.
fn folders(dir: &Path) -> Result<Vec<String>> {
    let mut names: Vec<String> =
        entries(dir)?.into_iter().filter(|path| path.is_dir()).filter_map(|path| name_of(&path)).collect();
    names.retain(|name| !name.starts_with('.'));
    names.sort();
    Ok(names)
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    match std::fs::read_dir(dir) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::io("list", dir, error)),
    }
}

fn name_of(path: &Path) -> Option<String> {
    path.file_name().map(|name| name.to_string_lossy().into_owned())
}

/// A shard `<class>-<first>-of-<planned>.h5` holds `size` images from `first` on, the last of a class what is left.
fn class_row(run: &Path, set: &str, class: &str, size: u64) -> Result<Row> {
    let mut row = Row { set: set.into(), class: class.into(), ..Row::default() };
    for path in entries(&run.join("sets").join(set).join(class))? {
        let name = name_of(&path).unwrap_or_default();
        let Some((first, planned)) = shard_name(&name, class) else { continue };
        row.shards += 1;
        row.images += size.min(planned.saturating_sub(first));
        row.planned = planned;
        row.bytes += path.metadata().map_or(0, |metadata| metadata.len());
    }
    Ok(row)
}

fn shard_name(name: &str, class: &str) -> Option<(u64, u64)> {
    let (first, planned) =
        name.strip_prefix(class)?.strip_prefix('-')?.strip_suffix(".h5")?.split_once("-of-")?;
    Some((first.parse().ok()?, planned.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_names_are_read_back() {
        assert_eq!(shard_name("coat-00064-of-00345.h5", "coat"), Some((64, 345)));
        assert_eq!(shard_name("T-shirt-00000-of-00308.h5", "T-shirt"), Some((0, 308)));
        assert_eq!(shard_name("coat-00064-of-00345.json", "coat"), None);
        assert_eq!(shard_name("manifest.json", "coat"), None);
    }
}
