//! Labels alone, from files and listings: what planning on a login node needs. No image is decoded.

use crate::source::Source;
use crate::{Grouped, folder, list, webdataset};
use equipoise_base::{Error, ExitCode, Result, ResultExt, ensure};
use flate2::read::GzDecoder;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The label of every image of a source, in its order.
///
/// # Errors
/// 74 or 65 naming the file that cannot be read.
pub fn read(source: &Source) -> Result<Vec<u32>> {
    match source {
        Source::Idx { labels, .. } => idx_labels(labels),
        Source::Cifar10 { files } => cifar_labels(files, 3073, 0),
        Source::Cifar100 { files } => cifar_labels(files, 3074, 1),
        Source::Folder { path } => Ok(folder::scan(path)?.images.iter().map(|image| image.label).collect()),
        Source::Webdataset { path } => Ok(webdataset::scan(path)?.iter().map(|image| image.label).collect()),
        Source::List { file, root } => Ok(list::read(file, root)?.iter().map(|image| image.label).collect()),
        Source::GroupList { .. } | Source::Metadata { .. } => {
            let files = Grouped::read(source)?.unwrap_or_default().files;
            Ok(files.iter().map(|image| image.label).collect())
        }
    }
}

/// Header 0x00000801, a big-endian count, then one byte per label.
fn idx_labels(file: &Path) -> Result<Vec<u32>> {
    let bytes = read_file(file)?;
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
        let bytes = read_file(file)?;
        let whole = bytes.len().is_multiple_of(size);
        ensure!(whole, BadData, "{}: {} bytes are no CIFAR records", file.display(), bytes.len());
        labels.extend(bytes.chunks_exact(size).map(|record| u32::from(record[offset])));
    }
    Ok(labels)
}

/// A whole file, unpacked if its name ends in `.gz`.
fn read_file(file: &Path) -> Result<Vec<u8>> {
    let open = |error| Error::io("read", file, error).next("check data.root and the source of the split");
    let packed = std::fs::read(file).map_err(open)?;
    if file.extension().is_none_or(|extension| extension != "gz") {
        return Ok(packed);
    }
    let mut bytes = Vec::new();
    GzDecoder::new(packed.as_slice()).read_to_end(&mut bytes).or_exit(ExitCode::BadData, file.display())?;
    Ok(bytes)
}
