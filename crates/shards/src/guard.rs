//! The guard: 512 bytes of text in front of the HDF5 data (an HDF5 "user block", which h5py skips).
//!
//! It makes a file check itself: kind, version, length and a checksum of everything behind it, all readable with
//! `head -c 512 FILE` and without HDF5. A truncated or damaged file is so recognised before HDF5 parses a byte of it.

use crate::Kind;
use equipoise_base::{Result, bail, ensure};
use std::fmt::Write as _;
use std::hash::Hasher as _;
use std::io::Read as _;
use std::path::Path;
use twox_hash::XxHash3_64;

/// Version of what this build writes. Every change of the format adds one.
pub const FORMAT_VERSION: u32 = 1;

/// Oldest [`FORMAT_VERSION`] that a reader must know to read what this build writes. Raised only when old names
/// change meaning; additions leave it.
pub const READER_VERSION: u32 = 1;

/// First release of Equipoise that reads [`READER_VERSION`]; printed by older readers that refuse the file.
pub const NEEDS: &str = "0.1.0";

/// Bytes of the guard; also the HDF5 user block size.
pub const GUARD_LEN: usize = 512;

/// What the guard of a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Kind of file.
    pub kind: Kind,
    /// Version of the writer.
    pub format: u32,
    /// Version that a reader needs.
    pub reader: u32,
    /// Release of Equipoise that a reader needs.
    pub needs: String,
    /// Length of the whole file in bytes.
    pub bytes: u64,
    /// xxh3-64 of all bytes behind the guard.
    pub xxh3: u64,
}

impl Guard {
    /// The guard of a file with this HDF5 part.
    pub(crate) fn of(kind: Kind, body: &[u8]) -> Self {
        Self {
            kind,
            format: FORMAT_VERSION,
            reader: READER_VERSION,
            needs: NEEDS.to_string(),
            bytes: (GUARD_LEN + body.len()) as u64,
            xxh3: equipoise_base::hash::xxh3(body),
        }
    }

    /// The text, padded with spaces to 512 bytes and ended by a newline.
    pub(crate) fn render(&self) -> Vec<u8> {
        let mut text = String::with_capacity(GUARD_LEN);
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "EQUIPOISE {}\nformat {}\nreader {}\nneeds {}\nbytes {}\nxxh3 {:016x}\n",
            self.kind, self.format, self.reader, self.needs, self.bytes, self.xxh3
        );
        let mut block = text.into_bytes();
        block.resize(GUARD_LEN - 1, b' ');
        block.push(b'\n');
        block
    }

    /// Reads a guard; `file` is for messages only.
    ///
    /// # Errors
    /// Not a file of Equipoise, a damaged guard, or a format that needs a newer Equipoise.
    pub fn parse(file: &str, block: &[u8]) -> Result<Self> {
        ensure!(!block.is_empty(), BadData, "{file}: is empty");
        ensure!(
            block.starts_with(b"EQUIPOISE "),
            BadData,
            "{file}: not a file of Equipoise (it does not start with \"EQUIPOISE\")"
        );
        let Some(guard) = block.get(..GUARD_LEN).and_then(Self::fields) else {
            bail!(BadData, "{file}: the first 512 bytes are damaged");
        };
        ensure!(
            guard.reader <= FORMAT_VERSION,
            BadData,
            "{file}: format {} needs Equipoise >= {} (this build reads formats up to {FORMAT_VERSION})",
            guard.format,
            guard.needs
        );
        // Of its own format the reader knows every byte.
        let own = guard.format != FORMAT_VERSION || (guard.reader == READER_VERSION && guard.needs == NEEDS);
        ensure!(
            own && guard.render() == block[..GUARD_LEN],
            BadData,
            "{file}: the first 512 bytes are damaged"
        );
        Ok(guard)
    }

    /// The fields as written, unchecked.
    fn fields(block: &[u8]) -> Option<Self> {
        let mut lines = std::str::from_utf8(block).ok()?.lines();
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        Some(Self {
            kind: Kind::from_name(field("EQUIPOISE")?)?,
            format: field("format")?.parse().ok()?,
            reader: field("reader")?.parse().ok()?,
            needs: field("needs")?.to_string(),
            bytes: field("bytes")?.parse().ok()?,
            xxh3: u64::from_str_radix(field("xxh3")?, 16).ok()?,
        })
    }

    /// Fails unless the file has the promised length.
    pub(crate) fn check_length(&self, file: &str, bytes: u64) -> Result<()> {
        ensure!(
            bytes >= self.bytes,
            BadData,
            "{file}: truncated, {bytes} of {} bytes are present",
            self.bytes
        );
        ensure!(bytes == self.bytes, BadData, "{file}: {bytes} bytes long instead of {}", self.bytes);
        Ok(())
    }

    /// Fails unless the bytes behind the guard have the promised checksum.
    pub(crate) fn check_body(&self, file: &str, xxh3: u64) -> Result<()> {
        ensure!(
            xxh3 == self.xxh3,
            BadData,
            "{file}: damaged, the checksum is {xxh3:016x} instead of {:016x}",
            self.xxh3
        );
        Ok(())
    }
}

