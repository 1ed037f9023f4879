//! Feature files: one vector per image of a split or set, `features/<extractor>/<split>.h5`.

use crate::h5::{FileImage, Reader, Writer};
use crate::{Kind, verify};
use equipoise_base::{Result, bail, ensure};
use half::f16;
use std::ops::Range;
use std::path::Path;

/// A matrix [n, d] in row order, in the precision that is stored.
#[derive(Clone, Debug, PartialEq)]
pub enum Matrix {
    /// IEEE half precision.
    F16(Vec<f16>),
    /// IEEE single precision.
    F32(Vec<f32>),
    /// IEEE double precision.
    F64(Vec<f64>),
}

impl Matrix {
    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Matrix::F16(values) => values.len(),
            Matrix::F32(values) => values.len(),
            Matrix::F64(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// "float16", "float32" or "float64".
    pub fn dtype(&self) -> &'static str {
        match self {
            Matrix::F16(_) => "float16",
            Matrix::F32(_) => "float32",
            Matrix::F64(_) => "float64",
        }
    }

    /// The values in double precision, which holds all of them exactly.
    pub fn to_f64(&self) -> Vec<f64> {
        match self {
            Matrix::F16(values) => values.iter().map(|&value| f64::from(value)).collect(),
            Matrix::F32(values) => values.iter().map(|&value| f64::from(value)).collect(),
            Matrix::F64(values) => values.clone(),
        }
    }

    /// The values in single precision; doubles are rounded.
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Matrix::F16(values) => values.iter().map(|&value| f32::from(value)).collect(),
            Matrix::F32(values) => values.clone(),
            Matrix::F64(values) => values.iter().map(|&value| value as f32).collect(),
        }
    }

    fn write(&self, writer: &Writer, name: &str, shape: &[usize]) -> Result<()> {
        match self {
            Matrix::F16(values) => writer.column(name, shape, values),
            Matrix::F32(values) => writer.column(name, shape, values),
            Matrix::F64(values) => writer.column(name, shape, values),
        }
    }

    fn read(reader: &Reader, name: &str, dtype: &str, rows: Range<usize>) -> Result<Self> {
        Ok(match dtype {
            "float16" => Matrix::F16(reader.rows(name, rows)?),
            "float32" => Matrix::F32(reader.rows(name, rows)?),
            "float64" => Matrix::F64(reader.rows(name, rows)?),
            _ => bail!(BadData, "{}: dtype \"{dtype}\" is none of float16, float32, float64", reader.name()),
        })
    }
}

/// How features were made; stored as attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeatureMeta {
    /// Hash of everything that decides the values.
    pub identity: String,
    /// Name of the extractor.
    pub extractor: String,
    /// Hash of its weight file.
    pub weight_hash: String,
    /// Layer that is stored, such as "pool".
    pub layer: String,
    /// Resize, crop and normalisation before the extractor.
    pub preprocessing: String,
    /// Split or set that the images belong to.
    pub split: String,
    /// Release of Equipoise that made the features.
    pub tool_version: String,
}

/// A feature file in memory. All columns have n entries.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// How they were made.
    pub meta: FeatureMeta,
    /// [n, d]
    pub features: Matrix,
    /// d, the length of one vector.
    pub dim: usize,
    /// Class of each image.
    pub label: Vec<i64>,
    /// Group of each image, -1 for none.
    pub group: Vec<i64>,
    /// Index of each image: within its class in a generated set, in the source of a split.
    pub index: Vec<u64>,
    /// xxh3-64 of each source image as stored: ties a vector to the pixels that it was made from.
    pub source_xxh3: Vec<u64>,
}

