//! From images to batches to shards: the same for every number of ranks, restart and order of work.
//!
//! A **batch** is a fixed number of consecutive images of one class. The last batch of a class is computed at the
//! full fixed shape, because a smaller one could choose other kernels and so other bits, but only its planned images
//! are kept. A **shard** is a whole number of batches of one class and becomes one file.

use equipoise_base::{ClassId, Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ops::Range;

/// Sizes that decide the layout. Both are identity fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LayoutConfig {
    /// Images per batch.
    pub batch: u64,
    /// Batches per shard.
    pub batches_per_shard: u64,
}

impl Default for LayoutConfig {
    fn default() -> Self {
        Self { batch: 16, batches_per_shard: 16 }
    }
}

/// Where every planned image of a set belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    config: LayoutConfig,
    classes: Vec<Class>,
    /// Number of shards before each class, and at the end of all: a shard's class is found by search.
    starts: Vec<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Class {
    folder: String,
    planned: u64,
}

/// One shard: consecutive images of one class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Position in the layout.
    pub id: u64,
    /// Class.
    pub class: ClassId,
    /// Images, by index within the class.
    pub images: Range<u64>,
    /// Path within the set, `<class>/<class>-<first>-of-<n>.h5`.
    pub path: String,
    batch: u64,
}

/// One batch: `images.len()` images are kept of `computed` that are sampled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Class.
    pub class: ClassId,
    /// Images that are kept, by index within the class.
    pub images: Range<u64>,
    /// Images that are computed, from `images.start` on: the fixed batch size.
    pub computed: u64,
}

impl Layout {
    /// Lays out `planned[c]` images of the class named `names[c]`.
    ///
    /// # Errors
    /// 78 when a size is 0, or names and counts differ in number.
    pub fn new(config: LayoutConfig, names: &[String], planned: &[u64]) -> Result<Self> {
        ensure!(config.batch > 0, Config, "batch must be at least 1");
        ensure!(config.batches_per_shard > 0, Config, "batches_per_shard must be at least 1");
        let (named, counted) = (names.len(), planned.len());
        ensure!(named == counted, Config, "{named} class names for {counted} planned classes");
        let folders = folders(names);
        let classes: Vec<Class> =
            folders.into_iter().zip(planned).map(|(folder, &planned)| Class { folder, planned }).collect();
        let mut starts = vec![0];
        for class in &classes {
            starts.push(
                starts[starts.len() - 1] + class.planned.div_ceil(config.batch * config.batches_per_shard),
            );
        }
        Ok(Self { config, classes, starts })
    }

    /// Number of shards.
    pub fn len(&self) -> u64 {
        self.starts[self.starts.len() - 1]
    }

    /// Whether nothing is planned.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Images per batch.
    pub fn batch(&self) -> u64 {
        self.config.batch
    }

    /// Number of planned images.
    pub fn images(&self) -> u64 {
        self.classes.iter().map(|class| class.planned).sum()
    }

    /// Folder of each class, unique also where file systems ignore case.
    pub fn folders(&self) -> impl Iterator<Item = &str> {
        self.classes.iter().map(|class| class.folder.as_str())
    }

    /// A shard by position, `None` past the end.
    pub fn shard(&self, id: u64) -> Option<Shard> {
        if id >= self.len() {
            return None;
        }
        // The last class that starts at or before `id`: classes without images share their start with the next.
        let class = self.starts.partition_point(|&start| start <= id) - 1;
        let Class { folder, planned } = &self.classes[class];
        let size = self.config.batch * self.config.batches_per_shard;
        let first = (id - self.starts[class]) * size;
        let digits = planned.to_string().len().max(5);
        Some(Shard {
            id,
            class: ClassId(class as u32),
            images: first..(first + size).min(*planned),
            path: format!("{folder}/{folder}-{first:0digits$}-of-{planned:0digits$}.h5"),
            batch: self.config.batch,
        })
    }

    /// All shards, by class and first image.
    pub fn shards(&self) -> impl Iterator<Item = Shard> {
        (0..self.len()).filter_map(|id| self.shard(id))
    }

    /// Shard ids in the order in which they are claimed: largest first, so that the work at the end is small and no
    /// rank waits long; of equal sizes the lower id first.
    pub fn claim_order(&self) -> Vec<u64> {
        let mut order: Vec<(u64, u64)> =
            self.shards().map(|shard| (shard.images.end - shard.images.start, shard.id)).collect();
        order.sort_unstable_by_key(|&(size, id)| (std::cmp::Reverse(size), id));
        order.into_iter().map(|(_, id)| id).collect()
    }
}

impl Shard {
    /// The batches of this shard, in order.
    pub fn batches(&self) -> impl Iterator<Item = Batch> {
        let (batch, end, class) = (self.batch, self.images.end, self.class);
        self.images.clone().step_by(batch as usize).map(move |first| Batch {
            class,
            images: first..(first + batch).min(end),
            computed: batch,
        })
    }
}

