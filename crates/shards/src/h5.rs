//! The only module that calls HDF5: flat files of named columns and attributes.
//!
//! HDF5 is not thread-safe in most builds; the binding takes one process-wide lock around every call and silences
//! HDF5's own error printing, and the few raw calls here go through the same lock ([`locked`]).
//!
//! Layout decisions that make files robust and equal content equal bytes:
//! - format bounds fixed to HDF5 1.10, whose metadata blocks all carry checksums;
//! - no time stamps, no variable-length data (it would live in an unchecked heap), no filters;
//! - space for every column allocated when it is made, so that no chunk index is needed.

mod image;

use crate::Kind;
use crate::guard::{self, FORMAT_VERSION, GUARD_LEN, Guard};
use equipoise_base::{Error, ExitCode, Result, ensure};
use hdf5::file::LibraryVersion;
use hdf5::plist::dataset_create::{AllocTime, FillTime};
use hdf5::types::TypeDescriptor;
use hdf5::{Datatype, File, H5Type};
use hdf5_sys::h5::herr_t;
use hdf5_sys::h5i::hid_t;
pub use image::FileImage;
use std::ffi::CString;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that metadata takes at most in a small file; only sizes the first allocation.
const METADATA_HINT: usize = 64 << 10;

/// Runs raw HDF5 calls under the process-wide lock, after the library is set up.
fn locked<T>(call: impl FnOnce() -> T) -> T {
    hdf5::sync::sync(call)
}