impl Features {
    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.label.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.label.is_empty()
    }

    /// The bytes of the file.
    ///
    /// # Errors
    /// Columns of different lengths; out of memory inside HDF5.
    pub fn write(&self) -> Result<FileImage> {
        let n = self.len();
        let lengths = [self.group.len(), self.index.len(), self.source_xxh3.len()];
        ensure!(
            self.dim > 0 && n.checked_mul(self.dim) == Some(self.features.len()) && lengths == [n; 3],
            BadData,
            "features of {n} images: {} values of dimension {} with columns of {lengths:?} entries",
            self.features.len(),
            self.dim
        );
        let writer = Writer::new(Kind::Features, 8 * self.features.len() + 32 * n)?;
        let meta = &self.meta;
        writer.text_attributes(&[
            ("identity", &meta.identity),
            ("extractor", &meta.extractor),
            ("weight_hash", &meta.weight_hash),
            ("layer", &meta.layer),
            ("preprocessing", &meta.preprocessing),
            ("split", &meta.split),
            ("dtype", self.features.dtype()),
            ("tool_version", &meta.tool_version),
        ])?;
        self.features.write(&writer, "features", &[n, self.dim])?;
        writer.column("label", &[n], &self.label)?;
        writer.column("group", &[n], &self.group)?;
        writer.column("index", &[n], &self.index)?;
        writer.column("source_xxh3", &[n], &self.source_xxh3)?;
        writer.finish()
    }

    /// Reads a feature file, verifying its checksum.
    ///
    /// # Errors
    /// A missing file, another kind of file, or any damage.
    pub fn read(path: &Path) -> Result<Self> {
        verify::check_checksum(path)?;
        Self::from_reader(&Reader::open(path, Kind::Features)?)
    }

    /// Reads the bytes of a feature file; `name` is for messages.
    ///
    /// # Errors
    /// Any damage.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self> {
        Self::from_reader(&Reader::from_bytes(name, bytes, Kind::Features)?)
    }

    /// Checks attributes, element types and shapes without reading columns; returns the number of vectors.
    pub(crate) fn verify_structure(path: &Path) -> Result<u64> {
        let reader = Reader::open(path, Kind::Features)?;
        structure(&reader).map(|(_, _, [n, _])| n as u64)
    }

    fn from_reader(reader: &Reader) -> Result<Self> {
        let (meta, dtype, [n, dim]) = structure(reader)?;
        Ok(Self {
            meta,
            features: Matrix::read(reader, "features", &dtype, 0..n)?,
            dim,
            label: reader.rows("label", 0..n)?,
            group: reader.rows("group", 0..n)?,
            index: reader.rows("index", 0..n)?,
            source_xxh3: reader.rows("source_xxh3", 0..n)?,
        })
    }
}

/// A feature file on disk: columns in memory, vectors read by ranges of rows.
pub struct FeatureReader {
    reader: Reader,
    meta: FeatureMeta,
    dtype: String,
    dim: usize,
    label: Vec<i64>,
    source_xxh3: Vec<u64>,
}

impl FeatureReader {
    /// Opens a feature file, verifying its checksum.
    ///
    /// # Errors
    /// As [`Features::read`].
    pub fn open(path: &Path) -> Result<Self> {
        verify::check_checksum(path)?;
        let reader = Reader::open(path, Kind::Features)?;
        let (meta, dtype, [n, dim]) = structure(&reader)?;
        let (label, source_xxh3) = (reader.rows("label", 0..n)?, reader.rows("source_xxh3", 0..n)?);
        Ok(Self { reader, meta, dtype, dim, label, source_xxh3 })
    }

    /// How the features were made.
    pub fn meta(&self) -> &FeatureMeta {
        &self.meta
    }

    /// Length of one vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Class of each image.
    pub fn labels(&self) -> &[i64] {
        &self.label
    }

    /// xxh3-64 of each source image as stored.
    pub fn sources(&self) -> &[u64] {
        &self.source_xxh3
    }

    /// The vectors of some rows.
    ///
    /// # Errors
    /// Rows outside the file, or damage.
    pub fn rows(&self, rows: Range<usize>) -> Result<Matrix> {
        self.reader.ensure(rows.end <= self.label.len(), "a row is asked for that is not there")?;
        Matrix::read(&self.reader, "features", &self.dtype, rows)
    }
}

/// Attributes, dtype and [n, d] of a feature file whose structure is sound.
fn structure(reader: &Reader) -> Result<(FeatureMeta, String, [usize; 2])> {
    let meta = FeatureMeta {
        identity: reader.text("identity")?,
        extractor: reader.text("extractor")?,
        weight_hash: reader.text("weight_hash")?,
        layer: reader.text("layer")?,
        preprocessing: reader.text("preprocessing")?,
        split: reader.text("split")?,
        tool_version: reader.text("tool_version")?,
    };
    let dtype = reader.text("dtype")?;
    let shape = match dtype.as_str() {
        "float16" => reader.shape::<f16>("features")?,
        "float64" => reader.shape::<f64>("features")?,
        _ => reader.shape::<f32>("features")?,
    };
    let &[n, dim] = shape.as_slice() else {
        bail!(BadData, "{}: column \"features\" has shape {shape:?} instead of [n, d]", reader.name());
    };
    for name in ["label", "group"] {
        reader.ensure_shape::<i64>(name, &[n])?;
    }
    for name in ["index", "source_xxh3"] {
        reader.ensure_shape::<u64>(name, &[n])?;
    }
    Ok((meta, dtype, [n, dim]))
}
