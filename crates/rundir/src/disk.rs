//! A disk that remembers what was synced: the model behind [`FaultFs`](crate::fault::FaultFs).
//!
//! It grants no more than POSIX does. Bytes survive a power loss if their file was synced, names if their directory
//! was; of everything else any subset may survive, a write also in part or garbled. One rename is atomic.

use equipoise_base::rng::Stream;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path};

pub(crate) type Inode = u64;
const ROOT: Inode = 0;

#[derive(Clone)]
enum Node {
    File(FileNode),
    Dir(DirNode),
}

/// `live` is what running processes see, `durable` what was synced, `pending` what leads from one to the other.
#[derive(Clone, Default)]
struct FileNode {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<FileChange>,
}

#[derive(Clone)]
enum FileChange {
    Write { offset: usize, bytes: Vec<u8> },
    SetLen(usize),
}

#[derive(Clone, Default)]
struct DirNode {
    live: BTreeMap<String, Inode>,
    durable: BTreeMap<String, Inode>,
    pending: Vec<DirChange>,
}

#[derive(Clone)]
enum DirChange {
    Link(String, Inode),
    Unlink(String),
    Rename { from: String, to: String, inode: Inode },
}

/// Which un-synced changes outlive a power loss.
pub(crate) enum Luck<'a> {
    All,
    None,
    Some(&'a mut Stream),
}

#[derive(Clone)]
pub(crate) struct Disk {
    nodes: BTreeMap<Inode, Node>,
}

pub(crate) fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

impl Default for Disk {
    fn default() -> Self {
        Self { nodes: BTreeMap::from([(ROOT, Node::Dir(DirNode::default()))]) }
    }
}

