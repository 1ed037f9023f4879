//! Image shards: a run of generated images of one class, `<class>/<class>-<first>-of-<n>.h5`.
//!
//! A shard is planned as the indices `first .. first + planned` of its class. It holds a prefix of them, each either
//! as a row or, where no usable image could be made, in the list `failed`. A part file (`.parts/<shard>.h5`) is such
//! a prefix; a finished shard covers the whole plan.

use crate::codec::Codec;
use crate::flags::Flags;
use crate::h5::{FileImage, Reader, Writer};
use crate::images::{Images, Layout};
use crate::{Kind, verify};
use equipoise_base::hash::xxh3;
use equipoise_base::{Result, ensure};
use serde::Serialize;
use std::ops::Range;
use std::path::Path;

/// What all images of a shard share; stored as attributes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShardMeta {
    /// Hash of everything that decides the pixels ([`equipoise_base::Identity`]).
    pub identity: String,
    /// Class, also the label of every row.
    pub class: u32,
    /// Name of the class.
    pub class_name: String,
    /// Text prompt, empty where none was used.
    pub prompt: String,
    /// First planned index within the class.
    pub first: u64,
    /// Number of planned images.
    pub planned: u64,
    /// [height, width, channels] of every image.
    pub shape: [usize; 3],
    /// How pixels are stored.
    #[serde(serialize_with = "crate::serialize_display")]
    pub codec: Codec,
    /// Filter that resized the images to their shape, or "none".
    pub resize_filter: String,
    /// What the column `criterion` holds, such as "entropy"; "none" without guidance.
    pub criterion: String,
    /// Number of guided steps: the width of the column `criterion`.
    pub guided_steps: usize,
    /// Whether the same identity gives the same bits (some GPU operators cannot).
    pub reproducible: bool,
    /// Release of Equipoise that made the images.
    pub tool_version: String,
}

/// What is known of one image, beside its pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Index within the class: with the class, the name of the image.
    pub index: u64,
    /// Group (domain, attribute) that it was made for, -1 for none.
    pub group: i64,
    /// Hash of the random key it was made from ([`equipoise_base::rng::Key::hash`]).
    pub seed: u64,
    /// The real image that it was conditioned on: row in the packed training split.
    pub condition: Option<u64>,
    /// What happened while it was made.
    pub flags: Flags,
}

/// An image shard in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageShard {
    meta: ShardMeta,
    images: Images,
    rows: Vec<Row>,
    hashes: Vec<u64>,
    /// [rows, guided steps]
    criterion: Vec<f32>,
    failed: Vec<u64>,
}

impl ImageShard {
    /// A shard without images.
    ///
    /// # Errors
    /// An impossible shape, or [`Codec::Source`].
    pub fn new(meta: ShardMeta) -> Result<Self> {
        ensure!(meta.codec != Codec::Source, BadData, "image shards cannot have the codec \"source\"");
        ensure!(
            meta.first.checked_add(meta.planned).is_some_and(|end| end <= i64::MAX as u64),
            BadData,
            "a shard cannot start at index {} with {} images",
            meta.first,
            meta.planned
        );
        let images = Images::new(meta.codec, Some(meta.shape))?;
        Ok(Self { meta, images, rows: vec![], hashes: vec![], criterion: vec![], failed: vec![] })
    }

    /// What all images share.
    pub fn meta(&self) -> &ShardMeta {
        &self.meta
    }

    /// Records that an operator without a deterministic implementation took part: making an image again may give other
    /// last bits.
    pub fn mark_irreproducible(&mut self) {
        self.meta.reproducible = false;
    }

    /// Number of images present.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether no image is present.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The pixels, in the order of [`ImageShard::rows`].
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// The rows, by rising index.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// xxh3-64 of each image as stored.
    pub fn hashes(&self) -> &[u64] {
        &self.hashes
    }

    /// Value of the criterion at each guided step of row `i`.
    ///
    /// # Panics
    /// If `i` is out of range.
    pub fn criterion(&self, i: usize) -> &[f32] {
        let steps = self.meta.guided_steps;
        &self.criterion[i * steps..(i + 1) * steps]
    }

