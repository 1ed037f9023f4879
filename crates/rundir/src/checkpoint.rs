//! Checkpoints: directories of files with a manifest, of which the newest valid one is found again.
//!
//! `ckpt/step-00012345/` appears in one rename once all its files, its manifest and its names are on disk. The
//! manifest holds the size and hash of every file and a hash of itself, so whatever is damaged later is noticed.
//!
//! | failure | [`Checkpoints::latest_valid`] finds |
//! |---|---|
//! | [`Checkpoints::save`] returned `Ok` | the new checkpoint, after a power loss too |
//! | it returned an error | the one before or, if only the last sync failed, the new one |
//! | kill or power loss in the middle | the one before or the new one; a scratch directory may be left |
//! | damage later, of any file | the newest one that is whole; the damaged one is renamed `*.corrupt`, never deleted |

use crate::commit::{create_dirs, failed, sync_parent, write_verified};
use crate::lease::LeaseGuard;
use crate::scratch;
use crate::vfs::Vfs;
use equipoise_base::hash::xxh3;
use equipoise_base::{Error, ExitCode, Identity, Result, ResultExt as _, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Name of the manifest.
pub const MANIFEST: &str = "MANIFEST.json";
/// Version of the layout on this page.
pub const VERSION: u32 = 1;

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Name within the directory.
    pub name: String,
    /// Size.
    pub bytes: u64,
    /// xxh3-64 of the content, 16 hexadecimal digits.
    pub xxh3: String,
}

/// `MANIFEST.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// xxh3-64 of the text of this file with this value replaced by zeros.
    pub manifest_xxh3: String,
    /// Training step that the checkpoint follows.
    pub step: u64,
    /// World size of the writer.
    pub world: usize,
    /// Identity of the run.
    pub identity: Identity,
    /// The files, by name.
    pub files: Vec<FileEntry>,
    /// Whatever the writer wants back: samples seen, schedules, best scores.
    pub user: Value,
}

const NO_HASH: &str = "0000000000000000";

impl Manifest {
    fn to_text(&self) -> Result<String> {
        let blank = Manifest { manifest_xxh3: NO_HASH.to_string(), ..self.clone() };
        let text = serde_json::to_string_pretty(&blank).or_exit(ExitCode::Bug, "a manifest as JSON")?;
        Ok(text.replacen(NO_HASH, &hex(xxh3(text.as_bytes())), 1))
    }

    /// The manifest in this text, or why there is none.
    fn from_text(text: &[u8]) -> Result<Manifest, Unusable> {
        let damaged = |error: serde_json::Error| Unusable::Damaged(format!("{MANIFEST}: {error}"));
        let value: Value = serde_json::from_slice(text).map_err(damaged)?;
        let hash = value["manifest_xxh3"].as_str().unwrap_or_default();
        let text = String::from_utf8_lossy(text);
        let blank = text.replacen(hash, NO_HASH, 1);
        if hex(xxh3(blank.as_bytes())) != hash {
            return Err(Unusable::Damaged(format!("{MANIFEST}: was edited or damaged")));
        }
        // Only of a whole text: damage must not be taken for another release's work.
        match value["version"].as_u64() {
            Some(version) if version > VERSION.into() => Err(Unusable::Newer(version)),
            _ => serde_json::from_value(value).map_err(damaged),
        }
    }

    /// Whether two checkpoints hold the same; who wrote them (`world`, `user`) does not matter.
    fn holds_the_same(&self, other: &Manifest) -> bool {
        (self.step, &self.identity, &self.files) == (other.step, &other.identity, &other.files)
    }
}

/// Why a manifest cannot be used.
enum Unusable {
    /// What is wrong with it.
    Damaged(String),
    /// It is whole, and its version is of a later release.
    Newer(u64),
}

fn hex(hash: u64) -> String {
    format!("{hash:016x}")
}

