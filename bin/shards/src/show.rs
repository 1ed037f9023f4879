//! `equipoise shards show`: a contact sheet of a set, one row per class.

use crate::sets::{Set, class_folder, one_set};
use equipoise_base::{Error, ExitCode, Result, ensure};
use equipoise_rundir::{RealFs, commit_bytes};
use equipoise_shards::contact::{SheetRow, SheetStyle, contact_sheet};
use equipoise_shards::{Image, ShardReader};
use equipoise_stages::ShardEntry;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

/// Smaller images are enlarged to about this many pixels unless a scale is given.
const LEGIBLE: usize = 56;

/// Write a contact sheet of a set as PNG: one row per class, in the order of their indices.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    equipoise shards show runs/quickstart --set feedback.k0 > sheet.png\n  \
    equipoise shards show runs/quickstart --set feedback.k0 --class Coat --columns 30 -o coats.png\n  \
    equipoise shards show runs/quickstart --set feedback.k0 --scale 1 | kitty icat")]
pub struct Args {
    /// Run directory.
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// The set; may be left out if there is only one.
    #[arg(long, value_name = "NAME.kSEED")]
    set: Option<String>,
    /// Only this class, by name, folder or number; may be repeated.
    #[arg(long = "class", value_name = "NAME")]
    classes: Vec<String>,
    /// Images per class.
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..))]
    columns: u16,
    /// Draw every pixel as a square of this many [default: small images are enlarged].
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u8).range(1..))]
    scale: Option<u8>,
    /// Where to write; `-` for standard output.
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
}

/// Draws the sheet.
pub fn run(args: &Args) -> Result<ExitCode> {
    let to_stdout = args.output == Path::new("-");
    ensure!(
        !to_stdout || !std::io::stdout().is_terminal(),
        Usage,
        "a PNG cannot be shown on a terminal: give -o FILE, or write to a file or pipe"
    );
    let set = one_set(&args.run, args.set.as_ref())?;
    let rows = rows(&set, &args.classes, args.columns as usize)?;
    let images = || rows.iter().flat_map(|(_, images)| images);
    ensure!(images().next().is_some(), BadData, "{}: there are no images to show", set.folder.display());
    let tallest = images().map(|image| image.height).max().unwrap_or(1);
    let scale = args.scale.map_or_else(|| (LEGIBLE / tallest.max(1)).max(1), usize::from);
    let sheet: Vec<SheetRow<'_>> = rows.iter().map(|(label, images)| SheetRow { label, images }).collect();
    let png = contact_sheet(&sheet, SheetStyle { scale, ..SheetStyle::default() })?;
    if to_stdout {
        let written = std::io::stdout().write_all(&png).and_then(|()| std::io::stdout().flush());
        written.map_err(|error| Error::io("write", Path::new("standard output"), error))?;
    } else {
        commit_bytes(&RealFs, &args.output, &png, None)?;
    }
    Ok(ExitCode::Done)
}

/// Name and first images of each class.
fn rows(set: &Set, classes: &[String], columns: usize) -> Result<Vec<(String, Vec<Image>)>> {
    let index = set.index()?;
    let mut rows: Vec<(u32, String, Vec<Image>)> = Vec::new();
    let mut wanted: Vec<(&String, bool)> = classes.iter().map(|class| (class, false)).collect();
    for entry in &index.shards {
        let filled =
            |(class, _, images): &(u32, String, Vec<Image>)| *class == entry.class && images.len() >= columns;
        if rows.last().is_some_and(filled) {
            continue;
        }
        let shard = ShardReader::open(&set.shard(entry)?)?;
        let name = &shard.meta().class_name;
        if !classes.is_empty() && !is_wanted(&mut wanted, entry, name) {
            continue;
        }
        if rows.last().is_none_or(|(class, ..)| *class != entry.class) {
            rows.push((entry.class, name.clone(), Vec::new()));
        }
        if let Some((_, _, images)) = rows.last_mut() {
            let stored = shard.rows(0..shard.len().min(columns - images.len()))?;
            for position in 0..stored.len() {
                images.push(stored.images().decode(position)?);
            }
        }
    }
    if let Some((class, _)) = wanted.iter().find(|(_, seen)| !seen) {
        let message = format!("{}: no images of a class '{class}'", set.folder.display());
        return Err(Error::new(ExitCode::Usage, message));
    }
    Ok(rows.into_iter().map(|(_, name, images)| (name, images)).collect())
}

/// Whether the class of a shard was asked for, which is noted.
fn is_wanted(wanted: &mut [(&String, bool)], entry: &ShardEntry, name: &str) -> bool {
    let (folder, number) = (class_folder(entry), entry.class.to_string());
    let mut any = false;
    for (class, seen) in wanted {
        if [name, &folder, &number].contains(&class.as_str()) {
            (*seen, any) = (true, true);
        }
    }
    any
}
