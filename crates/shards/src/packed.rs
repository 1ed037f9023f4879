//! Prepared data splits: all images of one split (or a part of it) in one file.

use crate::codec::Codec;
use crate::h5::{FileImage, Reader, Writer};
use crate::images::{Images, Layout};
use crate::{Kind, verify};
use equipoise_base::hash::xxh3;
use equipoise_base::{Result, ensure};
use std::ops::Range;
use std::path::Path;

/// What a prepared split is; stored as attributes and text columns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedMeta {
    /// Hash of everything that decides the content.
    pub identity: String,
    /// Split: "train", "val", "test", "generator", ...
    pub split: String,
    /// Where the images came from, for people.
    pub source: String,
    /// Filter that resized the images to their shape, or "none".
    pub resize_filter: String,
    /// This file is part `part` of `parts` of the split (files are built in memory, so keep parts below a GiB).
    pub part: u32,
    /// Number of parts.
    pub parts: u32,
    /// Names of all classes, by label.
    pub class_names: Vec<String>,
    /// Names of all groups, by group; empty where there are none.
    pub group_names: Vec<String>,
    /// Images that could not be used, one line each: `path: reason`.
    pub bad_images: Vec<String>,
    /// Release of Equipoise that prepared the split.
    pub tool_version: String,
}

/// What is known of one image of a split, beside its pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedRow {
    /// Class.
    pub label: i64,
    /// Group (domain, attribute), -1 for none.
    pub group: i64,
    /// Position in the source: in the published file or list.
    pub index: u64,
}

/// A prepared split in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    meta: PackedMeta,
    images: Images,
    rows: Vec<PackedRow>,
    hashes: Vec<u64>,
}

impl Packed {
    /// A split without images. Without a `shape` ([height, width, channels]) sizes may differ, which needs an
    /// encoding; [`Codec::Source`] keeps the source files as they are.
    ///
    /// # Errors
    /// An impossible shape, or raw samples without one.
    pub fn new(meta: PackedMeta, codec: Codec, shape: Option<[usize; 3]>) -> Result<Self> {
        Ok(Self { meta, images: Images::new(codec, shape)?, rows: vec![], hashes: vec![] })
    }

    /// What it is.
    pub fn meta(&self) -> &PackedMeta {
        &self.meta
    }

    /// Lists an image that could not be used: `path: reason`.
    pub fn push_bad_image(&mut self, line: impl Into<String>) {
        self.meta.bad_images.push(line.into());
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The pixels.
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// The rows.
    pub fn rows(&self) -> &[PackedRow] {
        &self.rows
    }

    /// xxh3-64 of each image as stored.
    pub fn hashes(&self) -> &[u64] {
        &self.hashes
    }

    /// Images per class.
    pub fn counts(&self) -> Vec<u64> {
        let mut counts = vec![0; self.meta.class_names.len()];
        for row in &self.rows {
            counts[row.label as usize] += 1;
        }
        counts
    }

    /// Appends an image in its stored form (samples if raw, else the encoded bytes).
    ///
    /// # Errors
    /// A label without a class name, or a length that does not fit.
    pub fn push(&mut self, row: PackedRow, stored: &[u8]) -> Result<()> {
        let classes = self.meta.class_names.len();
        ensure!(
            usize::try_from(row.label).is_ok_and(|label| label < classes),
            BadData,
            "image {} has label {}, but there are {classes} classes",
            row.index,
            row.label
        );
        self.images.push_stored(stored)?;
        self.hashes.push(xxh3(stored));
        self.rows.push(row);
        Ok(())
    }

    /// The bytes of the file.
    ///
    /// # Errors
    /// Out of memory inside HDF5.
    pub fn write(&self) -> Result<FileImage> {
        let n = self.len();
        let writer = Writer::new(Kind::Packed, self.images.size_hint() + 32 * n)?;
        let meta = &self.meta;
        writer.text_attributes(&[
            ("identity", &meta.identity),
            ("split", &meta.split),
            ("source", &meta.source),
            ("resize_filter", &meta.resize_filter),
            ("tool_version", &meta.tool_version),
        ])?;
        writer.attr("part", meta.part)?;
        writer.attr("parts", meta.parts)?;
        self.images.write(&writer, false)?;
        writer.column("label", &[n], &self.each(|row| row.label))?;
        writer.column("group", &[n], &self.each(|row| row.group))?;
        writer.column("index", &[n], &self.each(|row| row.index))?;
        writer.column("xxh3", &[n], &self.hashes)?;
        writer.column("counts", &[meta.class_names.len()], &self.counts())?;
        writer.texts("class_names", &meta.class_names)?;
        writer.texts("group_names", &meta.group_names)?;
        writer.texts("bad_images", &meta.bad_images)?;
        writer.finish()
    }

    fn each<T>(&self, field: impl Fn(&PackedRow) -> T) -> Vec<T> {
        self.rows.iter().map(field).collect()
    }

    /// Reads a whole split.
    ///
    /// # Errors
    /// A missing file or any damage.
    pub fn read(path: &Path) -> Result<Self> {
        verify::check_checksum(path)?;
        PackedReader::open(path)?.read()
    }

    /// Reads a whole split from the bytes of its file; `name` is for messages.
    ///
    /// # Errors
    /// Any damage.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self> {
        PackedReader::new(Reader::from_bytes(name, bytes, Kind::Packed)?)?.read()
    }
}