/// Reads the guard of the file at `path` and compares the length: microseconds, and no HDF5.
///
/// # Errors
/// Those of [`Guard::parse`], a wrong length, or an unreadable file; all name the file.
pub fn read_guard(path: &Path) -> Result<Guard> {
    let name = path.display().to_string();
    let (mut file, bytes) = open(path)?;
    let mut block = Vec::with_capacity(GUARD_LEN);
    file.by_ref().take(GUARD_LEN as u64).read_to_end(&mut block).map_err(|error| read_error(path, error))?;
    let guard = Guard::parse(&name, &block)?;
    guard.check_length(&name, bytes)?;
    Ok(guard)
}

/// Checksums of a file: of what is behind the guard, and of the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checksums {
    pub body: u64,
    pub whole: u64,
}

/// Streams the file at `path` through xxh3 in one pass.
pub(crate) fn checksums(path: &Path) -> Result<Checksums> {
    let (mut file, _) = open(path)?;
    let (mut body, mut whole) = (XxHash3_64::new(), XxHash3_64::new());
    let mut buffer = vec![0; 1 << 20];
    let mut guard_left = GUARD_LEN;
    loop {
        let read = match file.read(&mut buffer) {
            Ok(0) => return Ok(Checksums { body: body.finish(), whole: whole.finish() }),
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(read_error(path, error)),
        };
        whole.write(&buffer[..read]);
        let skip = guard_left.min(read);
        guard_left -= skip;
        body.write(&buffer[skip..read]);
    }
}

/// Opens a regular file: opening a pipe or a device could hang.
fn open(path: &Path) -> Result<(std::fs::File, u64)> {
    let metadata = std::fs::metadata(path).map_err(|error| read_error(path, error))?;
    ensure!(metadata.is_file(), BadData, "{}: not a regular file", path.display());
    let file = std::fs::File::open(path).map_err(|error| read_error(path, error))?;
    Ok((file, metadata.len()))
}

/// A missing file is bad data, anything else an I/O error.
fn read_error(path: &Path, error: std::io::Error) -> equipoise_base::Error {
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            equipoise_base::Error::data(format!("{}: no such file", path.display())).caused_by(error)
        }
        _ => equipoise_base::Error::io("read", path, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_round_trips_and_is_512_bytes() {
        let guard = Guard::of(Kind::Features, b"body");
        let block = guard.render();
        assert_eq!(block.len(), GUARD_LEN);
        assert_eq!(Guard::parse("a.h5", &block).unwrap(), guard);
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let guard = Guard::of(Kind::Image, b"body");
        let block = guard.render();
        for bit in 0..GUARD_LEN * 8 {
            let mut damaged = block.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // A flip in a value is a well-formed guard that promises something else of the file.
            if let Ok(other) = Guard::parse("a.h5", &damaged) {
                let promises = (other.format, other.kind, other.bytes, other.xxh3);
                assert_ne!(promises, (guard.format, guard.kind, guard.bytes, guard.xxh3), "bit {bit}");
            }
        }
    }

    #[test]
    fn a_newer_format_names_the_release_that_reads_it() {
        let mut guard = Guard::of(Kind::Image, b"body");
        (guard.format, guard.reader, guard.needs) = (7, 6, "3.2.0".to_string());
        let error = Guard::parse("a.h5", &guard.render()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a.h5: format 7 needs Equipoise >= 3.2.0 (this build reads formats up to 1)"
        );
        // Additions only: an older reader may go on.
        guard.reader = 1;
        assert_eq!(Guard::parse("a.h5", &guard.render()).unwrap(), guard);
    }

    #[test]
    fn other_files_are_named() {
        for (block, message) in [
            (&b""[..], "a.h5: is empty"),
            (b"\x89HDF\r\n\x1a\n", "not a file of Equipoise"),
            (b"EQUIPOISE image\nformat 1", "the first 512 bytes are damaged"),
        ] {
            let error = Guard::parse("a.h5", block).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
