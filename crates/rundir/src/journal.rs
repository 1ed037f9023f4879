//! Append-only JSON lines: what was acknowledged is there, in order.
//!
//! | failure | a reader finds |
//! |---|---|
//! | [`Journal::append`] returned `Ok` | the record, after a power loss too |
//! | it returned an error | all records before it and, if the file could not be cut back either, perhaps it |
//! | the process or the machine died in it | all records before it, and perhaps it |
//!
//! Only a final newline makes a line count, so a torn tail is never mistaken for a record; the next writer cuts it
//! off. One writer at a time: the owner of the stage, or of the chunk for a chunk's own journal. (`O_APPEND` is not
//! atomic across NFS clients.)

use crate::commit::{failed, sync_parent};
use crate::lease::LeaseGuard;
use crate::vfs::{Vfs, VfsFile};
use equipoise_base::{Error, ExitCode, Result, ResultExt as _, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What [`read`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Records<T> {
    /// The records, oldest first.
    pub records: Vec<T>,
    /// Complete lines that hold no such record.
    pub damaged: usize,
    /// Whether an unfinished line follows.
    pub torn: bool,
}

/// Reads a journal; one that does not exist is empty.
///
/// # Errors
/// 74 if the file cannot be read. Damage is counted, not an error.
pub fn read<T: DeserializeOwned>(vfs: &dyn Vfs, path: &Path) -> Result<Records<T>> {
    let bytes = read_bytes(vfs, path)?;
    let complete = complete_len(&bytes);
    let mut found = Records { records: Vec::new(), damaged: 0, torn: complete < bytes.len() };
    for line in bytes[..complete].split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        match serde_json::from_slice(line) {
            Ok(record) => found.records.push(record),
            Err(_) => found.damaged += 1,
        }
    }
    Ok(found)
}

fn read_bytes(vfs: &dyn Vfs, path: &Path) -> Result<Vec<u8>> {
    match vfs.read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        bytes => bytes.map_err(|error| Error::io("read", path, error)),
    }
}

/// Bytes up to and including the last newline.
fn complete_len(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1)
}

/// A journal open for appending.
pub struct Journal {
    vfs: Arc<dyn Vfs>,
    path: PathBuf,
    file: Box<dyn VfsFile>,
    guard: Option<LeaseGuard>,
    /// Bytes that are on disk.
    len: u64,
    /// A write failed, so the end of the file is unknown.
    failed: bool,
}

impl Journal {
    /// Opens a journal, creating it if needed and cutting off a torn tail. What it holds then is on disk: a record
    /// that a killed process wrote and this one acts upon cannot be lost any more.
    ///
    /// # Errors
    /// 69 if `guard` lost its lease, 74 if the file cannot be opened, cut or synced.
    pub fn open(vfs: Arc<dyn Vfs>, path: &Path, guard: Option<LeaseGuard>) -> Result<Self> {
        guard.as_ref().map_or(Ok(()), LeaseGuard::check)?;
        let bytes = read_bytes(&*vfs, path)?;
        let complete = complete_len(&bytes);
        let mut file = vfs.append(path).map_err(|error| failed(&*vfs, "open", path, 0, error))?;
        if complete < bytes.len() {
            file.set_len(complete as u64)
                .map_err(|error| failed(&*vfs, "cut the torn tail of", path, 0, error))?;
        }
        if !bytes.is_empty() {
            file.sync_data().map_err(|error| failed(&*vfs, "sync", path, 0, error))?;
        }
        sync_parent(&*vfs, path)?;
        Ok(Self { vfs, path: path.to_path_buf(), file, guard, len: complete as u64, failed: false })
    }

    /// Appends one record and returns once it is on disk.
    ///
    /// # Errors
    /// 69 if the lease is lost, 74 naming the path and what is free. After a failed write the journal stays failed:
    /// open it again, which repairs its tail.
    pub fn append<T: Serialize>(&mut self, record: &T) -> Result<()> {
        self.append_all(std::slice::from_ref(record))
    }

