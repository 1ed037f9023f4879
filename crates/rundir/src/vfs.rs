//! The file system behind a trait, so that every failure of it can be produced in a test.
//!
//! The trait offers what the protocols need and nothing else: there is no way to open an existing file for
//! overwriting, so a torn file under its final name cannot be written by mistake.

use std::io::{self, Read};
use std::path::Path;

/// A file open for writing.
pub trait VfsFile: Send {
    /// Writes all bytes at the end of what was written before (of the file, for [`Vfs::append`]).
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Cuts the file to `len` bytes: repairs the torn tail of a journal.
    fn set_len(&mut self, len: u64) -> io::Result<()>;

    /// Returns once the bytes are on disk. After an error the file must be given up: the kernel may have dropped the
    /// dirty pages, and a second call would then succeed without having written them.
    fn sync_data(&mut self) -> io::Result<()>;

    /// Closes, reporting what a plain drop would hide (NFS reports a full quota here).
    fn close(self: Box<Self>) -> io::Result<()>;
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// File name. Names that are not UTF-8 are not ours and are not listed.
    pub name: String,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// Size and kind of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Bytes.
    pub len: u64,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// What is left on a file system. Quotas are not in it: no portable call reports them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes that this user may still write.
    pub bytes: u64,
    /// Files that this user may still create; `u64::MAX` where the file system has no such limit.
    pub inodes: u64,
}

/// The operations that durability rests on.
pub trait Vfs: Send + Sync {
    /// Creates a file that must not exist (`AlreadyExists` otherwise).
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn VfsFile>>;

    /// Opens a file for appending, creating it if it is missing.
    fn append(&self, path: &Path) -> io::Result<Box<dyn VfsFile>>;

    /// Opens a file for reading from the start.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>>;

    /// Replaces `to` by `from` in one step. A directory replaces only an empty directory: over any other it fails,
    /// which makes it an exclusive claim.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes a directory and what is in it.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;

    /// Creates a directory that must not exist (`AlreadyExists` otherwise).
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Returns once the names in this directory are on disk.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Entries sorted by name.
    fn list(&self, path: &Path) -> io::Result<Vec<Entry>>;

    /// Size and kind.
    fn metadata(&self, path: &Path) -> io::Result<Metadata>;

    /// What is left on the file system that holds `path`.
    fn space(&self, path: &Path) -> io::Result<Space>;

    /// The whole file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open(path)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Whether there is anything under this name.
    fn exists(&self, path: &Path) -> io::Result<bool> {
        match self.metadata(path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Entries sorted by name; none if the directory is missing.
    fn list_if_exists(&self, path: &Path) -> io::Result<Vec<Entry>> {
        match self.list(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            entries => entries,
        }
    }
}