    /// Indices for which no usable image could be made, rising.
    pub fn failed(&self) -> &[u64] {
        &self.failed
    }

    /// Index to go on with: everything below is either a row or failed.
    pub fn next_index(&self) -> u64 {
        self.meta.first + (self.rows.len() + self.failed.len()) as u64
    }

    /// Whether every planned index was tried. Failed ones are not present all the same.
    pub fn is_finished(&self) -> bool {
        self.next_index() == self.meta.first + self.meta.planned
    }

    /// Appends an image in its stored form (samples if raw, else the encoded bytes).
    ///
    /// # Errors
    /// An index that does not rise or lies outside the plan, or a length that does not fit.
    pub fn push(&mut self, row: Row, stored: &[u8], criterion: &[f32]) -> Result<()> {
        self.check_next(row.index, self.rows.last().map(|last| last.index))?;
        let steps = self.meta.guided_steps;
        ensure!(criterion.len() == steps, BadData, "{} criterion values instead of {steps}", criterion.len());
        self.images.push_stored(stored)?;
        self.hashes.push(xxh3(stored));
        self.criterion.extend_from_slice(criterion);
        self.rows.push(row);
        Ok(())
    }

    /// Records an index for which no usable image could be made.
    ///
    /// # Errors
    /// An index that does not rise or lies outside the plan.
    pub fn push_failed(&mut self, index: u64) -> Result<()> {
        self.check_next(index, self.failed.last().copied())?;
        self.failed.push(index);
        Ok(())
    }

    fn check_next(&self, index: u64, last: Option<u64>) -> Result<()> {
        let end = self.meta.first + self.meta.planned;
        ensure!(
            (self.meta.first..end).contains(&index) && last.is_none_or(|last| last < index),
            BadData,
            "image {index} of class {} does not follow {last:?} within {}..{end}",
            self.meta.class,
            self.meta.first
        );
        Ok(())
    }

    /// Joins pieces of one shard, such as a part file and the images made after it, in rising order.
    ///
    /// # Errors
    /// No piece, pieces of different shards, or indices that do not rise.
    pub fn concat(parts: impl IntoIterator<Item = ImageShard>) -> Result<Self> {
        let mut parts = parts.into_iter();
        let Some(mut joined) = parts.next() else {
            equipoise_base::bail!(BadData, "there are no parts to join");
        };
        for part in parts {
            ensure!(
                part.meta == joined.meta,
                BadData,
                "parts of different shards cannot be joined: {:?} and {:?}",
                joined.meta,
                part.meta
            );
            let rises = |last: Option<u64>, first: Option<u64>| {
                first.is_none_or(|first| last.is_none_or(|last| last < first))
            };
            ensure!(
                rises(joined.rows.last().map(|row| row.index), part.rows.first().map(|row| row.index))
                    && rises(joined.failed.last().copied(), part.failed.first().copied()),
                BadData,
                "parts of class {} overlap or are out of order",
                joined.meta.class
            );
            joined.images.extend(&part.images)?;
            joined.rows.extend(part.rows);
            joined.hashes.extend(part.hashes);
            joined.criterion.extend(part.criterion);
            joined.failed.extend(part.failed);
        }
        Ok(joined)
    }