impl Disk {
    fn names(path: &Path) -> Vec<String> {
        let normal = path.components().filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
            _ => None,
        });
        normal.collect()
    }

    fn dir(&self, inode: Inode) -> io::Result<&DirNode> {
        match self.nodes.get(&inode) {
            Some(Node::Dir(dir)) => Ok(dir),
            Some(Node::File(_)) => Err(errno(libc::ENOTDIR)),
            None => Err(errno(libc::ENOENT)),
        }
    }

    fn dir_mut(&mut self, inode: Inode) -> io::Result<&mut DirNode> {
        match self.nodes.get_mut(&inode) {
            Some(Node::Dir(dir)) => Ok(dir),
            Some(Node::File(_)) => Err(errno(libc::ENOTDIR)),
            None => Err(errno(libc::ENOENT)),
        }
    }

    fn file_mut(&mut self, inode: Inode) -> io::Result<&mut FileNode> {
        match self.nodes.get_mut(&inode) {
            Some(Node::File(file)) => Ok(file),
            Some(Node::Dir(_)) => Err(errno(libc::EISDIR)),
            None => Err(errno(libc::ENOENT)),
        }
    }

    pub(crate) fn find(&self, path: &Path) -> io::Result<Inode> {
        Self::names(path).iter().try_fold(ROOT, |inode, name| {
            self.dir(inode)?.live.get(name).copied().ok_or_else(|| errno(libc::ENOENT))
        })
    }

    fn find_parent(&self, path: &Path) -> io::Result<(Inode, String)> {
        let mut names = Self::names(path);
        let name = names.pop().ok_or_else(|| errno(libc::EINVAL))?;
        let parent = self.find(&names.iter().collect::<std::path::PathBuf>())?;
        self.dir(parent)?;
        Ok((parent, name))
    }

    fn create(&mut self, path: &Path, node: Node) -> io::Result<Inode> {
        let (parent, name) = self.find_parent(path)?;
        if self.dir(parent)?.live.contains_key(&name) {
            return Err(errno(libc::EEXIST));
        }
        let inode = self.nodes.last_key_value().map_or(ROOT, |(&last, _)| last) + 1;
        self.nodes.insert(inode, node);
        let parent = self.dir_mut(parent)?;
        parent.live.insert(name.clone(), inode);
        parent.pending.push(DirChange::Link(name, inode));
        Ok(inode)
    }

    pub(crate) fn create_file(&mut self, path: &Path) -> io::Result<Inode> {
        self.create(path, Node::File(FileNode::default()))
    }

    pub(crate) fn create_dir(&mut self, path: &Path) -> io::Result<()> {
        self.create(path, Node::Dir(DirNode::default())).map(|_| ())
    }

    pub(crate) fn len(&self, inode: Inode) -> io::Result<(u64, bool)> {
        match self.nodes.get(&inode) {
            Some(Node::File(file)) => Ok((file.live.len() as u64, false)),
            Some(Node::Dir(_)) => Ok((0, true)),
            None => Err(errno(libc::ENOENT)),
        }
    }

    pub(crate) fn contents(&self, inode: Inode) -> io::Result<Vec<u8>> {
        match self.nodes.get(&inode) {
            Some(Node::File(file)) => Ok(file.live.clone()),
            Some(Node::Dir(_)) => Err(errno(libc::EISDIR)),
            None => Err(errno(libc::ENOENT)),
        }
    }

    pub(crate) fn list(&self, path: &Path) -> io::Result<Vec<(String, bool)>> {
        let dir = self.dir(self.find(path)?)?;
        let is_dir = |inode: &Inode| matches!(self.nodes.get(inode), Some(Node::Dir(_)));
        Ok(dir.live.iter().map(|(name, inode)| (name.clone(), is_dir(inode))).collect())
    }

    pub(crate) fn write(&mut self, inode: Inode, bytes: &[u8]) -> io::Result<()> {
        let file = self.file_mut(inode)?;
        let offset = file.live.len();
        file.live.extend_from_slice(bytes);
        file.pending.push(FileChange::Write { offset, bytes: bytes.to_vec() });
        Ok(())
    }

    pub(crate) fn set_len(&mut self, inode: Inode, len: usize) -> io::Result<()> {
        let file = self.file_mut(inode)?;
        file.live.resize(len, 0);
        file.pending.push(FileChange::SetLen(len));
        Ok(())
    }

    pub(crate) fn sync_file(&mut self, inode: Inode) -> io::Result<()> {
        let file = self.file_mut(inode)?;
        file.durable = file.survivor(&mut Luck::All);
        file.pending.clear();
        Ok(())
    }

    /// What a failed sync leaves: pages that the kernel takes for clean, so that no later sync writes them.
    pub(crate) fn forget_file(&mut self, inode: Inode) -> io::Result<()> {
        self.file_mut(inode)?.pending.clear();
        Ok(())
    }

    pub(crate) fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        let inode = self.find(path)?;
        let dir = self.dir_mut(inode)?;
        dir.durable = dir.live.clone();
        dir.pending.clear();
        Ok(())
    }

    fn unlink(&mut self, parent: Inode, name: &str) -> io::Result<()> {
        let parent = self.dir_mut(parent)?;
        parent.live.remove(name).ok_or_else(|| errno(libc::ENOENT))?;
        parent.pending.push(DirChange::Unlink(name.to_string()));
        Ok(())
    }

    pub(crate) fn remove_file(&mut self, path: &Path) -> io::Result<()> {
        let inode = self.find(path)?;
        self.file_mut(inode)?;
        let (parent, name) = self.find_parent(path)?;
        self.unlink(parent, &name)
    }

    /// Removes the entries of a directory, at most `limit` of them, then itself if none is left.
    pub(crate) fn remove_dir_all(&mut self, path: &Path, limit: usize) -> io::Result<()> {
        let entries = self.list(path)?;
        for (name, is_dir) in entries.iter().take(limit) {
            let child = path.join(name);
            if *is_dir { self.remove_dir_all(&child, usize::MAX)? } else { self.remove_file(&child)? }
        }
        if limit < entries.len() {
            return Err(errno(libc::EIO));
        }
        let (parent, name) = self.find_parent(path)?;
        self.unlink(parent, &name)
    }

    pub(crate) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let inode = self.find(from)?;
        let (from_dir, from_name) = self.find_parent(from)?;
        let (to_dir, to_name) = self.find_parent(to)?;
        if let Some(target) = self.dir(to_dir)?.live.get(&to_name) {
            match (self.nodes.get(&inode), self.nodes.get(target)) {
                (Some(Node::File(_)), Some(Node::Dir(_))) => return Err(errno(libc::EISDIR)),
                (Some(Node::Dir(_)), Some(Node::File(_))) => return Err(errno(libc::ENOTDIR)),
                (Some(Node::Dir(_)), Some(Node::Dir(dir))) if !dir.live.is_empty() => {
                    return Err(errno(libc::ENOTEMPTY));
                }
                _ => {}
            }
        }
        self.dir_mut(from_dir)?.live.remove(&from_name);
        self.dir_mut(to_dir)?.live.insert(to_name.clone(), inode);
        if from_dir == to_dir {
            let change = DirChange::Rename { from: from_name, to: to_name, inode };
            self.dir_mut(to_dir)?.pending.push(change);
        } else {
            self.dir_mut(from_dir)?.pending.push(DirChange::Unlink(from_name));
            self.dir_mut(to_dir)?.pending.push(DirChange::Link(to_name, inode));
        }
        Ok(())
    }

    /// Bytes and number of the files and directories that have a name.
    pub(crate) fn used(&self) -> (u64, u64) {
        let (mut bytes, mut seen, mut open) = (0, BTreeSet::new(), vec![ROOT]);
        while let Some(inode) = open.pop() {
            if !seen.insert(inode) {
                continue;
            }
            match self.nodes.get(&inode) {
                Some(Node::File(file)) => bytes += file.live.len() as u64,
                Some(Node::Dir(dir)) => open.extend(dir.live.values()),
                None => {}
            }
        }
        (bytes, seen.len() as u64)
    }

    /// The disk as it is found after a power loss.
    pub(crate) fn after_power_loss(&self, mut luck: Luck) -> Disk {
        let mut nodes = BTreeMap::new();
        for (&inode, node) in &self.nodes {
            let node = match node {
                Node::File(file) => {
                    let live = file.survivor(&mut luck);
                    Node::File(FileNode { durable: live.clone(), live, ..FileNode::default() })
                }
                Node::Dir(dir) => {
                    let live = dir.survivor(&mut luck);
                    Node::Dir(DirNode { durable: live.clone(), live, pending: Vec::new() })
                }
            };
            nodes.insert(inode, node);
        }
        Disk { nodes }
    }
}

