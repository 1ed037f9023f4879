//! The file system of the operating system.
#![allow(clippy::disallowed_methods)] // The one place where files are really made.

use crate::failpoint::pass;
use crate::vfs::{Entry, Metadata, Space, Vfs, VfsFile};
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, IntoRawFd as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// The file system of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealFs;

/// Bytes after which the kernel is asked to write them: the disk then works while the next ones are copied, and the sync
/// at the end finds little left to do.
const PIECE: usize = 4 << 20;

struct RealFile {
    file: File,
    path: PathBuf,
    /// Bytes that the kernel was not asked to write yet.
    waiting: usize,
}

impl RealFile {
    fn open(file: File, path: &Path) -> Box<dyn VfsFile> {
        Box::new(Self { file, path: path.to_path_buf(), waiting: 0 })
    }

    /// Lets the kernel begin to write what is waiting. It reports errors at the sync, as of any other page.
    #[cfg(target_os = "linux")]
    fn start_writeback(&mut self) {
        let Ok(end) = self.file.stream_position() else { return };
        let length = std::mem::take(&mut self.waiting) as i64;
        // SAFETY: no memory is handed over.
        unsafe {
            let start = end as i64 - length;
            libc::sync_file_range(self.file.as_raw_fd(), start, length, libc::SYNC_FILE_RANGE_WRITE);
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn start_writeback(&mut self) {
        self.waiting = 0;
    }
}

impl VfsFile for RealFile {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        pass("write_all", &self.path)?;
        for piece in bytes.chunks(PIECE) {
            self.file.write_all(piece)?;
            self.waiting += piece.len();
            if self.waiting >= PIECE {
                self.start_writeback();
            }
        }
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        pass("set_len", &self.path)?;
        self.file.set_len(len)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        pass("sync_data", &self.path)?;
        self.file.sync_data()
    }

    fn close(self: Box<Self>) -> io::Result<()> {
        pass("close", &self.path)?;
        let descriptor = self.file.into_raw_fd();
        // SAFETY: `into_raw_fd` gave up ownership, so this is the only close of the descriptor.
        match unsafe { libc::close(descriptor) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Vfs for RealFs {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn VfsFile>> {
        pass("create_new", path)?;
        Ok(RealFile::open(File::create_new(path)?, path))
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn VfsFile>> {
        pass("append", path)?;
        Ok(RealFile::open(OpenOptions::new().append(true).create(true).open(path)?, path))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(File::open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        pass("rename", to)?;
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        pass("remove_file", path)?;
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        pass("remove_dir_all", path)?;
        fs::remove_dir_all(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        pass("create_dir", path)?;
        fs::create_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        pass("sync_dir", path)?;
        match File::open(path)?.sync_all() {
            // Some network and FUSE file systems cannot sync a directory; their servers order names themselves.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOTSUP)) => Ok(()),
            result => result,
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string() {
                entries.push(Entry { name, is_dir: entry.file_type()?.is_dir() });
            }
        }
        entries.sort();
        Ok(entries)
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        let metadata = fs::metadata(path)?;
        Ok(Metadata { len: metadata.len(), is_dir: metadata.is_dir() })
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: statvfs is plain data for which all zeros is a valid value.
        let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are valid for the call; the path ends with a NUL.
        if unsafe { libc::statvfs(path.as_ptr(), &mut stat) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // File systems without a table of inodes (btrfs, many network ones) report 0 in total.
        let inodes = if stat.f_files == 0 { u64::MAX } else { stat.f_favail };
        Ok(Space { bytes: stat.f_bavail.saturating_mul(stat.f_frsize), inodes })
    }
}