/// The state at a step, taken in memory and ready to be written by [`Checkpoints::save`] or a
/// [`CheckpointWriter`](crate::CheckpointWriter).
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Training step that it follows.
    pub step: u64,
    /// World size.
    pub world: usize,
    /// Identity of the run.
    pub identity: Identity,
    /// File name to content.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Kept in the manifest.
    pub user: Value,
}

/// A checkpoint that was found valid, with the content that was checked: whatever happens to its files afterwards, this is what
/// is restored, and nothing is read twice.
pub struct Checkpoint {
    /// Its directory.
    pub path: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    files: BTreeMap<String, Vec<u8>>,
}

impl Checkpoint {
    /// Hands out the content of a file, once: it may be large.
    ///
    /// # Errors
    /// 65 if the checkpoint has no such file, or has it no more.
    pub fn take(&mut self, name: &str) -> Result<Vec<u8>> {
        let missing =
            || Error::data(format!("{}: not a file of this checkpoint", self.path.join(name).display()));
        self.files.remove(name).ok_or_else(missing)
    }
}

impl FileEntry {
    fn of(name: &str, bytes: &[u8]) -> Self {
        Self { name: name.to_string(), bytes: bytes.len() as u64, xxh3: hex(xxh3(bytes)) }
    }

    fn matches(&self, bytes: &[u8]) -> bool {
        self.bytes == bytes.len() as u64 && self.xxh3 == hex(xxh3(bytes))
    }
}

/// The checkpoints of a stage.
#[derive(Clone)]
pub struct Checkpoints {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    guard: Option<LeaseGuard>,
}

/// A checkpoint directory being filled, under its scratch name; several ranks may add their files.
pub struct Staging<'a> {
    checkpoints: &'a Checkpoints,
    path: PathBuf,
    step: u64,
}

impl Checkpoints {
    /// The checkpoints in `dir`, written under `guard`.
    pub fn new(vfs: Arc<dyn Vfs>, dir: impl Into<PathBuf>, guard: Option<LeaseGuard>) -> Self {
        Self { vfs, dir: dir.into(), guard }
    }

    /// Where the checkpoint of a step is, if there is one.
    pub fn path(&self, step: u64) -> PathBuf {
        self.dir.join(format!("step-{step:08}"))
    }

    /// The steps with a checkpoint, valid or not, lowest first.
    ///
    /// # Errors
    /// 74 if the directory cannot be listed.
    pub fn steps(&self) -> Result<Vec<u64>> {
        let entries =
            self.vfs.list_if_exists(&self.dir).map_err(|error| Error::io("list", &self.dir, error))?;
        let step = |name: &str| name.strip_prefix("step-")?.parse::<u64>().ok();
        let mut steps: Vec<u64> =
            entries.iter().filter(|entry| entry.is_dir).filter_map(|entry| step(&entry.name)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Writes a checkpoint and returns once it is on disk under its name.
    ///
    /// # Errors
    /// 74 naming the path and what is free; 69 if the lease is lost, or if a valid checkpoint of this step with other
    /// content is there already.
    pub fn save(&self, snapshot: &Snapshot) -> Result<PathBuf> {
        let staging = self.begin(snapshot.step)?;
        let write = || {
            let entries = snapshot.files.iter().map(|(name, bytes)| staging.add(name, bytes));
            let entries = entries.collect::<Result<Vec<_>>>()?;
            staging.finish(snapshot.world, &snapshot.identity, entries, snapshot.user.clone())
        };
        write().inspect_err(|_| staging.abandon())
    }

    /// Begins a checkpoint whose files several ranks write: one begins, the others [`join`](Self::join) its path.
    ///
    /// # Errors
    /// 69 if the lease is lost, 74 if the directory cannot be made.
    pub fn begin(&self, step: u64) -> Result<Staging<'_>> {
        self.guard.as_ref().map_or(Ok(()), LeaseGuard::check)?;
        create_dirs(&*self.vfs, &self.dir)?;
        let path = scratch::sibling(&self.path(step), self.guard.as_ref())?;
        self.vfs
            .create_dir(&path)
            .map_err(|error| failed(&*self.vfs, "create the directory", &path, 0, error))?;
        Ok(Staging { checkpoints: self, path, step })
    }

    /// The staging directory that another rank began.
    pub fn join(&self, path: PathBuf, step: u64) -> Staging<'_> {
        Staging { checkpoints: self, path, step }
    }

