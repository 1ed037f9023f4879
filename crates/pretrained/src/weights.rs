//! Safetensors files mapped into memory: names, shapes and bytes of their tensors.

use crate::locate::Located;
use equipoise_base::{Error, ExitCode, Result, ResultExt as _, bail, ensure};
use memmap2::{Mmap, UncheckedAdvice};
use safetensors::SafeTensors;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use safetensors::Dtype;

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Type of its values.
    pub dtype: Dtype,
    /// Sizes of its dimensions; row-major.
    pub shape: Vec<usize>,
    file: usize,
    range: Range<usize>,
}

impl TensorInfo {
    /// Number of values.
    pub fn count(&self) -> u64 {
        self.shape.iter().map(|&size| size as u64).product()
    }

    /// Whether it holds floating-point numbers of a common kind.
    pub fn is_float(&self) -> bool {
        matches!(self.dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64)
    }
}

/// The weight files of a component.
#[derive(Debug)]
pub struct WeightFiles {
    /// What a person would call all of them: the file, or the index.
    source: PathBuf,
    files: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl WeightFiles {
    /// Maps one file.
    ///
    /// # Errors
    /// As [`crate::Component::weights`].
    pub fn open_file(path: &Path) -> Result<Self> {
        Self::open(&Located::Single(path.to_owned()))
    }

    /// Maps all files and reads their headers.
    pub(crate) fn open(located: &Located) -> Result<Self> {
        match located {
            Located::Single(path) => {
                let mut this = Self::empty(path);
                this.tensors = this.map(path)?;
                Ok(this)
            }
            Located::Sharded { index, tensors } => {
                let mut this = Self::empty(index);
                for path in tensors.values().collect::<BTreeSet<_>>() {
                    let found = this.map(path).map_err(|error| error.context(index.display()))?;
                    this.add_shard(path, found, tensors)?;
                }
                this.expect_all(tensors)?;
                Ok(this)
            }
        }
    }

    /// The file, or the index of the shards; for messages.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// Tensors by name, in name order.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The file that holds a tensor.
    pub fn file_of(&self, tensor: &TensorInfo) -> &Path {
        &self.files[tensor.file].0
    }

    /// Little-endian bytes of a tensor, in the page cache rather than in memory of ours.
    pub fn bytes(&self, tensor: &TensorInfo) -> &[u8] {
        &self.files[tensor.file].1[tensor.range.clone()]
    }

    /// Gives back the memory of a tensor that is not needed soon, so that a file is never in memory beside what was made
    /// of it. Asked for again, it is read again.
    pub fn release(&self, tensor: &TensorInfo) {
        let (map, range) = (&self.files[tensor.file].1, &tensor.range);
        // SAFETY: nothing can be lost: the mapping is read-only, and its content is that of the file.
        let advised =
            unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
        // Only advice: where it is not taken, memory is given back when the files are closed.
        drop(advised);
    }

    /// Paths of the weight files, in name order, without the index.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    /// Number of parameters: floating-point values. Old files hold tables of positions too.
    pub fn count(&self) -> u64 {
        self.tensors.values().filter(|tensor| tensor.is_float()).map(TensorInfo::count).sum()
    }

    /// Size of all tensors in bytes.
    pub fn byte_size(&self) -> u64 {
        self.tensors.values().map(|tensor| tensor.range.len() as u64).sum()
    }

    /// Number of values by type, such as `F16`.
    pub fn count_by_dtype(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for tensor in self.tensors.values() {
            *counts.entry(format!("{:?}", tensor.dtype)).or_default() += tensor.count();
        }
        counts
    }

    fn empty(source: &Path) -> Self {
        Self { source: source.to_owned(), files: Vec::new(), tensors: BTreeMap::new() }
    }

    /// Maps a file and keeps it; its tensors.
    fn map(&mut self, path: &Path) -> Result<BTreeMap<String, TensorInfo>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                bail!(BadData, "{}: missing", path.display())
            }
            result => result.map_err(|error| Error::io("open", path, error))?,
        };
        // SAFETY: the mapping is read-only. Somebody else may change the file under it: they would change weights that
        // a run is using, which no way of reading a file survives in a meaningful manner.
        let map = unsafe { Mmap::map(&file) }.map_err(|error| Error::io("map", path, error))?;
        let tensors = header(path, &map, self.files.len())?;
        self.files.push((path.to_owned(), map));
        Ok(tensors)
    }

    fn add_shard(
        &mut self,
        path: &Path,
        found: BTreeMap<String, TensorInfo>,
        index: &BTreeMap<String, PathBuf>,
    ) -> Result<()> {
        for (name, tensor) in found {
            let place = index.get(&name).map(PathBuf::as_path);
            ensure!(
                place == Some(path),
                BadData,
                "{}: tensor '{name}' is in {}, the index {}",
                self.source.display(),
                path.display(),
                place.map_or("does not name it".into(), |place| format!("says {}", place.display()))
            );
            self.tensors.insert(name, tensor);
        }
        Ok(())
    }

    fn expect_all(&self, index: &BTreeMap<String, PathBuf>) -> Result<()> {
        match index.iter().find(|(name, _)| !self.tensors.contains_key(*name)) {
            Some((name, path)) => {
                bail!(
                    BadData,
                    "{}: tensor '{name}' is missing: {} names it",
                    path.display(),
                    self.source.display()
                )
            }
            None => Ok(()),
        }
    }
}

/// Reads the header, which must describe the file to its last byte.
fn header(path: &Path, bytes: &[u8], file: usize) -> Result<BTreeMap<String, TensorInfo>> {
    let views = match SafeTensors::deserialize(bytes) {
        Err(safetensors::SafeTensorError::MetadataIncompleteBuffer) => {
            bail!(
                BadData,
                "{}: truncated or padded: {} bytes are not what its header says",
                path.display(),
                bytes.len()
            )
        }
        result => {
            result.or_exit(ExitCode::BadData, format!("{}: not a whole safetensors file", path.display()))?
        }
    };
    let start = bytes.as_ptr() as usize;
    let tensors = views.tensors().into_iter().map(|(name, view)| {
        let offset = view.data().as_ptr() as usize - start;
        let range = offset..offset + view.data().len();
        (name, TensorInfo { dtype: view.dtype(), shape: view.shape().to_vec(), file, range })
    });
    Ok(tensors.collect())
}
