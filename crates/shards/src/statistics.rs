//! Statistics files: counts, means and covariances of features, for the hardness criterion and for reports.

use crate::h5::{FileImage, Reader, Writer};
use crate::{Kind, verify};
use equipoise_base::{Result, bail, ensure};
use std::path::Path;

/// How statistics were made; stored as attributes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StatisticsMeta {
    /// Hash of everything that decides the values.
    pub identity: String,
    /// Feature file or extractor that they summarise, for people.
    pub source: String,
    /// Split or set.
    pub split: String,
    /// Added to the diagonal of every covariance before it was inverted.
    pub eps: f64,
    /// Release of Equipoise that made them.
    pub tool_version: String,
}

/// Second moments, of all rows together (k = 1) or of each row of [`Statistics::mean`] (k = rows).
#[derive(Clone, Debug, PartialEq)]
pub enum Spread {
    /// None: means only.
    None,
    /// Covariances [k, d, d].
    Covariance(Vec<f64>),
    /// Inverses of covariance + eps I, and log-determinants of the same.
    Precision {
        /// `[k, d, d]`
        inverse: Vec<f64>,
        /// `[k]`
        logdet: Vec<f64>,
    },
}

/// A statistics file in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// How they were made.
    pub meta: StatisticsMeta,
    /// d
    pub dim: usize,
    /// Class of each row; -1 for statistics over all classes.
    pub class: Vec<i64>,
    /// Images that each row summarises.
    pub count: Vec<u64>,
    /// [rows, d]
    pub mean: Vec<f64>,
    /// Second moments.
    pub spread: Spread,
}

impl Statistics {
    /// Matrices in [`Statistics::spread`]: 1 if pooled, else one per row.
    ///
    /// # Errors
    /// A number of values that is neither.
    fn matrices(&self) -> Result<usize> {
        let (values, logdets) = match &self.spread {
            Spread::None => return Ok(0),
            Spread::Covariance(covariance) => (covariance.len(), None),
            Spread::Precision { inverse, logdet } => (inverse.len(), Some(logdet.len())),
        };
        let rows = self.class.len();
        let found = [1, rows].into_iter().find(|&k| {
            self.dim.checked_mul(self.dim).and_then(|square| square.checked_mul(k)) == Some(values)
                && logdets.is_none_or(|logdets| logdets == k)
        });
        let Some(k) = found else {
            bail!(BadData, "{values} covariance values for {rows} rows of dimension {}", self.dim);
        };
        Ok(k)
    }

    /// The bytes of the file.
    ///
    /// # Errors
    /// Columns of different lengths; out of memory inside HDF5.
    pub fn write(&self) -> Result<FileImage> {
        let (rows, dim) = (self.class.len(), self.dim);
        ensure!(
            dim > 0 && self.count.len() == rows && rows.checked_mul(dim) == Some(self.mean.len()),
            BadData,
            "statistics of {rows} rows: {} counts and {} means of dimension {dim}",
            self.count.len(),
            self.mean.len()
        );
        let k = self.matrices()?;
        let writer = Writer::new(Kind::Statistics, 8 * (rows * (dim + 2) + k * (dim * dim + 1)))?;
        let meta = &self.meta;
        writer.text_attributes(&[
            ("identity", &meta.identity),
            ("source", &meta.source),
            ("split", &meta.split),
            ("tool_version", &meta.tool_version),
        ])?;
        writer.attr("eps", meta.eps)?;
        writer.column("class", &[rows], &self.class)?;
        writer.column("count", &[rows], &self.count)?;
        writer.column("mean", &[rows, dim], &self.mean)?;
        match &self.spread {
            Spread::None => {}
            Spread::Covariance(covariance) => writer.column("cov", &[k, dim, dim], covariance)?,
            Spread::Precision { inverse, logdet } => {
                writer.column("cov_inv", &[k, dim, dim], inverse)?;
                writer.column("logdet", &[k], logdet)?;
            }
        }
        writer.finish()
    }

    /// Reads a statistics file, verifying its checksum.
    ///
    /// # Errors
    /// A missing file, another kind of file, or any damage.
    pub fn read(path: &Path) -> Result<Self> {
        verify::check_checksum(path)?;
        Self::from_reader(&Reader::open(path, Kind::Statistics)?)
    }

    /// Reads the bytes of a statistics file; `name` is for messages.
    ///
    /// # Errors
    /// Any damage.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self> {
        Self::from_reader(&Reader::from_bytes(name, bytes, Kind::Statistics)?)
    }

    /// Checks everything (the files are small); returns the number of rows.
    pub(crate) fn verify_structure(path: &Path) -> Result<u64> {
        Self::from_reader(&Reader::open(path, Kind::Statistics)?)
            .map(|statistics| statistics.class.len() as u64)
    }

    fn from_reader(reader: &Reader) -> Result<Self> {
        let shape = reader.shape::<f64>("mean")?;
        let &[rows, dim] = shape.as_slice() else {
            bail!(BadData, "{}: column \"mean\" has shape {shape:?} instead of [rows, d]", reader.name());
        };
        let spread = if reader.has("cov") {
            Spread::Covariance(matrices(reader, "cov", rows, dim)?)
        } else if reader.has("cov_inv") {
            let inverse = matrices(reader, "cov_inv", rows, dim)?;
            let k = inverse.len() / (dim * dim).max(1);
            Spread::Precision { inverse, logdet: reader.column("logdet", &[k])? }
        } else {
            Spread::None
        };
        Ok(Self {
            meta: StatisticsMeta {
                identity: reader.text("identity")?,
                source: reader.text("source")?,
                split: reader.text("split")?,
                eps: reader.attr("eps")?,
                tool_version: reader.text("tool_version")?,
            },
            dim,
            class: reader.column("class", &[rows])?,
            count: reader.column("count", &[rows])?,
            mean: reader.column("mean", &[rows, dim])?,
            spread,
        })
    }
}

/// Reads a column [1, d, d] or [rows, d, d].
fn matrices(reader: &Reader, name: &str, rows: usize, dim: usize) -> Result<Vec<f64>> {
    let shape = reader.shape::<f64>(name)?;
    let fits = shape == [1, dim, dim] || shape == [rows, dim, dim];
    reader.ensure(
        fits,
        &format!("column \"{name}\" has shape {shape:?} instead of [1 or {rows}, {dim}, {dim}]"),
    )?;
    reader.rows(name, 0..shape[0])
}
