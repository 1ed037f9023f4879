//! Where a stage's files are, and how they get there: under the lease, through `rundir`. A rehearsal writes and removes
//! nothing.

use super::{Step, lock};
use equipoise_base::{Error, ExitCode, Result, bail};
use equipoise_nn::weights;
use equipoise_rundir::product::{self, Product};
use equipoise_rundir::vfs::VfsFile;
use equipoise_rundir::{LeaseGuard, Vfs, commit_bytes, create_dirs, json_bytes};
use serde::Serialize;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tch::Tensor;

/// Commits files of a stage from any thread, under its lease; in a rehearsal it does nothing.
#[derive(Clone)]
pub struct Committer {
    vfs: Arc<dyn Vfs>,
    guard: LeaseGuard,
    rehearses: bool,
}

impl Committer {
    /// For a stage whose lease this guards.
    pub fn new(vfs: Arc<dyn Vfs>, guard: LeaseGuard) -> Self {
        Self { vfs, guard, rehearses: false }
    }

    /// Commits a file, making its folder; how long that took.
    ///
    /// # Errors
    /// 69 if the lease is lost, 74 if it cannot be written.
    pub fn commit(&self, path: &Path, bytes: &[u8]) -> Result<Duration> {
        if self.rehearses {
            return Ok(Duration::ZERO);
        }
        let start = Instant::now();
        commit_bytes(&*self.vfs, &prepared(&*self.vfs, path)?, bytes, Some(&self.guard))?;
        Ok(start.elapsed())
    }

    /// Removes a file that may not be there.
    ///
    /// # Errors
    /// 69 if the lease is lost, 74 if it cannot be removed.
    pub fn remove_if_there(&self, path: &Path) -> Result<()> {
        if self.rehearses {
            return Ok(());
        }
        self.guard.check()?;
        match self.vfs.remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(|error| Error::io("remove", path, error)),
        }
    }
}

impl Step {
    /// What commits for this stage in another thread; tell [`Step::measured_commit`] how long that took.
    pub fn committer(&self) -> Committer {
        Committer { rehearses: self.rehearses(), ..Committer::new(self.vfs.clone(), self.guard.clone()) }
    }

    /// The file system.
    pub fn vfs(&self) -> &dyn Vfs {
        &*self.vfs
    }

    /// Folder of this stage.
    pub fn dir(&self) -> &Path {
        self.dir.root()
    }

    /// Folder of another stage.
    pub fn stage_path(&self, name: &str) -> PathBuf {
        self.run.root().join("stages").join(name)
    }

    /// Folder of a synthetic set.
    pub fn set_path(&self, set: &str, seed: u64) -> PathBuf {
        self.run.root().join("sets").join(format!("{set}.k{seed}"))
    }

    /// Where to read what another stage made: its copy on this node's own disk, if the batch script made one
    /// (docs/design/slurm.md), else the original.
    pub fn nearest(&self, path: PathBuf) -> PathBuf {
        let scratch = std::env::var_os("EQUIPOISE_SCRATCH").filter(|scratch| !scratch.is_empty());
        nearest_in(scratch.map(PathBuf::from), self.run.root(), path)
    }

    /// A feature file.
    ///
    /// # Errors
    /// 78 if a name cannot be part of a path.
    pub fn features_path(&self, extractor: &str, split: &str) -> Result<PathBuf> {
        self.run.features(extractor, split)
    }

    /// Commits a file under the lease, making its folder. What rank 0 commits, shards apart, is on record once the stage is
    /// done.
    ///
    /// # Errors
    /// 69 if the lease is lost, 74 if it cannot be written.
    pub fn commit(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.measured_commit(self.committer().commit(path, bytes)?);
        let name = path.strip_prefix(self.run.root()).ok().and_then(Path::to_str);
        let name = name.filter(|name| !name.starts_with("sets/"));
        if let (Some(root), Some(name)) = (&self.root, name) {
            lock(root).products.insert(name.to_string(), Product::of(bytes));
        }
        Ok(())
    }