    /// [`Journal::append`] for several records with one write and one sync; if the process dies in it any number of them,
    /// from the first on, may be there.
    pub fn append_all<T: Serialize>(&mut self, records: &[T]) -> Result<()> {
        if self.failed {
            bail!(Io, "{}: an earlier write failed, and what it left is unknown", self.path.display());
        }
        let mut lines = Vec::new();
        for record in records {
            serde_json::to_writer(&mut lines, record)
                .or_exit(ExitCode::Bug, format!("{}: not expressible as JSON", self.path.display()))?;
            lines.push(b'\n');
        }
        self.guard.as_ref().map_or(Ok(()), LeaseGuard::check)?;
        let needed = lines.len() as u64;
        let write = |file: &mut dyn VfsFile| {
            file.write_all(&lines).map_err(|error| ("append to", error))?;
            file.sync_data().map_err(|error| ("sync", error))
        };
        if let Err((operation, error)) = write(&mut *self.file) {
            self.failed = true;
            // Best effort: after a failed sync the kernel takes what was written for clean. Left in place, it would
            // be seen by readers until a power loss, and then be a hole before the next record.
            let _ = self.file.set_len(self.len);
            return Err(failed(&*self.vfs, operation, &self.path, needed, error));
        }
        self.len += needed;
        Ok(())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{Call, FaultFs};
    use serde_json::{Value, json};

    fn path() -> &'static Path {
        Path::new("/journal.jsonl")
    }

    fn put(fs: &FaultFs, bytes: &[u8]) {
        let _ = fs.remove_file(path());
        fs.create_new(path()).unwrap().write_all(bytes).unwrap();
    }

    #[test]
    fn records_come_back_in_order() {
        let fs = FaultFs::new();
        assert_eq!(read::<Value>(&fs, path()).unwrap().records.len(), 0);
        let mut journal = Journal::open(Arc::new(fs.clone()), path(), None).unwrap();
        journal.append(&json!({"a": 1})).unwrap();
        journal.append_all(&[json!({"a": 2}), json!({"a": "x\ny"})]).unwrap();
        let found = read::<Value>(&fs, path()).unwrap();
        assert_eq!(found.records, [json!({"a": 1}), json!({"a": 2}), json!({"a": "x\ny"})]);
        assert_eq!((found.damaged, found.torn), (0, false));
    }

    #[test]
    fn every_torn_tail_is_ignored_and_repaired() {
        let whole = b"{\"a\":1}\n{\"a\":22}\n";
        for len in 0..=whole.len() {
            let fs = FaultFs::new();
            put(&fs, &whole[..len]);
            let expected = whole[..len].iter().filter(|&&byte| byte == b'\n').count();
            let found = read::<Value>(&fs, path()).unwrap();
            assert_eq!((found.records.len(), found.damaged), (expected, 0), "{len}");
            assert_eq!(found.torn, !matches!(len, 0 | 8 | 17), "{len}");
            Journal::open(Arc::new(fs.clone()), path(), None).unwrap().append(&json!({"b": 3})).unwrap();
            let found = read::<Value>(&fs, path()).unwrap();
            assert_eq!((found.records.len(), found.damaged, found.torn), (expected + 1, 0, false), "{len}");
        }
    }

    #[test]
    fn garbage_is_counted_and_never_panics() {
        let fs = FaultFs::new();
        put(&fs, b"{\"a\":1}\n\0\0\0\n\xff\xfe{\n\n{\"a\":\n[1]\n{\"a\":2}\n\0\0");
        #[derive(serde::Deserialize)]
        struct Line {
            a: u32,
        }
        let found = read::<Line>(&fs, path()).unwrap();
        assert_eq!(found.records.iter().map(|line| line.a).collect::<Vec<_>>(), [1, 1, 2]);
        assert_eq!((found.damaged, found.torn), (3, true));
        let mut stream = equipoise_base::rng::Key::new(0, "garbage").stream();
        for _ in 0..500 {
            let bytes: Vec<u8> = (0..stream.below(200)).map(|_| stream.bits() as u8).collect();
            put(&fs, &bytes);
            read::<Value>(&fs, path()).unwrap();
            Journal::open(Arc::new(fs.clone()), path(), None).unwrap();
        }
    }

    #[test]
    fn a_failed_write_or_sync_is_never_retried_as_success() {
        for call in [Call::Write, Call::SyncData] {
            let fs = FaultFs::new();
            let mut journal = Journal::open(Arc::new(fs.clone()), path(), None).unwrap();
            journal.append(&json!({"a": 1})).unwrap();
            let next = fs.calls().len() + usize::from(call == Call::SyncData);
            fs.fail_at(next, libc::EIO);
            let error = journal.append(&json!({"a": 2})).unwrap_err();
            assert_eq!(error.code(), ExitCode::Io);
            assert!(journal.append(&json!({"a": 3})).unwrap_err().message().contains("earlier write failed"));
            let mut journal = Journal::open(Arc::new(fs.clone()), path(), None).unwrap();
            assert_eq!(read::<Value>(&fs, path()).unwrap().records[0], json!({"a": 1}));
            journal.append(&json!({"a": 3})).unwrap();
        }
    }
}