/// HDF5 takes two open in-memory files of one name for the same file.
fn unique_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("equipoise-memory-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Turns the status of a raw call into a result.
fn check(status: herr_t) -> hdf5::Result<()> {
    if status < 0 { Err(hdf5::Error::query()?) } else { Ok(()) }
}

/// A file being built in memory.
pub(crate) struct Writer {
    file: File,
    kind: Kind,
}

impl Writer {
    /// An empty file; `data_bytes` is what will be written, roughly.
    pub fn new(kind: Kind, data_bytes: usize) -> Result<Self> {
        let increment = (data_bytes + METADATA_HINT).next_multiple_of(1 << 16);
        let file = File::with_options()
            .with_fapl(|fapl| {
                fapl.core_options(increment, false).libver_bounds(LibraryVersion::V110, LibraryVersion::V110)
            })
            .with_fcpl(|fcpl| {
                fcpl.userblock(GUARD_LEN as u64).obj_track_times(false).attr_phase_change(u16::MAX.into(), 0)
            })
            .create(unique_name());
        let writer = Self { file: file.map_err(|error| build_error(kind, "the file", error))?, kind };
        writer.attr("format_version", FORMAT_VERSION)?;
        writer.text("kind", kind.name())?;
        Ok(writer)
    }

    /// Writes a contiguous column of any shape.
    pub fn column<T: H5Type>(&self, name: &str, shape: &[usize], data: &[T]) -> Result<()> {
        self.dataset(name, shape, None, data).map_err(|error| build_error(self.kind, name, error))
    }

    /// Writes a column in chunks of one row.
    pub fn column_by_row<T: H5Type>(&self, name: &str, shape: &[usize], data: &[T]) -> Result<()> {
        let chunk: Vec<usize> = std::iter::once(1).chain(shape[1..].iter().copied()).collect();
        self.dataset(name, shape, Some(chunk), data).map_err(|error| build_error(self.kind, name, error))
    }

    fn dataset<T: H5Type>(
        &self,
        name: &str,
        shape: &[usize],
        chunk: Option<Vec<usize>>,
        data: &[T],
    ) -> hdf5::Result<()> {
        let mut builder = self
            .file
            .new_dataset_builder()
            .empty::<T>()
            .fill_time(FillTime::Never)
            .alloc_time(Some(AllocTime::Early));
        if let Some(chunk) = chunk.filter(|_| !data.is_empty()) {
            builder = builder.chunk(chunk);
        }
        let dataset = builder.shape(shape).create(name)?;
        if data.is_empty() { Ok(()) } else { dataset.write_raw(data) }
    }

    /// Writes texts as a column of fixed-length UTF-8 strings.
    pub fn texts(&self, name: &str, texts: &[String]) -> Result<()> {
        let width = texts.iter().map(String::len).max().unwrap_or(0).max(1);
        let mut block = vec![0u8; width * texts.len()];
        for (cell, text) in block.chunks_exact_mut(width).zip(texts) {
            cell[..text.len()].copy_from_slice(text.as_bytes());
        }
        let write = || -> hdf5::Result<()> {
            let dtype = Datatype::from_descriptor(&TypeDescriptor::FixedUnicode(width))?;
            let builder = self.file.new_dataset_builder().empty_as(TypeDescriptor::FixedUnicode(width));
            let dataset = builder.alloc_time(Some(AllocTime::Early)).shape([texts.len()]).create(name)?;
            if texts.is_empty() {
                return Ok(());
            }
            // SAFETY: the type has `width` bytes and the column `texts.len()` values: exactly `block`.
            locked(|| unsafe {
                use hdf5_sys::{h5d::H5Dwrite, h5p::H5P_DEFAULT, h5s::H5S_ALL};
                check(H5Dwrite(
                    dataset.id(),
                    dtype.id(),
                    H5S_ALL,
                    H5S_ALL,
                    H5P_DEFAULT,
                    block.as_ptr().cast(),
                ))
            })
        };
        write().map_err(|error| build_error(self.kind, name, error))
    }

    /// Writes a scalar attribute of the file.
    pub fn attr<T: H5Type>(&self, name: &str, value: T) -> Result<()> {
        let write = || self.file.new_attr::<T>().create(name)?.write_scalar(&value);
        write().map_err(|error| build_error(self.kind, name, error))
    }

    /// Writes texts as attributes.
    pub fn text_attributes(&self, texts: &[(&str, &str)]) -> Result<()> {
        texts.iter().try_for_each(|(name, text)| self.text(name, text))
    }

    /// Writes a fixed-length UTF-8 attribute of the file.
    pub fn text(&self, name: &str, text: &str) -> Result<()> {
        // HDF5 has no strings of length 0.
        let bytes = if text.is_empty() { b"\0" } else { text.as_bytes() };
        let write = || -> hdf5::Result<()> {
            let descriptor = TypeDescriptor::FixedUnicode(bytes.len());
            let dtype = Datatype::from_descriptor(&descriptor)?;
            let attribute = self.file.new_attr_builder().empty_as(&descriptor).create(name)?;
            // SAFETY: a scalar of `bytes.len()` bytes.
            locked(|| unsafe {
                check(hdf5_sys::h5a::H5Awrite(attribute.id(), dtype.id(), bytes.as_ptr().cast()))
            })
        };
        write().map_err(|error| build_error(self.kind, name, error))
    }

    /// The finished file, guard included.
    pub fn finish(self) -> Result<FileImage> {
        FileImage::of(self.file, self.kind)
    }
}

fn build_error(kind: Kind, what: &str, error: hdf5::Error) -> Error {
    Error::new(ExitCode::Io, format!("cannot build {what} of a file of kind {kind} in memory: {error}"))
}

/// A file open for reading.
pub(crate) struct Reader {
    file: File,
    name: String,
    guard: Guard,
}

impl Reader {
    /// Opens the file at `path` without locking it (shared file systems often cannot).
    ///
    /// Checked: the guard, the length, the kind and HDF5's own checksums of the metadata that is read.
    pub fn open(path: &Path, kind: Kind) -> Result<Self> {
        let name = path.display().to_string();
        let guard = guard::read_guard(path)?;
        let file = File::with_options().with_fapl(|fapl| fapl.file_locking(false)).open(path);
        Self::new(file, name, guard, kind)
    }

    /// Opens a file held in memory; `name` is for messages. Its checksum is verified first.
    pub fn from_bytes(name: &str, bytes: &[u8], kind: Kind) -> Result<Self> {
        let guard = Guard::parse(name, bytes)?;
        guard.check_length(name, bytes.len() as u64)?;
        guard.check_body(name, equipoise_base::hash::xxh3(&bytes[GUARD_LEN..]))?;
        Self::new(open_image(bytes), name.to_string(), guard, kind)
    }

    fn new(file: hdf5::Result<File>, name: String, guard: Guard, kind: Kind) -> Result<Self> {
        ensure!(guard.kind == kind, BadData, "{name}: is of kind {}, not {kind}", guard.kind);
        let file = file.map_err(|error| Error::data(format!("{name}: HDF5 cannot open it: {error}")))?;
        let reader = Self { file, name, guard };
        let version: u32 = reader.attr("format_version")?;
        reader.ensure(version == reader.guard.format, "attribute format_version differs from the guard")?;
        reader.ensure(reader.text("kind")? == kind.name(), "attribute kind differs from the guard")?;
        Ok(reader)
    }

    /// Name for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Fails with the name of the file and what is wrong with it.
    pub fn ensure(&self, condition: bool, problem: &str) -> Result<()> {
        ensure!(condition, BadData, "{}: {problem}", self.name);
        Ok(())
    }

    fn error(&self, what: &str, error: &hdf5::Error) -> Error {
        Error::data(format!("{}: {what}: {error}", self.name))
    }

    /// Whether there is a column of this name.
    pub fn has(&self, name: &str) -> bool {
        self.file.link_exists(name)
    }

    /// Opens a column and checks its element type and that it is stored plainly and in full.
    fn dataset<T: H5Type>(&self, name: &str) -> Result<hdf5::Dataset> {
        self.ensure(self.has(name), &format!("column \"{name}\" is missing"))?;
        let dataset = self.file.dataset(name).map_err(|error| self.error(name, &error))?;
        let dtype = dataset.dtype().map_err(|error| self.error(name, &error))?;
        self.ensure(dtype.is::<T>(), &format!("column \"{name}\" has the wrong element type"))?;
        self.ensure_plain(name, &dataset, std::mem::size_of::<T>())?;
        Ok(dataset)
    }

    /// Guards allocations and reads against shapes larger than the file.
    fn ensure_plain(&self, name: &str, dataset: &hdf5::Dataset, element: usize) -> Result<()> {
        let shape = dataset.get_shape().map_err(|error| self.error(name, &error))?;
        let bytes = shape.iter().try_fold(element as u64, |product, &n| product.checked_mul(n as u64));
        let plain = bytes.is_some_and(|bytes| bytes <= self.guard.bytes && bytes == dataset.storage_size());
        self.ensure(plain, &format!("column \"{name}\" of shape {shape:?} is not stored plainly and in full"))
    }

    /// Shape of a column of element type `T`.
    pub fn shape<T: H5Type>(&self, name: &str) -> Result<Vec<usize>> {
        self.dataset::<T>(name)?.get_shape().map_err(|error| self.error(name, &error))
    }

    /// Fails unless the column has this element type and shape.
    pub fn ensure_shape<T: H5Type>(&self, name: &str, expected: &[usize]) -> Result<()> {
        let shape = self.shape::<T>(name)?;
        self.ensure(
            shape == expected,
            &format!("column \"{name}\" has shape {shape:?} instead of {expected:?}"),
        )
    }

    /// Reads a whole column of a known shape.
    pub fn column<T: H5Type>(&self, name: &str, expected: &[usize]) -> Result<Vec<T>> {
        self.ensure_shape::<T>(name, expected)?;
        let rows = expected.first().copied().unwrap_or(0);
        self.rows(name, 0..rows)
    }

    /// Reads rows of a column, whatever its other dimensions are.
    ///
    /// # Errors
    /// Rows outside the column, or unreadable ones.
    pub fn rows<T: H5Type>(&self, name: &str, rows: std::ops::Range<usize>) -> Result<Vec<T>> {
        let dataset = self.dataset::<T>(name)?;
        let shape = dataset.get_shape().map_err(|error| self.error(name, &error))?;
        let inside = rows.start <= rows.end && shape.first().is_some_and(|&n| rows.end <= n);
        self.ensure(inside, &format!("column \"{name}\" of shape {shape:?} has no rows {rows:?}"))?;
        read_rows(&dataset, &shape, rows).map_err(|error| self.error(name, &error))
    }

    /// Reads a column of texts.
    pub fn texts(&self, name: &str) -> Result<Vec<String>> {
        self.ensure(self.has(name), &format!("column \"{name}\" is missing"))?;
        let fail = |error| self.error(name, &error);
        let dataset = self.file.dataset(name).map_err(fail)?;
        let dtype = dataset.dtype().map_err(fail)?;
        let shape = dataset.get_shape().map_err(fail)?;
        let width = self.text_width(name, &dtype)?;
        self.ensure_plain(name, &dataset, width)?;
        self.ensure(shape.len() == 1, &format!("column \"{name}\" has shape {shape:?} instead of [n]"))?;
        let mut block = vec![0u8; width * shape[0]];
        if !block.is_empty() {
            // SAFETY: the type has `width` bytes and the column `shape[0]` values: exactly `block`.
            let read = locked(|| unsafe {
                use hdf5_sys::{h5d::H5Dread, h5p::H5P_DEFAULT, h5s::H5S_ALL};
                let buffer = block.as_mut_ptr().cast();
                check(H5Dread(dataset.id(), dtype.id(), H5S_ALL, H5S_ALL, H5P_DEFAULT, buffer))
            });
            read.map_err(fail)?;
        }
        block.chunks_exact(width).map(|cell| self.utf8(name, cell)).collect()
    }

    /// Reads a scalar attribute.
    pub fn attr<T: H5Type>(&self, name: &str) -> Result<T> {
        let attribute = self.attribute(name)?;
        let dtype = attribute.dtype().map_err(|error| self.error(name, &error))?;
        let fits = dtype.is::<T>() && attribute.is_scalar();
        self.ensure(fits, &format!("attribute \"{name}\" has the wrong type or shape"))?;
        attribute.read_scalar().map_err(|error| self.error(name, &error))
    }

    /// Reads a text attribute.
    pub fn text(&self, name: &str) -> Result<String> {
        let attribute = self.attribute(name)?;
        let dtype = attribute.dtype().map_err(|error| self.error(name, &error))?;
        let mut bytes = vec![0u8; self.text_width(name, &dtype)?];
        self.ensure(attribute.is_scalar(), &format!("attribute \"{name}\" is not a single text"))?;
        // SAFETY: a scalar of a type of `bytes.len()` bytes.
        let read = locked(|| unsafe {
            check(hdf5_sys::h5a::H5Aread(attribute.id(), dtype.id(), bytes.as_mut_ptr().cast()))
        });
        read.map_err(|error| self.error(name, &error))?;
        self.utf8(name, &bytes)
    }

    fn attribute(&self, name: &str) -> Result<hdf5::Attribute> {
        self.file
            .attr(name)
            .map_err(|_| Error::data(format!("{}: attribute \"{name}\" is missing or unreadable", self.name)))
    }

    /// Bytes of a fixed-length string type.
    fn text_width(&self, name: &str, dtype: &Datatype) -> Result<usize> {
        let width = match dtype.to_descriptor() {
            Ok(TypeDescriptor::FixedUnicode(width) | TypeDescriptor::FixedAscii(width)) => width as u64,
            _ => 0,
        };
        self.ensure(
            (1..=self.guard.bytes).contains(&width),
            &format!("\"{name}\" is not a fixed-length text"),
        )?;
        Ok(width as usize)
    }

    fn utf8(&self, name: &str, cell: &[u8]) -> Result<String> {
        let end = cell.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        let text = std::str::from_utf8(&cell[..end]).ok().map(str::to_string);
        text.ok_or_else(|| Error::data(format!("{}: \"{name}\" is not UTF-8", self.name)))
    }
}

/// Opens a file image, guard included, read-only. HDF5 copies the bytes.
fn open_image(bytes: &[u8]) -> hdf5::Result<File> {
    use hdf5_sys::h5f::{H5F_ACC_RDONLY, H5Fopen};
    use hdf5_sys::h5p::H5Pset_file_image;
    let mut builder = hdf5::plist::FileAccess::build();
    let fapl = builder.core_options(1 << 16, false).finish()?;
    let name = CString::new(unique_name()).unwrap_or_default();
    // SAFETY: HDF5 only reads from the buffer, and copies it before the first call returns.
    locked(|| unsafe {
        check(H5Pset_file_image(fapl.id(), bytes.as_ptr().cast_mut().cast(), bytes.len()))?;
        let id: hid_t = H5Fopen(name.as_ptr(), H5F_ACC_RDONLY, fapl.id());
        check(if id < 0 { -1 } else { 0 })?;
        hdf5::from_id(id)
    })
}

/// Reads whole rows straight into a new vector. `shape` is the column's; the rows lie inside.
fn read_rows<T: H5Type>(
    dataset: &hdf5::Dataset,
    shape: &[usize],
    rows: std::ops::Range<usize>,
) -> hdf5::Result<Vec<T>> {
    use hdf5_sys::{h5d::H5Dread, h5p::H5P_DEFAULT};
    let per_row: usize = shape[1..].iter().product();
    let count = rows.len() * per_row;
    let mut values = Vec::with_capacity(count);
    if count == 0 {
        return Ok(values);
    }
    let dims: Vec<_> = std::iter::once(rows.clone()).chain(shape[1..].iter().map(|&n| 0..n)).collect();
    let memory_shape: Vec<usize> = dims.iter().map(ExactSizeIterator::len).collect();
    let slices: Vec<hdf5::SliceOrIndex> = dims.into_iter().map(Into::into).collect();
    let in_file = dataset.space()?.select(hdf5::Hyperslab::from(slices))?;
    let in_memory = hdf5::Dataspace::try_new(memory_shape)?;
    let dtype = Datatype::from_type::<T>()?;
    // SAFETY: the memory space selects `count` elements of type T, the capacity of the vector; a successful read
    // has written all of them.
    locked(|| unsafe {
        let buffer = values.as_mut_ptr();
        check(H5Dread(dataset.id(), dtype.id(), in_memory.id(), in_file.id(), H5P_DEFAULT, buffer.cast()))?;
        values.set_len(count);
        Ok(values)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Features;

    /// A feature file, well-formed as HDF5, with one thing changed.
    fn strange_features(change: &str) -> Result<Features> {
        let writer = Writer::new(Kind::Features, 0)?;
        for name in
            ["identity", "extractor", "weight_hash", "layer", "preprocessing", "split", "tool_version"]
        {
            if change != name {
                writer.text(name, "x")?;
            }
        }
        writer.text("dtype", if change == "dtype" { "int8" } else { "float32" })?;
        match change {
            "features dtype" => writer.column("features", &[2, 3], &[0f64; 6])?,
            "features shape" => writer.column("features", &[6], &[0f32; 6])?,
            _ => writer.column("features", &[2, 3], &[0f32; 6])?,
        }
        match change {
            "label dtype" => writer.column("label", &[2], &[0u64; 2])?,
            "label length" => writer.column("label", &[3], &[0i64; 3])?,
            "label missing" => {}
            _ => writer.column("label", &[2], &[0i64; 2])?,
        }
        writer.column("group", &[2], &[0i64; 2])?;
        writer.column("index", &[2], &[0u64; 2])?;
        writer.column("source_xxh3", &[2], &[0u64; 2])?;
        Features::from_bytes("f.h5", &writer.finish()?)
    }

    #[test]
    fn wrong_types_and_shapes_are_named() {
        assert!(strange_features("").is_ok());
        for (change, message) in [
            ("layer", "attribute \"layer\" is missing or unreadable"),
            ("dtype", "dtype \"int8\" is none of float16, float32, float64"),
            ("features dtype", "column \"features\" has the wrong element type"),
            ("features shape", "column \"features\" has shape [6] instead of [n, d]"),
            ("label dtype", "column \"label\" has the wrong element type"),
            ("label length", "column \"label\" has shape [3] instead of [2]"),
            ("label missing", "column \"label\" is missing"),
        ] {
            let error = strange_features(change).unwrap_err();
            assert_eq!(error.to_string(), format!("f.h5: {message}"));
            assert_eq!(error.code(), ExitCode::BadData);
        }
    }

    /// A few bytes can promise terabytes: reading them must not even be tried.
    #[test]
    fn a_column_that_is_not_stored_in_full_is_refused() {
        let writer = Writer::new(Kind::Features, 0).unwrap();
        let huge = writer.file.new_dataset_builder().empty::<f32>().alloc_time(Some(AllocTime::Late));
        huge.shape([1 << 40, 8]).create("huge").unwrap();
        let filtered = writer.file.new_dataset_builder().empty::<u8>().chunk([4]).fletcher32();
        filtered.shape([4096]).create("filtered").unwrap().write_raw(&[7u8; 4096]).unwrap();
        let reader = Reader::from_bytes("a.h5", &writer.finish().unwrap(), Kind::Features).unwrap();
        for error in
            [reader.rows::<f32>("huge", 0..1).unwrap_err(), reader.rows::<u8>("filtered", 0..1).unwrap_err()]
        {
            assert!(error.to_string().contains("is not stored plainly and in full"), "{error}");
        }
    }

    #[test]
    fn attributes_and_texts_round_trip() {
        let writer = Writer::new(Kind::Packed, 0).unwrap();
        let texts = ["".to_string(), "plain".to_string(), "日本語 ü".to_string()];
        writer.texts("texts", &texts).unwrap();
        writer.texts("none", &[]).unwrap();
        writer.text("empty", "").unwrap();
        // Beyond 64 KiB HDF5 stores an attribute elsewhere.
        let long = "long ".repeat(20_000);
        writer.text("long", &long).unwrap();
        writer.attr("number", 7u32).unwrap();
        let reader = Reader::from_bytes("a.h5", &writer.finish().unwrap(), Kind::Packed).unwrap();
        assert_eq!(reader.texts("texts").unwrap(), texts);
        assert!(reader.texts("none").unwrap().is_empty());
        assert_eq!(reader.text("empty").unwrap(), "");
        assert_eq!(reader.text("long").unwrap(), long);
        assert_eq!(reader.attr::<u32>("number").unwrap(), 7);
        assert!(reader.attr::<u64>("number").is_err());
        assert!(reader.attr::<u32>("empty").is_err());
        assert!(reader.text("number").is_err());
    }
}
