//! The folder of JPEG files that `benches/peers/photos.py` makes.

use equipoise_base::{Error, Result, ensure};
use equipoise_catalog::LabeledPath;
use equipoise_data::ImageSource;
use equipoise_data::decode::Limits;
use equipoise_data::files::FileSource;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The files, in order of their names.
///
/// # Errors
/// 74 if the folder cannot be read, 65 if it holds none.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|error| Error::io("read", folder, error))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "jpg"));
    files.sort();
    ensure!(!files.is_empty(), BadData, "{}: no JPEG file there", folder.display());
    Ok(files)
}

/// The files as a training sees them, with their labels: ten classes in turn.
///
/// # Errors
/// As [`files`].
pub fn source(folder: &Path) -> Result<(Arc<dyn ImageSource>, Vec<u32>)> {
    let label = |(index, path)| LabeledPath { path, label: index as u32 % 10 };
    let list: Vec<LabeledPath> = files(folder)?.into_iter().enumerate().map(label).collect();
    let labels = list.iter().map(|entry| entry.label).collect();
    Ok((Arc::new(FileSource { list, channels: 3, limits: Limits::default() }), labels))
}
