//! Text files, plain or gzipped.

use equipoise_base::{Error, Result};
use std::io::Read;
use std::path::Path;

/// The whole file as text, decompressed if its name ends in `.gz`.
pub(crate) fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|error| Error::io("read", path, error))?;
    let mut text = String::new();
    let outcome = if path.extension().is_some_and(|extension| extension == "gz") {
        flate2::read::MultiGzDecoder::new(bytes.as_slice()).read_to_string(&mut text)
    } else {
        bytes.as_slice().read_to_string(&mut text)
    };
    outcome.map_err(|error| Error::data(format!("{}: not readable text: {error}", path.display())))?;
    Ok(text)
}

/// Lines that say something, with their 1-based numbers: neither empty nor a `#` comment.
pub(crate) fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line.trim()))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}