/// A prepared split on disk: labels in memory, pixels read by ranges of rows.
pub struct PackedReader {
    reader: Reader,
    layout: Layout,
    meta: PackedMeta,
    rows: Vec<PackedRow>,
    hashes: Vec<u64>,
}

impl PackedReader {
    /// Opens a split and checks its structure: attributes, element types, shapes, labels against counts.
    ///
    /// # Errors
    /// A missing file, another kind of file, or damage.
    pub fn open(path: &Path) -> Result<Self> {
        Self::new(Reader::open(path, Kind::Packed)?)
    }

    fn new(reader: Reader) -> Result<Self> {
        let shape = reader.shape::<i64>("label")?;
        reader.ensure(shape.len() == 1, "column \"label\" is not one-dimensional")?;
        let n = shape[0];
        let layout = Layout::read(&reader, n)?;
        let meta = PackedMeta {
            identity: reader.text("identity")?,
            split: reader.text("split")?,
            source: reader.text("source")?,
            resize_filter: reader.text("resize_filter")?,
            part: reader.attr("part")?,
            parts: reader.attr("parts")?,
            class_names: reader.texts("class_names")?,
            group_names: reader.texts("group_names")?,
            bad_images: reader.texts("bad_images")?,
            tool_version: reader.text("tool_version")?,
        };
        let label = reader.column::<i64>("label", &[n])?;
        let group = reader.column::<i64>("group", &[n])?;
        let index = reader.column::<u64>("index", &[n])?;
        let hashes = reader.column::<u64>("xxh3", &[n])?;
        let classes = meta.class_names.len();
        let mut counts = vec![0u64; classes];
        for &label in &label {
            let known = usize::try_from(label).ok().filter(|&label| label < classes);
            reader.ensure(known.is_some(), &format!("label {label} is not one of {classes} classes"))?;
            counts[label as usize] += 1;
        }
        reader.ensure(
            reader.column::<u64>("counts", &[classes])? == counts,
            "column \"counts\" differs from the labels",
        )?;
        let rows = (0..n).map(|i| PackedRow { label: label[i], group: group[i], index: index[i] }).collect();
        Ok(Self { reader, layout, meta, rows, hashes })
    }

    /// What the split is.
    pub fn meta(&self) -> &PackedMeta {
        &self.meta
    }

    /// How images are stored.
    pub fn codec(&self) -> Codec {
        self.layout.codec
    }

    /// [height, width, channels], if all images share it.
    pub fn shape(&self) -> Option<[usize; 3]> {
        self.layout.shape
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// All rows.
    pub fn rows(&self) -> &[PackedRow] {
        &self.rows
    }

    /// xxh3-64 of each image as stored.
    pub fn hashes(&self) -> &[u64] {
        &self.hashes
    }

    /// Reads the pixels of some rows and verifies the checksum of each image.
    ///
    /// # Errors
    /// Rows outside the file, or a damaged image.
    pub fn images(&self, rows: Range<usize>) -> Result<Images> {
        let name = |row| format!("the image in row {row}");
        Ok(self.layout.verified(&self.reader, rows, self.len(), name)?.0)
    }

    /// Reads everything and verifies the checksum of each image.
    ///
    /// # Errors
    /// As [`PackedReader::images`].
    pub fn read(self) -> Result<Packed> {
        self.layout.ensure_filled(&self.reader, self.len())?;
        let images = self.images(0..self.len())?;
        Ok(Packed { meta: self.meta, images, rows: self.rows, hashes: self.hashes })
    }

    /// Verifies the checksum of every image, a block at a time.
    pub(crate) fn verify_images(&self) -> Result<()> {
        self.layout.ensure_filled(&self.reader, self.len())?;
        // Encoded images of unknown size: a guess that only sizes the blocks.
        let per_image = self.layout.shape.map_or(1 << 18, |shape| shape.iter().product());
        verify::blocks(self.len(), per_image).try_for_each(|rows| self.images(rows).map(drop))
    }
}