    /// The newest checkpoint that is whole, if there is one. Newer ones that are not are renamed `*.corrupt` and
    /// reported to `on_corrupt` with their new path and what is wrong.
    ///
    /// # Errors
    /// 74 if a file cannot be read for another reason than that it is missing: a file system that is briefly away
    /// must not cost a checkpoint. 69 if a rename is due and the lease is lost. 78 if a later release wrote it.
    pub fn latest_valid(&self, on_corrupt: &mut dyn FnMut(&Path, &str)) -> Result<Option<Checkpoint>> {
        for step in self.steps()?.into_iter().rev() {
            match self.verify(step)? {
                Ok(checkpoint) => return Ok(Some(checkpoint)),
                Err(reason) => {
                    let moved = self.set_aside(step)?;
                    on_corrupt(&moved, &reason);
                }
            }
        }
        Ok(None)
    }

    /// Reads and hashes every file of a checkpoint; the inner error says what is wrong with it.
    ///
    /// # Errors
    /// 74 if a file cannot be read for another reason than that it is missing; 78 if a later release wrote it, which is
    /// no damage.
    pub fn verify(&self, step: u64) -> Result<Result<Checkpoint, String>> {
        let path = self.path(step);
        let Some(text) = self.read_if_exists(&path.join(MANIFEST))? else {
            return Ok(Err(format!("{MANIFEST} is missing")));
        };
        let manifest = match Manifest::from_text(&text) {
            Ok(manifest) if manifest.step != step => {
                return Ok(Err(format!("{MANIFEST} is of step {}", manifest.step)));
            }
            Ok(manifest) => manifest,
            Err(Unusable::Damaged(reason)) => return Ok(Err(reason)),
            Err(Unusable::Newer(version)) => {
                let message = format!(
                    "{}: written by a later release of Equipoise (checkpoint version {version}; this one reads {VERSION})",
                    path.display()
                );
                return Err(
                    Error::config(message).next("resume with that release, or move the checkpoint away")
                );
            }
        };
        let mut files = BTreeMap::new();
        for entry in &manifest.files {
            match self.read_if_exists(&path.join(&entry.name))? {
                Some(bytes) if entry.matches(&bytes) => drop(files.insert(entry.name.clone(), bytes)),
                Some(bytes) if bytes.len() as u64 != entry.bytes => {
                    return Ok(Err(format!("{} has {} of {} bytes", entry.name, bytes.len(), entry.bytes)));
                }
                Some(_) => return Ok(Err(format!("{} does not have its hash {}", entry.name, entry.xxh3))),
                None => return Ok(Err(format!("{} is missing", entry.name))),
            }
        }
        Ok(Ok(Checkpoint { path, manifest, files }))
    }

    fn read_if_exists(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        match self.vfs.read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::IsADirectory) => Ok(None),
            Err(error) => Err(Error::io("read", path, error)),
        }
    }

    /// Renames an invalid checkpoint to the first free `*.corrupt`, `*.corrupt-2`, ...
    fn set_aside(&self, step: u64) -> Result<PathBuf> {
        self.guard.as_ref().map_or(Ok(()), LeaseGuard::check)?;
        let path = self.path(step);
        for number in 1u32.. {
            let suffix = if number == 1 { "corrupt".to_string() } else { format!("corrupt-{number}") };
            let moved = path.with_extension(suffix);
            if !self.vfs.exists(&moved).map_err(|error| Error::io("read", &moved, error))? {
                self.vfs
                    .rename(&path, &moved)
                    .map_err(|error| failed(&*self.vfs, "rename to", &moved, 0, error))?;
                sync_parent(&*self.vfs, &moved)?;
                return Ok(moved);
            }
        }
        bail!(Io, "{}: too many damaged copies", path.display())
    }

    /// Removes all but the newest `count` checkpoints. Called after a newer one was saved, never before.
    ///
    /// Each is renamed first, so that no half-removed one is ever found under a checkpoint's name.
    ///
    /// # Errors
    /// 69 if the lease is lost, 74 if a directory cannot be renamed or removed.
    pub fn keep_last(&self, count: usize) -> Result<()> {
        let steps = self.steps()?;
        for &step in &steps[..steps.len().saturating_sub(count.max(1))] {
            self.guard.as_ref().map_or(Ok(()), LeaseGuard::check)?;
            let path = self.path(step);
            let doomed = scratch::sibling(&path, self.guard.as_ref())?;
            self.vfs
                .rename(&path, &doomed)
                .map_err(|error| failed(&*self.vfs, "rename to", &doomed, 0, error))?;
            // Before the removal: otherwise a power loss may undo the rename and keep the removal.
            sync_parent(&*self.vfs, &doomed)?;
            self.vfs
                .remove_dir_all(&doomed)
                .map_err(|error| failed(&*self.vfs, "remove", &doomed, 0, error))?;
        }
        Ok(())
    }
}