    /// The bytes of the file.
    ///
    /// # Errors
    /// Rows and failed indices that are not together a prefix of the plan; out of memory inside HDF5.
    pub fn write(&self) -> Result<FileImage> {
        ensure!(
            covers_prefix(self.meta.first, self.rows.iter().map(|row| row.index), &self.failed),
            BadData,
            "images and failed indices of class {} are not a prefix of the shard at {}",
            self.meta.class,
            self.meta.first
        );
        let n = self.len();
        let writer =
            Writer::new(Kind::Image, self.images.size_hint() + n * (48 + 4 * self.meta.guided_steps))?;
        self.write_attributes(&writer)?;
        self.images.write(&writer, true)?;
        writer.column("label", &[n], &vec![i64::from(self.meta.class); n])?;
        writer.column("group", &[n], &self.each(|row| row.group))?;
        writer.column("index", &[n], &self.each(|row| row.index))?;
        writer.column("seed", &[n], &self.each(|row| row.seed))?;
        writer.column("condition", &[n], &self.each(|row| row.condition.map_or(-1, |id| id as i64)))?;
        writer.column("flags", &[n], &self.each(|row| row.flags.0))?;
        writer.column("xxh3", &[n], &self.hashes)?;
        writer.column("criterion", &[n, self.meta.guided_steps], &self.criterion)?;
        writer.column("failed", &[self.failed.len()], &self.failed)?;
        writer.finish()
    }

    fn each<T>(&self, field: impl Fn(&Row) -> T) -> Vec<T> {
        self.rows.iter().map(field).collect()
    }

    fn write_attributes(&self, writer: &Writer) -> Result<()> {
        let meta = &self.meta;
        writer.text_attributes(&[
            ("identity", &meta.identity),
            ("class_name", &meta.class_name),
            ("prompt", &meta.prompt),
            ("resize_filter", &meta.resize_filter),
            ("criterion_name", &meta.criterion),
            ("tool_version", &meta.tool_version),
        ])?;
        writer.attr("class", meta.class)?;
        writer.attr("first", meta.first)?;
        writer.attr("planned", meta.planned)?;
        writer.attr("reproducible", meta.reproducible)
    }

    /// Reads a whole shard from the bytes of its file; `name` is for messages.
    ///
    /// # Errors
    /// Any damage.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self> {
        ShardReader::from_bytes(name, bytes)?.read()
    }

    /// Reads a whole shard.
    ///
    /// # Errors
    /// A missing file or any damage.
    pub fn read(path: &Path) -> Result<Self> {
        verify::check_checksum(path)?;
        ShardReader::open(path)?.read()
    }
}

/// Whether rising `rows` and rising `failed` together are `first, first + 1, ...` without gap or repetition.
fn covers_prefix(first: u64, rows: impl Iterator<Item = u64>, failed: &[u64]) -> bool {
    let mut failed = failed.iter().copied().peekable();
    let mut next = first;
    for row in rows {
        while failed.next_if_eq(&next).is_some() {
            next += 1;
        }
        if row != next {
            return false;
        }
        next += 1;
    }
    failed.zip(next..).all(|(failed, next)| failed == next)
}

/// An image shard on disk, read by ranges of rows.
pub struct ShardReader {
    reader: Reader,
    layout: Layout,
    meta: ShardMeta,
    index: Vec<u64>,
    failed: Vec<u64>,
}

impl ShardReader {
    /// Opens a shard and checks its structure: attributes, element types, shapes, index range.
    ///
    /// # Errors
    /// A missing file, another kind of file, or damage.
    pub fn open(path: &Path) -> Result<Self> {
        Self::new(Reader::open(path, Kind::Image)?)
    }

    /// The same for the bytes of a file, whose checksum is verified too; `name` is for messages.
    ///
    /// # Errors
    /// As [`ShardReader::open`].
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self> {
        Self::new(Reader::from_bytes(name, bytes, Kind::Image)?)
    }