impl FileNode {
    fn survivor(&self, luck: &mut Luck) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for change in &self.pending {
            match (change, &mut *luck) {
                (_, Luck::None) => {}
                (FileChange::SetLen(len), Luck::All) => bytes.resize(*len, 0),
                (FileChange::SetLen(len), Luck::Some(stream)) => {
                    if stream.bernoulli(0.5) {
                        bytes.resize(*len, 0);
                    }
                }
                (FileChange::Write { offset, bytes: written }, Luck::All) => {
                    put(&mut bytes, *offset, written)
                }
                (FileChange::Write { offset, bytes: written }, Luck::Some(stream)) => {
                    let mut written = written.clone();
                    match stream.below(5) {
                        0 => continue,
                        1 => written.truncate(stream.below(written.len() as u64 + 1) as usize),
                        // The length was recorded, the data was not.
                        2 => written.fill(0),
                        3 => written.iter_mut().for_each(|byte| *byte = stream.bits() as u8),
                        _ => {}
                    }
                    put(&mut bytes, *offset, &written);
                }
            }
        }
        bytes
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, written: &[u8]) {
    let end = offset + written.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(written);
}

impl DirNode {
    fn survivor(&self, luck: &mut Luck) -> BTreeMap<String, Inode> {
        let mut names = self.durable.clone();
        for change in &self.pending {
            let kept = match &mut *luck {
                Luck::All => true,
                Luck::None => false,
                Luck::Some(stream) => stream.bernoulli(0.5),
            };
            match change {
                _ if !kept => {}
                DirChange::Link(name, inode) => {
                    names.insert(name.clone(), *inode);
                }
                DirChange::Unlink(name) => {
                    names.remove(name);
                }
                DirChange::Rename { from, to, inode } => {
                    names.remove(from);
                    names.insert(to.clone(), *inode);
                }
            }
        }
        names
    }
}
