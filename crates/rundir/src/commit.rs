//! One file: the old one or the new one, never a part of either.
//!
//! | failure | a reader finds | left behind |
//! |---|---|---|
//! | [`commit_bytes`] returned `Ok` | the new file, after a power loss too | nothing |
//! | it returned an error | the old file or, if only the last sync failed, the new one | nothing, if removal works |
//! | panic or SIGKILL in the middle | the old file or the new one | perhaps a scratch file |
//! | power loss in the middle | the old file or the new one | perhaps a scratch file |
//! | the lease was taken over | the new owner's file | nothing |
//!
//! Costs: the space of both files at once, two syncs, and one read of what was written, which the page cache may
//! answer: the read proves that the file holds what was asked for, not that the platters do.

use crate::lease::LeaseGuard;
use crate::scratch;
use crate::vfs::Vfs;
use equipoise_base::{Error, ExitCode, Result, ResultExt as _, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};

/// Puts `bytes` under `path`, replacing what was there; see the [module](self) for what is promised.
///
/// # Errors
/// 74 naming the path, what was needed and what is free; 69 if `guard` no longer owns its stage, in which case
/// nothing under `path` was touched.
pub fn commit_bytes(vfs: &dyn Vfs, path: &Path, bytes: &[u8], guard: Option<&LeaseGuard>) -> Result<()> {
    let scratch = scratch::sibling(path, guard)?;
    let result = write_verified(vfs, &scratch, bytes)
        .and_then(|()| publish(vfs, &scratch, path, guard))
        .map_err(|error| error.context(format!("{}: not committed", path.display())));
    if result.is_err() {
        // Best effort: what cannot be removed now is removed when the stage is next opened.
        let _ = vfs.remove_file(&scratch);
    }
    result
}

/// [`commit_bytes`] of [`json_bytes`].
///
/// # Errors
/// Those of both.
pub fn commit_json<T: Serialize>(
    vfs: &dyn Vfs,
    path: &Path,
    value: &T,
    guard: Option<&LeaseGuard>,
) -> Result<()> {
    commit_bytes(vfs, path, &json_bytes(path, value)?, guard)
}

/// A value as indented JSON with a final newline, for the file that errors name.
///
/// # Errors
/// 101 if JSON cannot express it.
pub fn json_bytes<T: Serialize>(path: &Path, value: &T) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value)
        .or_exit(ExitCode::Bug, format!("{}: not expressible as JSON", path.display()))?;
    text.push(b'\n');
    Ok(text)
}

/// Reads what [`commit_json`] wrote; none if there is no such file.
///
/// # Errors
/// 65 if the file is not JSON of this form, 74 if it cannot be read.
pub fn read_json<T: DeserializeOwned>(vfs: &dyn Vfs, path: &Path) -> Result<Option<T>> {
    match vfs.read(path) {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Some(value)),
            Err(error) => bail!(BadData, "{}: {error}", path.display()),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path, error)),
    }
}

/// Creates a directory and its missing parents so that they survive a power loss.
///
/// The deepest one that exists is synced as well: its maker may have been killed before doing so.
///
/// # Errors
/// 74 naming the directory that could not be made.
pub fn create_dirs(vfs: &dyn Vfs, path: &Path) -> Result<()> {
    let mut missing: Vec<&Path> = Vec::new();
    for dir in path.ancestors().filter(|dir| !dir.as_os_str().is_empty()) {
        match vfs.metadata(dir) {
            Ok(metadata) if !metadata.is_dir => bail!(Io, "{}: exists and is not a directory", dir.display()),
            Ok(_) => {
                match vfs.sync_dir(&parent_of(dir)) {
                    // `/home` may be closed to us; what is there already is then not ours to sync.
                    Err(error) if error.kind() != ErrorKind::PermissionDenied => {
                        return Err(failed(vfs, "sync the parent directory of", dir, 0, error));
                    }
                    _ => break,
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => missing.push(dir),
            Err(error) => return Err(Error::io("read", dir, error)),
        }
    }
    for dir in missing.into_iter().rev() {
        match vfs.create_dir(dir) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(failed(vfs, "create the directory", dir, 0, error));
            }
            _ => sync_parent(vfs, dir)?,
        }
    }
    Ok(())
}

/// Writes a new file, syncs it, closes it and reads it back. The name itself is not synced.
pub(crate) fn write_verified(vfs: &dyn Vfs, path: &Path, bytes: &[u8]) -> Result<()> {
    let needed = bytes.len() as u64;
    let fail = |operation: &str, error| failed(vfs, operation, path, needed, error);
    let mut file = vfs.create_new(path).map_err(|error| fail("create", error))?;
    file.write_all(bytes).map_err(|error| fail("write", error))?;
    // Never retried: after a failed sync the kernel forgets which pages were dirty and the next one succeeds.
    file.sync_data().map_err(|error| fail("sync", error))?;
    file.close().map_err(|error| fail("close", error))?;
    match holds(vfs, path, bytes) {
        Ok(true) => Ok(()),
        Ok(false) => bail!(Io, "{}: reads back other bytes than were written", path.display()),
        Err(error) => Err(fail("read back", error)),
    }
}

/// Compares in pieces, so that a large file is not held in memory twice.
fn holds(vfs: &dyn Vfs, path: &Path, expected: &[u8]) -> io::Result<bool> {
    let mut file = vfs.open(path)?;
    let mut piece = vec![0u8; (1 << 20).min(expected.len().max(1))];
    let mut rest = expected;
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(rest.is_empty()),
            Ok(n) if rest.get(..n) == Some(&piece[..n]) => rest = &rest[n..],
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Gives a finished scratch file or directory its final name.
fn publish(vfs: &dyn Vfs, scratch: &Path, path: &Path, guard: Option<&LeaseGuard>) -> Result<()> {
    guard.map_or(Ok(()), LeaseGuard::check)?;
    vfs.rename(scratch, path).map_err(|error| failed(vfs, "rename to", path, 0, error))?;
    sync_parent(vfs, path)
}

/// Returns once the name of `path` is on disk.
pub(crate) fn sync_parent(vfs: &dyn Vfs, path: &Path) -> Result<()> {
    let parent = parent_of(path);
    vfs.sync_dir(&parent).map_err(|error| failed(vfs, "sync the directory", &parent, 0, error))
}

/// The directory that holds the name of `path`.
pub(crate) fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_path_buf(),
        None => path.to_path_buf(),
    }
}

/// The error of a failed write: names the path, what it needed and what is free.
pub(crate) fn failed(vfs: &dyn Vfs, operation: &str, path: &Path, needed: u64, source: io::Error) -> Error {
    let free = match vfs.space(&parent_of(path)) {
        Ok(space) if space.inodes == u64::MAX => format!("{} bytes are free", space.bytes),
        Ok(space) => format!("{} bytes and {} inodes are free", space.bytes, space.inodes),
        Err(_) => "free space is unknown".to_string(),
    };
    let message = format!("{}: cannot {operation}: {source}; needed {needed} bytes, {free}", path.display());
    let next = match source.raw_os_error() {
        Some(libc::ENOSPC) => Some("free some space, then run the same command again"),
        Some(libc::EDQUOT) => Some("free some of your quota, then run the same command again"),
        Some(libc::EMFILE | libc::ENFILE) => Some("raise `ulimit -n`, then run the same command again"),
        _ => None,
    };
    let error = Error::new(ExitCode::Io, message).caused_by(source);
    match next {
        Some(next) => error.next(next),
        None => error,
    }
}