    fn new(reader: Reader) -> Result<Self> {
        let index_shape = reader.shape::<u64>("index")?;
        reader.ensure(index_shape.len() == 1, "column \"index\" is not one-dimensional")?;
        let n = index_shape[0];
        let layout = Layout::read(&reader, n)?;
        let meta = read_meta(&reader, layout)?;
        // The constructor knows which combinations are possible.
        ImageShard::new(meta.clone()).map_err(|error| error.context(reader.name()))?;
        for name in ["label", "group", "condition"] {
            reader.ensure_shape::<i64>(name, &[n])?;
        }
        for name in ["seed", "xxh3"] {
            reader.ensure_shape::<u64>(name, &[n])?;
        }
        reader.ensure_shape::<u32>("flags", &[n])?;
        reader.ensure_shape::<f32>("criterion", &[n, meta.guided_steps])?;
        let index = reader.rows::<u64>("index", 0..n)?;
        let failed_shape = reader.shape::<u64>("failed")?;
        reader.ensure(failed_shape.len() == 1, "column \"failed\" is not one-dimensional")?;
        let failed = reader.rows::<u64>("failed", 0..failed_shape[0])?;
        let end = meta.first + meta.planned;
        let planned = (n + failed.len()) as u64 <= meta.planned;
        reader.ensure(
            planned && covers_prefix(meta.first, index.iter().copied(), &failed),
            &format!("columns \"index\" and \"failed\" do not cover a prefix of {}..{end}", meta.first),
        )?;
        let label = vec![i64::from(meta.class); n];
        reader
            .ensure(reader.rows::<i64>("label", 0..n)? == label, "column \"label\" differs from the class")?;
        Ok(Self { reader, layout, meta, index, failed })
    }

    /// What all images share.
    pub fn meta(&self) -> &ShardMeta {
        &self.meta
    }

    /// Number of images present.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether no image is present.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Index within the class of each row.
    pub fn index(&self) -> &[u64] {
        &self.index
    }

    /// Indices for which no usable image could be made.
    pub fn failed(&self) -> &[u64] {
        &self.failed
    }

    /// Reads rows (positions in the file) and verifies the checksum of each image. Failed indices are left out.
    ///
    /// # Errors
    /// Rows outside the file, or a damaged image.
    pub fn rows(&self, rows: Range<usize>) -> Result<ImageShard> {
        let reader = &self.reader;
        let name = |row: usize| format!("image {}", self.index[row]);
        let (images, hashes) = self.layout.verified(reader, rows.clone(), self.len(), name)?;
        let group = reader.rows::<i64>("group", rows.clone())?;
        let seed = reader.rows::<u64>("seed", rows.clone())?;
        let condition = reader.rows::<i64>("condition", rows.clone())?;
        let flags = reader.rows::<u32>("flags", rows.clone())?;
        let table = rows.clone().map(|position| {
            let i = position - rows.start;
            Row {
                index: self.index[position],
                group: group[i],
                seed: seed[i],
                condition: u64::try_from(condition[i]).ok(),
                flags: Flags(flags[i]),
            }
        });
        Ok(ImageShard {
            meta: self.meta.clone(),
            rows: table.collect(),
            images,
            hashes,
            criterion: reader.rows("criterion", rows.clone())?,
            failed: vec![],
        })
    }

    /// Reads everything and verifies the checksum of each image.
    ///
    /// # Errors
    /// As [`ShardReader::rows`].
    pub fn read(&self) -> Result<ImageShard> {
        self.layout.ensure_filled(&self.reader, self.len())?;
        let mut shard = self.rows(0..self.len())?;
        shard.failed.clone_from(&self.failed);
        Ok(shard)
    }

    /// Verifies the checksum of every image, a block at a time.
    pub(crate) fn verify_images(&self) -> Result<()> {
        self.layout.ensure_filled(&self.reader, self.len())?;
        let per_image = self.meta.shape.iter().product();
        verify::blocks(self.len(), per_image).try_for_each(|rows| self.rows(rows).map(drop))
    }
}

fn read_meta(reader: &Reader, layout: Layout) -> Result<ShardMeta> {
    let criterion = reader.shape::<f32>("criterion")?;
    Ok(ShardMeta {
        identity: reader.text("identity")?,
        class: reader.attr("class")?,
        class_name: reader.text("class_name")?,
        prompt: reader.text("prompt")?,
        first: reader.attr("first")?,
        planned: reader.attr("planned")?,
        shape: layout.shape.unwrap_or_default(),
        codec: layout.codec,
        resize_filter: reader.text("resize_filter")?,
        criterion: reader.text("criterion_name")?,
        guided_steps: criterion.get(1).copied().unwrap_or(0),
        reproducible: reader.attr("reproducible")?,
        tool_version: reader.text("tool_version")?,
    })
}
