//! A file system in memory that loses power, runs full and fails on demand.
//!
//! The method is SQLite's (`src/test6.c`): run an operation, cut the power before its i-th call, keep any subset of
//! what was not synced, and require that what is found then is the state before or the state after.
//!
//! ```
//! use equipoise_rundir::{commit_bytes, fault::{FaultFs, Survivors}, vfs::Vfs};
//! let fs = FaultFs::new();
//! fs.power_off_at(4);
//! assert!(commit_bytes(&fs, "/a".as_ref(), b"new", None).is_err());
//! assert!(!fs.recover(Survivors::None).exists("/a".as_ref()).unwrap());
//! ```

use crate::disk::{Disk, Inode, Luck, errno};
use crate::vfs::{Entry, Metadata, Space, Vfs, VfsFile};
use equipoise_base::rng::Key;
use std::collections::BTreeMap;
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// Kind of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)] // Named as the calls are.
pub enum Call {
    CreateNew,
    Append,
    Open,
    Write,
    SetLen,
    SyncData,
    Close,
    Rename,
    RemoveFile,
    RemoveDirAll,
    CreateDir,
    SyncDir,
    List,
    Metadata,
}

/// Which un-synced changes outlive a power loss.
#[derive(Clone, Copy, Debug)]
pub enum Survivors<'a> {
    /// All: what a kill leaves.
    All,
    /// None.
    None,
    /// A random subset, writes possibly in part or garbled.
    Subset(Key<'a>),
}

/// The file system. Clones share one disk; [`FaultFs::fork`] copies it.
#[derive(Clone, Default)]
pub struct FaultFs(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    disk: Disk,
    calls: Vec<(Call, PathBuf)>,
    power_off_at: Option<usize>,
    fail_at: BTreeMap<usize, i32>,
    garble_at: Option<usize>,
    ignored_sync: Option<usize>,
    syncs: usize,
    max_bytes: Option<u64>,
    max_inodes: Option<u64>,
    observer: Option<Observer>,
}

/// Told of every call before it is made: on the stack of whoever makes it.
type Observer = Arc<dyn Fn(Call) + Send + Sync>;

struct FaultFile {
    fs: FaultFs,
    inode: Inode,
    path: PathBuf,
}

impl FaultFs {
    /// An empty disk without faults.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn with_disk(disk: Disk) -> Self {
        Self(Arc::new(Mutex::new(State { disk, ..State::default() })))
    }

    /// A copy of the disk as running processes see it, without faults or history; what is un-synced stays so.
    pub fn fork(&self) -> Self {
        Self::with_disk(self.state().disk.clone())
    }

    /// The disk as it is found when the power comes back, without faults or history.
    pub fn recover(&self, survivors: Survivors) -> Self {
        let state = self.state();
        Self::with_disk(match survivors {
            Survivors::All => state.disk.after_power_loss(Luck::All),
            Survivors::None => state.disk.after_power_loss(Luck::None),
            Survivors::Subset(key) => state.disk.after_power_loss(Luck::Some(&mut key.stream())),
        })
    }

    /// Puts everything on disk.
    pub fn settle(&self) {
        let mut state = self.state();
        state.disk = state.disk.after_power_loss(Luck::All);
    }

    /// The calls so far, with their paths.
    pub fn calls(&self) -> Vec<(Call, PathBuf)> {
        self.state().calls.clone()
    }

    /// The syncs so far, of files and directories.
    pub fn syncs(&self) -> usize {
        self.state().syncs
    }

    /// Cuts the power before call `index` (from 0): it and all later ones fail without effect.
    pub fn power_off_at(&self, index: usize) {
        self.state().power_off_at = Some(index);
    }

    /// Makes call `index` (from 0) fail with this `errno`: a write after half of its bytes, a removal of a directory
    /// after one entry, anything else without effect.
    pub fn fail_at(&self, index: usize, errno: i32) {
        self.state().fail_at.insert(index, errno);
    }

    /// Makes call `index` (from 0), if it is a write, store other bytes and report success, as failing memory does.
    pub fn garble_at(&self, index: usize) {
        self.state().garble_at = Some(index);
    }

    /// Makes sync `index` (from 0, files and directories) return without syncing: the mutation that every proof of
    /// durability must notice.
    pub fn ignore_sync(&self, index: usize) {
        self.state().ignored_sync = Some(index);
    }

    /// Sets how many bytes fit, if there is a limit: a write takes what fits, then fails with `ENOSPC`.
    pub fn limit_bytes(&self, limit: Option<u64>) {
        self.state().max_bytes = limit;
    }

    /// Sets how many files and directories fit, the root included, if there is a limit.
    pub fn limit_inodes(&self, limit: Option<u64>) {
        self.state().max_inodes = limit;
    }

    /// Lets `observer` know of every call before it is made, on the caller's stack; what it does to the disk is what
    /// another process does at that moment.
    pub fn observe(&self, observer: Arc<dyn Fn(Call) + Send + Sync>) {
        self.state().observer = Some(observer);
    }

    /// Bytes, and files and directories, in use.
    pub fn used(&self) -> (u64, u64) {
        self.state().disk.used()
    }

    /// Counts a call and applies the faults that are due.
    fn enter(&self, call: Call, path: &Path) -> Result<MutexGuard<'_, State>, (MutexGuard<'_, State>, i32)> {
        // Not while the disk is locked: the observer may change it.
        let observer = self.state().observer.clone();
        if let Some(observer) = observer {
            observer(call);
        }
        let mut state = self.state();
        let index = state.calls.len();
        state.calls.push((call, path.to_path_buf()));
        if state.power_off_at.is_some_and(|limit| index >= limit) {
            // `ENODEV` tells a dead machine from an injected `EIO` whose half-done effects apply.
            return Err((state, libc::ENODEV));
        }
        match state.fail_at.get(&index).copied() {
            Some(code) => Err((state, code)),
            None => Ok(state),
        }
    }

    fn plain(&self, call: Call, path: &Path) -> io::Result<MutexGuard<'_, State>> {
        self.enter(call, path).map_err(|(_, code)| errno(code))
    }

    fn handle(&self, inode: Inode, path: &Path) -> Box<dyn VfsFile> {
        Box::new(FaultFile { fs: self.clone(), inode, path: path.to_path_buf() })
    }
}