    /// The tensors of a safetensors file: a user's, or one that another stage has made.
    ///
    /// # Errors
    /// 65 if it is none, or not what that stage has made; 74 if it cannot be read.
    pub fn weights(&self, path: &Path) -> Result<Vec<(String, Tensor)>> {
        let bytes = self.vfs.read(path).map_err(|error| Error::io("read", path, error))?;
        product::check(&*self.vfs, &self.run, path, &bytes)?;
        weights::from_bytes(&path.display().to_string(), bytes)
    }

    /// How to get a file of the run again, if the error is about one that is damaged or gone.
    pub(super) fn repair(&self, error: &Error) -> Option<String> {
        let root = self.run.root();
        let (file, _) = error.message().split_once(": ").filter(|_| error.code() == ExitCode::BadData)?;
        let name = Path::new(file).strip_prefix(root).ok()?;
        if name.starts_with("sets") {
            return Some(format!("equipoise shards regenerate --failed {}", root.display()));
        }
        let made = name.starts_with("stages") || name.starts_with("features");
        made.then(|| format!("remove it, and equipoise resume {} makes it again", root.display()))
    }

    /// [`Step::commit`] of a value as JSON.
    ///
    /// # Errors
    /// As [`Step::commit`].
    pub fn commit_json<T: Serialize>(&self, path: &Path, value: &T) -> Result<()> {
        self.commit(path, &json_bytes(path, value)?)
    }

    /// Removes a damaged file, to be made again.
    ///
    /// # Errors
    /// 69 if the lease is lost, 74 if it cannot be removed.
    pub fn discard(&self, path: &Path) -> Result<()> {
        if self.rehearses() {
            return Ok(());
        }
        self.guard.check()?;
        self.vfs.remove_file(path).map_err(|error| Error::io("remove", path, error))
    }

    /// Removes a folder with what is in it, if it is there.
    ///
    /// # Errors
    /// As [`Step::discard`].
    pub fn remove_folder(&self, path: &Path) -> Result<()> {
        if self.rehearses() {
            return Ok(());
        }
        self.guard.check()?;
        match self.vfs.remove_dir_all(path) {
            // Not there, or another task of the array was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(|error| Error::io("remove", path, error)),
        }
    }

    /// Refuses to begin what cannot fit: `bytes` of images in `files` files, with a tenth to spare.
    ///
    /// # Errors
    /// 73 naming what is needed and what is free.
    pub fn require_space(&self, bytes: u64, files: u64) -> Result<()> {
        let path = self.run.root();
        let Ok(space) = self.vfs.space(path) else { return Ok(()) };
        let (bytes, files) = (bytes + bytes / 10, files + files / 10);
        if space.bytes < bytes || space.inodes < files {
            bail!(
                NoSpace,
                "{}: the stage needs {bytes} bytes and {files} files, free are {} bytes and {} files",
                path.display(),
                space.bytes,
                space.inodes
            );
        }
        Ok(())
    }
}

/// The path, its folder made.
pub(super) fn prepared(vfs: &dyn Vfs, path: &Path) -> Result<PathBuf> {
    if let Some(parent) = path.parent() {
        create_dirs(vfs, parent)?;
    }
    Ok(path.to_owned())
}

/// A log file as the standard library writes to files.
pub(super) struct Log(pub(super) Box<dyn VfsFile>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn nearest_in(scratch: Option<PathBuf>, run: &Path, path: PathBuf) -> PathBuf {
    let copy = scratch.and_then(|scratch| Some(scratch.join(path.strip_prefix(run).ok()?)));
    copy.filter(|copy| copy.exists()).unwrap_or(path)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_read_only_if_it_is_there() {
        let scratch = tempfile::tempdir().unwrap();
        let nearest = |path: &str| nearest_in(Some(scratch.path().into()), Path::new("/run"), path.into());
        assert_eq!(nearest("/run/stages/prepare.a/split.h5"), Path::new("/run/stages/prepare.a/split.h5"));
        let copy = scratch.path().join("stages/prepare.a/split.h5");
        std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
        std::fs::write(&copy, "").unwrap();
        assert_eq!(nearest("/run/stages/prepare.a/split.h5"), copy);
        assert_eq!(
            nearest("/elsewhere/stages/prepare.a/split.h5"),
            Path::new("/elsewhere/stages/prepare.a/split.h5")
        );
        assert_eq!(nearest_in(None, Path::new("/run"), "/run/x".into()), Path::new("/run/x"));
    }
}
