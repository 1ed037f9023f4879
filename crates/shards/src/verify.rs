//! Verification of any file of Equipoise.

use crate::guard::{self, read_guard};
use crate::{Features, ImageShard, Kind, PackedReader, ShardReader, Statistics};
use equipoise_base::{Result, ensure};
use serde::Serialize;
use std::ops::Range;
use std::path::Path;

/// Bytes of pixels that are in memory at once while verifying.
const BLOCK_BYTES: usize = 64 << 20;

/// How much to verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Structure: guard, length, attributes, element types, shapes, index range. Reads a few KiB.
    Shallow,
    /// Also the checksum of the file, of every image, and of everything else: any changed bit is found.
    Deep,
}

/// What a file should be, as far as the caller knows.
#[derive(Clone, Debug, Default)]
pub struct Expect {
    /// Identity of the images.
    pub identity: Option<String>,
    /// Class of an image shard.
    pub class: Option<u32>,
    /// First index and number of planned images of an image shard.
    pub plan: Option<(u64, u64)>,
    /// Whether an image shard must cover its whole plan (a part file need not).
    pub finished: bool,
    /// xxh3-64 of the whole file, as recorded when it was committed. Reads the file even when shallow.
    pub file_xxh3: Option<u64>,
}

/// What was verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Kind of file.
    #[serde(serialize_with = "crate::serialize_display")]
    pub kind: Kind,
    /// Length of the file.
    pub bytes: u64,
    /// Images, features or classes present.
    pub rows: u64,
    /// Planned images that could not be made.
    pub failed: Vec<u64>,
}

/// Verifies the file at `path`, whatever its kind.
///
/// # Errors
/// Exit code 65, naming the file and the first thing that is wrong with it.
pub fn verify(path: &Path, depth: Depth, expect: &Expect) -> Result<Verified> {
    let name = path.display().to_string();
    let guard = read_guard(path)?;
    if depth == Depth::Deep || expect.file_xxh3.is_some() {
        let sums = guard::checksums(path)?;
        guard.check_body(&name, sums.body)?;
        if let Some(expected) = expect.file_xxh3 {
            let whole = sums.whole;
            ensure!(
                whole == expected,
                BadData,
                "{name}: the checksum of the file is {whole:016x}, but {expected:016x} was committed"
            );
        }
    }
    let mut verified = Verified { kind: guard.kind, bytes: guard.bytes, rows: 0, failed: vec![] };
    match guard.kind {
        Kind::Image => {
            let shard = ShardReader::open(path)?;
            expect.check(&name, &shard)?;
            if depth == Depth::Deep {
                shard.verify_images()?;
            }
            (verified.rows, verified.failed) = (shard.len() as u64, shard.failed().to_vec());
        }
        Kind::Packed => {
            let packed = PackedReader::open(path)?;
            if depth == Depth::Deep {
                packed.verify_images()?;
            }
            verified.rows = packed.len() as u64;
        }
        Kind::Features => verified.rows = Features::verify_structure(path)?,
        Kind::Statistics => verified.rows = Statistics::verify_structure(path)?,
    }
    Ok(verified)
}

impl Expect {
    fn check(&self, name: &str, shard: &ShardReader) -> Result<()> {
        let meta = shard.meta();
        if let Some(identity) = &self.identity {
            ensure!(
                *identity == meta.identity,
                BadData,
                "{name}: made with identity {}, not {identity}",
                meta.identity
            );
        }
        if let Some(class) = self.class {
            ensure!(class == meta.class, BadData, "{name}: holds class {}, not {class}", meta.class);
        }
        if let Some((first, planned)) = self.plan {
            ensure!(
                (first, planned) == (meta.first, meta.planned),
                BadData,
                "{name}: planned as {} images from index {}, not {planned} from {first}",
                meta.planned,
                meta.first
            );
        }
        let tried = (shard.len() + shard.failed().len()) as u64;
        ensure!(
            !self.finished || tried == meta.planned,
            BadData,
            "{name}: holds {tried} of {} planned images",
            meta.planned
        );
        Ok(())
    }
}

/// Verifies the bytes of an image shard before they are committed: everything that [`Depth::Deep`] finds.
///
/// # Errors
/// As [`verify`].
pub fn verify_shard_bytes(name: &str, bytes: &[u8], expect: &Expect) -> Result<ImageShard> {
    if let Some(expected) = expect.file_xxh3 {
        let whole = equipoise_base::hash::xxh3(bytes);
        ensure!(
            whole == expected,
            BadData,
            "{name}: the checksum of the file is {whole:016x}, but {expected:016x} was committed"
        );
    }
    let shard = ShardReader::from_bytes(name, bytes)?;
    expect.check(name, &shard)?;
    shard.read()
}

/// Fails unless the bytes of the file are those that its guard promises.
pub(crate) fn check_checksum(path: &Path) -> Result<()> {
    let guard = read_guard(path)?;
    guard.check_body(&path.display().to_string(), guard::checksums(path)?.body)
}

/// Ranges of rows that together cover `0..rows`, each about [`BLOCK_BYTES`] large.
pub(crate) fn blocks(rows: usize, row_bytes: usize) -> impl Iterator<Item = Range<usize>> {
    let step = (BLOCK_BYTES / row_bytes.max(1)).max(1);
    (0..rows).step_by(step).map(move |start| start..(start + step).min(rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_all_rows_once() {
        for (rows, row_bytes) in [(0, 1), (1, 0), (10, BLOCK_BYTES / 3), (7, usize::MAX)] {
            let covered: Vec<usize> = blocks(rows, row_bytes).flatten().collect();
            assert_eq!(covered, (0..rows).collect::<Vec<_>>());
        }
    }
}
