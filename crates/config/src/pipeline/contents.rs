//! What files from elsewhere contain: weights, lists of names, the generator's folder.

use crate::resolved::Resolved;
use equipoise_base::{Error, Identity, Result};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The registry of a Hugging Face folder (`pretrained`).
const LOCK: &str = "weights.lock.json";
/// Bytes that are hashed at once.
const PIECE: u64 = 16 << 20;

/// Hashes of what the keys of a configuration name. Each path is read once: weights are large, and many stages read the
/// same.
pub(super) struct Contents<'a> {
    resolved: &'a Resolved,
    hashed: RefCell<BTreeMap<PathBuf, Identity>>,
}

impl<'a> Contents<'a> {
    pub(super) fn new(resolved: &'a Resolved) -> Self {
        Self { resolved, hashed: RefCell::default() }
    }

    /// Hash of the file that `key` names: of the hashes of its pieces, so that large weights are never held at once.
    pub(super) fn of_file(&self, key: &str, file: &Path) -> Result<Identity> {
        self.once(file, || hash_file(file).map_err(|error| self.refused(key, file, &error)))
    }

    /// Hash of the Hugging Face folder that `key` names: of its lock if it has one, which says what every file must be,
    /// else of all files.
    pub(super) fn of_folder(&self, key: &str, folder: &Path) -> Result<Identity> {
        self.once(folder, || match lock(folder) {
            Some(lock) => self.of_file(key, &lock),
            None => self.hash_folder(key, folder),
        })
    }

    fn hash_folder(&self, key: &str, folder: &Path) -> Result<Identity> {
        let mut files = Vec::new();
        walk(folder, &mut files).map_err(|error| self.refused(key, folder, &error))?;
        files.sort();
        let mut lines = String::new();
        for file in files {
            let name = file.strip_prefix(folder).unwrap_or(&file).display().to_string();
            lines.push_str(&format!("{name} {}\n", self.of_file(key, &file)?));
        }
        Ok(Identity::of(&lines))
    }

    /// What `hash` makes of a path, which is asked only the first time.
    fn once(&self, path: &Path, hash: impl FnOnce() -> Result<Identity>) -> Result<Identity> {
        if let Some(known) = self.hashed.borrow().get(path) {
            return Ok(known.clone());
        }
        let identity = hash()?;
        self.hashed.borrow_mut().insert(path.into(), identity.clone());
        Ok(identity)
    }

    fn refused(&self, key: &str, path: &Path, error: &io::Error) -> Error {
        let place = self.resolved.at(key).map(|node| format!("{}: ", node.origin)).unwrap_or_default();
        Error::config(format!("{place}{key}: {}: {error}", path.display()))
    }
}

/// The lock of a folder, in it or beside it.
fn lock(folder: &Path) -> Option<PathBuf> {
    let beside =
        folder.file_name().map(|name| folder.with_file_name(format!("{}.{LOCK}", name.to_string_lossy())));
    [Some(folder.join(LOCK)), beside].into_iter().flatten().find(|lock| lock.is_file())
}

fn hash_file(file: &Path) -> io::Result<Identity> {
    let mut reader = File::open(file)?;
    let mut pieces = String::new();
    loop {
        let mut piece = Vec::new();
        (&mut reader).take(PIECE).read_to_end(&mut piece)?;
        if piece.is_empty() {
            return Ok(Identity::of(&pieces));
        }
        pieces.push_str(Identity::of_bytes(&piece).as_str());
    }
}

/// Every file below a folder.
fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        match path.is_dir() {
            true => walk(&path, files)?,
            false => files.push(path),
        }
    }
    Ok(())
}