/// Folder names for class names: letters, digits, `.`, `_` and `-` stay, anything else becomes `-`. Where two would
/// be the same (ignoring case), or one would be hidden or empty, the class number is put behind.
fn folders(names: &[String]) -> Vec<String> {
    let plain: Vec<String> = names.iter().map(|name| slug(name)).collect();
    let mut uses = std::collections::BTreeMap::new();
    for slug in &plain {
        *uses.entry(slug.to_lowercase()).or_insert(0) += 1;
    }
    let mut taken: BTreeSet<String> = BTreeSet::new();
    let mut folders = Vec::with_capacity(plain.len());
    for (class, slug) in plain.into_iter().enumerate() {
        let mut folder = slug;
        let ambiguous = uses.get(&folder.to_lowercase()).is_some_and(|&uses| uses > 1);
        if ambiguous || folder.is_empty() {
            folder = format!("{folder}-{class}").trim_start_matches('-').to_owned();
        }
        // A class may be called `cat-1` beside two called `cat`.
        while taken.contains(&folder.to_lowercase())
            || (ambiguous && uses.contains_key(&folder.to_lowercase()))
        {
            folder.push('_');
        }
        taken.insert(folder.to_lowercase());
        folders.push(folder);
    }
    folders
}

fn slug(name: &str) -> String {
    let mut slug = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '_' => slug.push(c),
            _ if slug.ends_with('-') => {}
            _ => slug.push('-'),
        }
    }
    let slug = slug.trim_matches(|c| c == '-' || c == '.');
    // File names are limited to 255 bytes, and this one stands in a file name beside two numbers.
    slug[..slug.len().min(120)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layout(batch: u64, batches_per_shard: u64, planned: &[u64]) -> Layout {
        let names: Vec<String> = (0..planned.len()).map(|class| format!("c{class}")).collect();
        Layout::new(LayoutConfig { batch, batches_per_shard }, &names, planned).unwrap()
    }

    #[test]
    fn files_and_batches() {
        let layout = layout(4, 2, &[10, 0, 8]);
        let paths: Vec<String> = layout.shards().map(|shard| shard.path).collect();
        assert_eq!(paths, ["c0/c0-00000-of-00010.h5", "c0/c0-00008-of-00010.h5", "c2/c2-00000-of-00008.h5"]);
        let last = layout.shard(1).unwrap();
        let batches: Vec<Batch> = last.batches().collect();
        assert_eq!(batches, [Batch { class: ClassId(0), images: 8..10, computed: 4 }]);
        assert_eq!(layout.claim_order(), [0, 2, 1]);
    }

    #[test]
    fn folders_are_portable_and_unique() {
        let names =
            ["T-shirt/top", "tench, Tinca tinca", "cat", "Cat", "cat-2", "..", "", "猫", "crane", "crane"];
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let layout = Layout::new(LayoutConfig::default(), &names, &[1; 10]).unwrap();
        let folders: Vec<&str> = layout.folders().collect();
        let unique: BTreeSet<String> = folders.iter().map(|folder| folder.to_lowercase()).collect();
        assert_eq!(unique.len(), names.len(), "{folders:?}");
        assert_eq!(folders[..3], ["T-shirt-top", "tench-Tinca-tinca", "cat-2_"]);
        assert!(
            folders.iter().all(|folder| !folder.is_empty() && !folder.starts_with(['.', '-'])),
            "{folders:?}"
        );
    }

    #[test]
    fn sizes_must_be_positive() {
        for (batch, batches_per_shard) in [(0, 1), (1, 0)] {
            assert!(Layout::new(LayoutConfig { batch, batches_per_shard }, &[], &[]).is_err());
        }
        assert!(Layout::new(LayoutConfig::default(), &["a".into()], &[]).is_err());
    }

    proptest! {
        /// Every planned image lies in exactly one batch of one shard, and every claim order is a permutation.
        #[test]
        fn every_image_once(
            batch in 1u64..9, per_shard in 1u64..5, planned in prop::collection::vec(0u64..60, 1..8),
        ) {
            let layout = layout(batch, per_shard, &planned);
            let mut seen: Vec<Vec<u64>> = vec![Vec::new(); planned.len()];
            for (id, shard) in layout.shards().enumerate() {
                prop_assert_eq!(shard.id, id as u64);
                let mut next = shard.images.start;
                prop_assert_eq!(next % (batch * per_shard), 0);
                for batch_of in shard.batches() {
                    prop_assert_eq!((batch_of.images.start, batch_of.computed), (next, batch));
                    prop_assert!(batch_of.images.start < batch_of.images.end);
                    next = batch_of.images.end;
                    seen[shard.class.0 as usize].extend(batch_of.images);
                }
                prop_assert_eq!(next, shard.images.end);
            }
            for (class, indices) in seen.iter().enumerate() {
                prop_assert!(indices.iter().copied().eq(0..planned[class]));
            }
            let mut claims = layout.claim_order();
            claims.sort_unstable();
            prop_assert!(claims.into_iter().eq(0..layout.len()));
            prop_assert!(layout.shard(layout.len()).is_none());
        }
    }
}