impl Staging<'_> {
    /// Where the files go: to tell the other ranks.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one file.
    ///
    /// # Errors
    /// 74 naming the path and what is free.
    pub fn add(&self, name: &str, bytes: &[u8]) -> Result<FileEntry> {
        let plain = Path::new(name).file_name().is_some_and(|last| last == name) && name != MANIFEST;
        ensure!(plain, Bug, "{name:?}: not a name for a file of a checkpoint");
        write_verified(&*self.checkpoints.vfs, &self.path.join(name), bytes)?;
        Ok(FileEntry::of(name, bytes))
    }

    /// Writes the manifest over the entries of all ranks and gives the directory its name. One rank calls it, once
    /// all have added their files.
    ///
    /// # Errors
    /// As [`Checkpoints::save`].
    pub fn finish(
        &self,
        world: usize,
        identity: &Identity,
        mut files: Vec<FileEntry>,
        user: Value,
    ) -> Result<PathBuf> {
        let Checkpoints { vfs, guard, .. } = self.checkpoints;
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let manifest = Manifest {
            version: VERSION,
            manifest_xxh3: NO_HASH.to_string(),
            step: self.step,
            world,
            identity: identity.clone(),
            files,
            user,
        };
        write_verified(&**vfs, &self.path.join(MANIFEST), manifest.to_text()?.as_bytes())?;
        vfs.sync_dir(&self.path)
            .map_err(|error| failed(&**vfs, "sync the directory", &self.path, 0, error))?;
        guard.as_ref().map_or(Ok(()), LeaseGuard::check)?;
        let path = self.checkpoints.path(self.step);
        if let Err(error) = vfs.rename(&self.path, &path) {
            let occupied = matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::DirectoryNotEmpty);
            if !occupied {
                return Err(failed(&**vfs, "rename to", &path, 0, error));
            }
            self.replace(&manifest, &path)?;
        }
        sync_parent(&**vfs, &path)?;
        Ok(path)
    }

    /// There is a checkpoint of this step already: keep an equal one, set an invalid one aside, refuse another.
    fn replace(&self, manifest: &Manifest, path: &Path) -> Result<()> {
        match self.checkpoints.verify(self.step)? {
            Ok(there) if there.manifest.holds_the_same(manifest) => self.abandon(),
            Ok(_) => {
                let message = format!("{}: another process saved other content at this step", path.display());
                return Err(Error::new(ExitCode::Owned, message).next("resume from that checkpoint"));
            }
            Err(_) => {
                self.checkpoints.set_aside(self.step)?;
                let vfs = &*self.checkpoints.vfs;
                vfs.rename(&self.path, path).map_err(|error| failed(vfs, "rename to", path, 0, error))?;
            }
        }
        Ok(())
    }

    /// Removes the staging directory, best effort: the next opening of the stage removes what is left.
    pub fn abandon(&self) {
        let _ = self.checkpoints.vfs.remove_dir_all(&self.path);
    }
}
