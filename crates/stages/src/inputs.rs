//! Images that earlier stages left, in memory: prepared splits and synthetic sets.

use crate::generate::{ShardEntry, ShardIndex};
use crate::stand_in;
use crate::step::Step;
use equipoise_base::{Error, Result, ensure};
use equipoise_data::ImageSet;
use equipoise_shards::{ImageShard, Packed, PackedReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Images of one source with what identifies each.
#[derive(Clone, Debug)]
pub struct Images {
    /// Pixels and labels.
    pub set: Arc<ImageSet>,
    /// Checksum of each image.
    pub hashes: Vec<u64>,
    /// Position of each in its source, or index within its class for synthetic images.
    pub index: Vec<u64>,
}

/// Where a prepared split is read.
pub fn split_file(step: &Step, split: &str) -> PathBuf {
    step.nearest(step.stage_path(&format!("prepare.{split}")).join("split.h5"))
}

/// A prepared split.
///
/// # Errors
/// 65 naming the file if it is damaged or its images have no common size.
pub fn split(step: &Step, split: &str) -> Result<Images> {
    let path = split_file(step, split);
    if step.rehearses() && !path.exists() {
        return stand_in::images(step);
    }
    let packed = Packed::read(&path)?;
    let [height, width, channels] = raw_shape(packed.images().shape(), &path)?;
    let label = |label: i64| {
        u32::try_from(label).map_err(|_| Error::data(format!("{}: label {label}", path.display())))
    };
    let labels = packed.rows().iter().map(|row| label(row.label)).collect::<Result<Vec<u32>>>()?;
    let set = ImageSet::new(height, width, channels, packed.images().samples()?.into_owned(), labels)?;
    let index = packed.rows().iter().map(|row| row.index).collect();
    Ok(Images { set: Arc::new(set), hashes: packed.hashes().to_vec(), index })
}

/// Class names and real images per class of a prepared split.
pub fn split_counts(step: &Step, split: &str) -> Result<(Vec<String>, Vec<u64>)> {
    let path = split_file(step, split);
    if step.rehearses() && !path.exists() {
        // So few that every plan has something to add.
        let classes = step.classes()?;
        let counts = vec![1; classes.len()];
        return Ok((classes, counts));
    }
    let packed = Packed::read(&path)?;
    Ok((packed.meta().class_names.clone(), packed.counts()))
}

/// Names of the groups of a prepared split, and the group of each of its images.
#[derive(Clone, Debug)]
pub struct SplitGroups {
    /// By group.
    pub names: Vec<String>,
    /// By image.
    pub of_image: Vec<i64>,
}

impl SplitGroups {
    /// Images of each group.
    pub fn counts(&self) -> Vec<u64> {
        let mut counts = vec![0; self.names.len()];
        for group in self.of_image.iter().filter_map(|&group| usize::try_from(group).ok()) {
            counts[group] += 1;
        }
        counts
    }
}

/// Real images per group of a prepared split; none if it has no groups.
///
/// # Errors
/// As [`split_groups`].
pub fn group_counts(step: &Step, split: &str) -> Result<Option<Vec<u64>>> {
    if step.rehearses() && !split_file(step, split).exists() {
        // As in `split_counts`.
        return Ok(step.groups()?.map(|groups| vec![1; groups.len()]));
    }
    Ok(split_groups(step, split)?.map(|groups| groups.counts()))
}

/// The groups of a prepared split; none if it has none, or for a rehearsal before it is there. No pixel is read.
///
/// # Errors
/// 65 naming the file if it is damaged.
pub fn split_groups(step: &Step, split: &str) -> Result<Option<SplitGroups>> {
    let path = split_file(step, split);
    if step.rehearses() && !path.exists() {
        return Ok(None);
    }
    let packed = PackedReader::open(&path)?;
    let names = packed.meta().group_names.clone();
    if names.is_empty() {
        return Ok(None);
    }
    let of_image: Vec<i64> = packed.rows().iter().map(|row| row.group).collect();
    let known = of_image.iter().all(|&group| (-1..names.len() as i64).contains(&group));
    ensure!(known, BadData, "{}: an image is of none of its {} groups", path.display(), names.len());
    Ok(Some(SplitGroups { names, of_image }))
}

/// The shards of a synthetic set; none in a rehearsal before it is there.
///
/// # Errors
/// 65 when the set is not complete.
pub fn shards(step: &Step, set: &str, seed: u64) -> Result<Vec<ShardEntry>> {
    let folder = step.set_path(set, seed);
    match step.rehearses() && !folder.join("index.json").exists() {
        true => Ok(Vec::new()),
        false => Ok(ShardIndex::read(&folder)?.shards),
    }
}

/// A synthetic set, in the order of its shard list.
///
/// # Errors
/// 65 naming the shard that is damaged.
pub fn synthetic(step: &Step, set: &str, seed: u64) -> Result<Images> {
    let folder = step.nearest(step.set_path(set, seed));
    if step.rehearses() && !folder.join("index.json").exists() {
        return stand_in::images(step);
    }
    let index = ShardIndex::read(&folder)?;
    let mut all = Images { set: Arc::default(), hashes: Vec::new(), index: Vec::new() };
    let mut images = ImageSet::default();
    for entry in &index.shards {
        let path = folder.join(&entry.path);
        let shard = ImageShard::read(&path)?;
        let [height, width, channels] = raw_shape(shard.images().shape(), &path)?;
        let labels = vec![shard.meta().class; shard.len()];
        if labels.is_empty() {
            continue;
        }
        images.append(ImageSet::new(
            height,
            width,
            channels,
            shard.images().samples()?.into_owned(),
            labels,
        )?)?;
        all.hashes.extend_from_slice(shard.hashes());
        all.index.extend(shard.rows().iter().map(|row| row.index));
    }
    ensure!(!images.labels.is_empty(), BadData, "{}: the set has no images", folder.display());
    all.set = Arc::new(images);
    Ok(all)
}

fn raw_shape(shape: Option<[usize; 3]>, path: &Path) -> Result<[usize; 3]> {
    shape.ok_or_else(|| {
        Error::data(format!("{}: images of different sizes cannot be trained on", path.display()))
    })
}
