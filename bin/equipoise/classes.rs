//! How many images each class of a split has, from labels and listings alone: no image is decoded.

use equipoise_base::{Error, ExitCode, Result, ResultExt, ensure};
use equipoise_catalog::{Selection, Source, counts, folder, list};
use equipoise_config::recipe::{Classes, Dataset, Recipe, Split};
use flate2::read::GzDecoder;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Class names of the data set, by label.
///
/// # Errors
/// 74 or 65 naming the class list.
pub fn names(data: &Dataset) -> Result<Vec<String>> {
    match &data.classes {
        Classes::File(file) => list::read_class_names(file),
        Classes::Names(names) => Ok(names.clone()),
    }
}

/// Images per class that a split selects.
///
/// # Errors
/// 65, 74 naming the file that cannot be read; 78 where the selection does not fit.
pub fn split_counts(recipe: &Recipe, data: &Dataset, name: &str, split: &Split) -> Result<Vec<u64>> {
    let classes = names(data)?.len();
    let source = under(split.source.parse::<Source>()?, &data.root);
    let labels = labels(&source)?;
    let named = |error: Error| error.context(format!("data.splits.{name}"));
    let selected = match &split.select {
        Some(select) => {
            let select: Selection = select.parse()?;
            let chosen = select.select(&labels, classes, recipe.run.seed).map_err(named)?;
            chosen.into_iter().map(|index| labels[index]).collect()
        }
        None => labels,
    };
    counts::of_labels(&selected, classes).map_err(named)
}

/// A source whose relative paths start at `root`.
fn under(source: Source, root: &Path) -> Source {
    let place = |path: PathBuf| root.join(path);
    match source {
        Source::Idx { images, labels } => Source::Idx { images: place(images), labels: place(labels) },
        Source::Cifar10 { files } => Source::Cifar10 { files: files.into_iter().map(place).collect() },
        Source::Cifar100 { files } => Source::Cifar100 { files: files.into_iter().map(place).collect() },
        Source::Folder { path } => Source::Folder { path: place(path) },
        Source::List { file, root: images } => Source::List { file: place(file), root: place(images) },
    }
}

fn labels(source: &Source) -> Result<Vec<u32>> {
    match source {
        Source::Idx { labels, .. } => idx_labels(labels),
        Source::Cifar10 { files } => cifar_labels(files, 3073, 0),
        Source::Cifar100 { files } => cifar_labels(files, 3074, 1),
        Source::Folder { path } => Ok(folder::scan(path)?.images.iter().map(|image| image.label).collect()),
        Source::List { file, root } => Ok(list::read(file, root)?.iter().map(|image| image.label).collect()),
    }
}

/// Header 0x00000801, a big-endian count, then one byte per label.
fn idx_labels(file: &Path) -> Result<Vec<u32>> {
    let bytes = read(file)?;
    let header = bytes.get(..8).filter(|header| header[..4] == [0, 0, 8, 1]);
    let count =
        header.map(|header| u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize);
    ensure!(count == Some(bytes.len().saturating_sub(8)), BadData, "{}: no IDX label file", file.display());
    Ok(bytes[8..].iter().map(|&label| label.into()).collect())
}

/// Records of `size` bytes with the label at `offset`.
fn cifar_labels(files: &[PathBuf], size: usize, offset: usize) -> Result<Vec<u32>> {
    let mut labels = Vec::new();
    for file in files {
        let bytes = read(file)?;
        let whole = bytes.len().is_multiple_of(size);
        ensure!(whole, BadData, "{}: {} bytes are no CIFAR records", file.display(), bytes.len());
        labels.extend(bytes.chunks_exact(size).map(|record| u32::from(record[offset])));
    }
    Ok(labels)
}

/// A whole file, unpacked if its name ends in `.gz`.
fn read(file: &Path) -> Result<Vec<u8>> {
    let open = |error| Error::io("read", file, error).next("check data.root and the source of the split");
    let packed = std::fs::read(file).map_err(open)?;
    if file.extension().is_none_or(|extension| extension != "gz") {
        return Ok(packed);
    }
    let mut bytes = Vec::new();
    GzDecoder::new(packed.as_slice()).read_to_end(&mut bytes).or_exit(ExitCode::BadData, file.display())?;
    Ok(bytes)
}
