//! The weight registry: `weights.lock.json`, sizes and hashes of the files of a folder.
//!
//! Weights are looked for by people, mirrored, converted and copied. With a lock, what is loaded is what was recorded, or
//! nothing is loaded. SHA-256 because that is what model hubs print beside a file.

use crate::component::{Component, read_text};
use crate::folder::{Folder, INDEX};
use equipoise_base::{Error, ExitCode, Identity, Result, ResultExt as _, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Name of the file; beside a folder that cannot be written to, `FOLDER.weights.lock.json`.
pub const NAME: &str = "weights.lock.json";

/// Version of the file's format.
const FORMAT: u32 = 1;

/// Size and hash of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Size.
    pub bytes: u64,
    /// SHA-256, 64 hexadecimal digits.
    pub sha256: String,
}

impl Record {
    /// Reads a file through.
    ///
    /// # Errors
    /// 74 if it cannot be read.
    pub fn of(path: &Path) -> Result<Self> {
        let io = |error| Error::io("read", path, error);
        let mut file = File::open(path).map_err(io)?;
        let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
        loop {
            let count = file.read(&mut buffer).map_err(io)?;
            if count == 0 {
                break;
            }
            hash.update(&buffer[..count]);
            bytes += count as u64;
        }
        let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { bytes, sha256 })
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: u32,
    files: BTreeMap<String, Record>,
}

/// The records of a folder.
#[derive(Clone, Debug)]
pub struct Lock {
    /// The lock file; where it would be, for one just computed.
    path: PathBuf,
    /// Folder that the records' names start from.
    root: PathBuf,
    files: BTreeMap<String, Record>,
}

impl Lock {
    /// Hashes every file of a folder that decides what it computes: index, configurations, vocabularies, and the
    /// weights that would be loaded.
    ///
    /// # Errors
    /// 65 if a component is missing, 74 if a file cannot be read.
    pub fn of(folder: &Folder) -> Result<Self> {
        let mut paths = vec![folder.path().join(INDEX)];
        for (_, component) in folder.components() {
            paths.extend(component?.deciding_files()?);
        }
        Self::of_files(folder.path(), &paths)
    }

    /// [`Lock::of`] for some components of a folder.
    ///
    /// # Errors
    /// As [`Lock::of`].
    pub(crate) fn of_parts(folder: &Folder, components: &[&str]) -> Result<Self> {
        let mut paths = Vec::new();
        for name in components {
            paths.extend(folder.component(name)?.deciding_files()?);
        }
        Self::of_files(folder.path(), &paths)
    }

    /// [`Lock::of`] for a component that stands alone.
    ///
    /// # Errors
    /// As [`Lock::of`].
    pub fn of_component(component: &Component) -> Result<Self> {
        Self::of_files(component.dir(), &component.deciding_files()?)
    }

    fn of_files(root: &Path, paths: &[PathBuf]) -> Result<Self> {
        let record = |path: &PathBuf| Ok((relative(root, path), Record::of(path)?));
        let files = paths.iter().map(record).collect::<Result<_>>()?;
        Ok(Self { path: root.join(NAME), root: root.to_owned(), files })
    }

    /// The lock of a folder: in it, or beside it.
    ///
    /// # Errors
    /// 65 if it is not a lock, 74 if it cannot be read.
    pub fn find(root: &Path) -> Result<Option<Self>> {
        let mut places = [root.join(NAME), Self::beside(root)].into_iter();
        places.find(|path| path.is_file()).map(|path| Self::read(root, path)).transpose()
    }

    /// Where the lock of a folder is that cannot be written to: `FOLDER.weights.lock.json` in its parent.
    pub fn beside(root: &Path) -> PathBuf {
        let mut name = root.file_name().unwrap_or_default().to_owned();
        name.push(".");
        name.push(NAME);
        root.with_file_name(name)
    }

    fn read(root: &Path, path: PathBuf) -> Result<Self> {
        let document: Document =
            serde_json::from_str(&read_text(&path)?).or_exit(ExitCode::BadData, path.display())?;
        ensure!(
            document.format == FORMAT,
            BadData,
            "{}: format {}, this version reads {FORMAT}",
            path.display(),
            document.format
        );
        Ok(Self { path, root: root.to_owned(), files: document.files })
    }

    /// Where it is, or belongs.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The record of a file of the folder.
    pub fn record(&self, path: &Path) -> Option<&Record> {
        self.files.get(&relative(&self.root, path))
    }

    /// Records by path from the folder, with forward slashes.
    pub fn files(&self) -> &BTreeMap<String, Record> {
        &self.files
    }

    /// What the file holds.
    ///
    /// # Errors
    /// 101 never: maps of strings are JSON.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        let document = Document { format: FORMAT, files: self.files.clone() };
        let mut text = serde_json::to_vec_pretty(&document).or_exit(ExitCode::Bug, NAME)?;
        text.push(b'\n');
        Ok(text)
    }

    /// One hash over all names, sizes and hashes.
    pub fn identity(&self) -> Identity {
        identity(self.files.iter())
    }

    /// The same over the files of some components.
    pub fn identity_of(&self, components: &[&str]) -> Identity {
        let is_theirs = |name: &str| components.contains(&name.split('/').next().unwrap_or_default());
        identity(self.files.iter().filter(|(name, _)| is_theirs(name)))
    }

    /// Compares a file of the folder with its record.
    ///
    /// # Errors
    /// 65 if the file has no record, or another size or content; 74 if it cannot be read.
    pub fn check(&self, path: &Path) -> Result<()> {
        let name = relative(&self.root, path);
        let wrong = |what: String| {
            let message = format!("{}: {what} ({})", path.display(), self.path.display());
            Err(Error::data(message).next(format!("equipoise doctor --weights {}", self.root.display())))
        };
        let Some(record) = self.files.get(&name) else {
            return wrong("not in the lock".into());
        };
        let bytes = path.metadata().map_err(|error| Error::io("read", path, error))?.len();
        if bytes != record.bytes {
            return wrong(format!("{bytes} bytes, but {} were locked", record.bytes));
        }
        match Record::of(path)?.sha256 {
            hash if hash == record.sha256 => Ok(()),
            hash => wrong(format!("SHA-256 {hash}, but {} was locked", record.sha256)),
        }
    }
}

fn identity<'a>(files: impl Iterator<Item = (&'a String, &'a Record)>) -> Identity {
    let lines = files.map(|(name, record)| format!("{name} {} {}\n", record.bytes, record.sha256));
    Identity::of(&lines.collect::<String>())
}

fn relative(root: &Path, path: &Path) -> String {
    let parts = path.strip_prefix(root).unwrap_or(path).iter();
    parts.map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/")
}