impl State {
    /// Whether this sync is to be done; counts it.
    fn sync_is_real(&mut self) -> bool {
        let index = self.syncs;
        self.syncs += 1;
        self.ignored_sync != Some(index)
    }

    fn ensure_inode(&self) -> io::Result<()> {
        match self.max_inodes {
            Some(limit) if self.disk.used().1 >= limit => Err(errno(libc::ENOSPC)),
            _ => Ok(()),
        }
    }
}

impl VfsFile for FaultFile {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.fs.enter(Call::Write, &self.path) {
            Ok(mut state) => {
                let room = state.max_bytes.map(|limit| limit.saturating_sub(state.disk.used().0));
                let fits = room.map_or(bytes.len(), |room| bytes.len().min(room as usize));
                let mut written = bytes[..fits].to_vec();
                if state.garble_at.is_some_and(|index| index + 1 == state.calls.len()) {
                    written.iter_mut().for_each(|byte| *byte = !*byte);
                }
                state.disk.write(self.inode, &written)?;
                if fits < bytes.len() { Err(errno(libc::ENOSPC)) } else { Ok(()) }
            }
            Err((_, libc::ENODEV)) => Err(errno(libc::ENODEV)),
            Err((mut state, code)) => {
                state.disk.write(self.inode, &bytes[..bytes.len() / 2])?;
                Err(errno(code))
            }
        }
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.fs.plain(Call::SetLen, &self.path)?.disk.set_len(self.inode, len as usize)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        match self.fs.enter(Call::SyncData, &self.path) {
            Ok(mut state) => {
                if state.sync_is_real() {
                    state.disk.sync_file(self.inode)
                } else {
                    Ok(())
                }
            }
            Err((_, libc::ENODEV)) => Err(errno(libc::ENODEV)),
            Err((mut state, code)) => {
                state.disk.forget_file(self.inode)?;
                Err(errno(code))
            }
        }
    }

    fn close(self: Box<Self>) -> io::Result<()> {
        self.fs.plain(Call::Close, &self.path).map(|_| ())
    }
}

impl Vfs for FaultFs {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn VfsFile>> {
        let inode = {
            let mut state = self.plain(Call::CreateNew, path)?;
            state.ensure_inode()?;
            state.disk.create_file(path)?
        };
        Ok(self.handle(inode, path))
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn VfsFile>> {
        let inode = {
            let mut state = self.plain(Call::Append, path)?;
            match state.disk.find(path) {
                Ok(inode) => inode,
                Err(_) => {
                    state.ensure_inode()?;
                    state.disk.create_file(path)?
                }
            }
        };
        Ok(self.handle(inode, path))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        let state = self.plain(Call::Open, path)?;
        let inode = state.disk.find(path)?;
        Ok(Box::new(Cursor::new(state.disk.contents(inode)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.plain(Call::Rename, from)?.disk.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.plain(Call::RemoveFile, path)?.disk.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        match self.enter(Call::RemoveDirAll, path) {
            Ok(mut state) => state.disk.remove_dir_all(path, usize::MAX),
            Err((_, libc::ENODEV)) => Err(errno(libc::ENODEV)),
            Err((mut state, code)) => {
                state.disk.remove_dir_all(path, 1)?;
                Err(errno(code))
            }
        }
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.plain(Call::CreateDir, path)?;
        state.ensure_inode()?;
        state.disk.create_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.plain(Call::SyncDir, path)?;
        if state.sync_is_real() { state.disk.sync_dir(path) } else { Ok(()) }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let entries = self.plain(Call::List, path)?.disk.list(path)?;
        Ok(entries.into_iter().map(|(name, is_dir)| Entry { name, is_dir }).collect())
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        let state = self.plain(Call::Metadata, path)?;
        let (len, is_dir) = state.disk.len(state.disk.find(path)?)?;
        Ok(Metadata { len, is_dir })
    }

    fn space(&self, _: &Path) -> io::Result<Space> {
        let state = self.state();
        let (bytes, inodes) = state.disk.used();
        let left = |limit: Option<u64>, used| limit.map_or(u64::MAX, |limit| limit.saturating_sub(used));
        Ok(Space { bytes: left(state.max_bytes, bytes), inodes: left(state.max_inodes, inodes) })
    }
}
