//! Binary files, plain or gzipped.

use equipoise_base::{Error, Result, bail};
use std::io::Read;
use std::path::Path;

/// The content of a file, decompressed if its name ends in `.gz`.
///
/// # Errors
/// 74 when it cannot be read, 65 when the compressed data is damaged or the compression is another.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let name = path.display();
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    if matches!(extension, "xz" | "bz2" | "zst" | "zip") {
        let next = format!("decompress it first, for instance with: {} {name}", tool(extension));
        bail!(BadData, "{name}: .{extension} files are not read; {next}");
    }
    let bytes = std::fs::read(path).map_err(|error| Error::io("read", path, error))?;
    if extension != "gz" {
        return Ok(bytes);
    }
    let mut data = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes.as_slice())
        .read_to_end(&mut data)
        .map_err(|error| Error::data(format!("{name}: damaged gzip data: {error}")))?;
    Ok(data)
}

fn tool(extension: &str) -> &'static str {
    match extension {
        "xz" => "xz -dk",
        "bz2" => "bunzip2 -k",
        "zst" => "zstd -d",
        _ => "unzip",
    }
}
