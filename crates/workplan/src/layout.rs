//! From images to batches to shards: the same for every number of ranks, restart and order of work.
//!
//! A **batch** is a fixed number of consecutive images of one class, or of one group where classes have groups. The last batch of a class is computed at the
//! full fixed shape, because a smaller one could choose other kernels and so other bits, but only its planned images
//! are kept. A **shard** is a whole number of batches of one class (or group) and becomes one file.
//!
//! The images of a class are numbered through its groups, group after group: class and index alone identify an image.

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
    blocks: Vec<Block>,
    /// Number of shards before each block, and at the end of all: a shard's block is found by search.
    starts: Vec<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Class {
    folder: String,
    planned: u64,
}

/// What no batch reaches across: the images of a class or, where there are groups, of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Block {
    class: u32,
    group: Option<u32>,
    /// By index within the class.
    images: Range<u64>,
}

/// One shard: consecutive images of one class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Position in the layout.
    pub id: u64,
    /// Class.
    pub class: ClassId,
    /// Group of all its images, if the plan is by group.
    pub group: Option<u32>,
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
        let (named, counted) = (names.len(), planned.len());
        ensure!(named == counted, Config, "{named} class names for {counted} planned classes");
        let block =
            |(class, &planned): (usize, &u64)| Block { class: class as u32, group: None, images: 0..planned };
        Self::of_blocks(config, names, planned.iter().enumerate().map(block).collect())
    }

    /// Lays out `planned[g]` images of each group, the groups of a class one after the other: class `g / contexts`,
    /// where there are as many contexts for each class named in `names`.
    ///
    /// # Errors
    /// As [`Layout::new`].
    pub fn grouped(config: LayoutConfig, names: &[String], planned: &[u64]) -> Result<Self> {
        let (named, counted) = (names.len(), planned.len());
        ensure!(
            named > 0 && counted.is_multiple_of(named),
            Config,
            "{counted} planned groups do not share {named} classes equally"
        );
        let contexts = (counted / named).max(1);
        let mut blocks = Vec::with_capacity(counted);
        for (class, planned) in planned.chunks(contexts).enumerate() {
            let mut first = 0;
            for (context, planned) in planned.iter().enumerate() {
                let group = Some((class * contexts + context) as u32);
                blocks.push(Block { class: class as u32, group, images: first..first + planned });
                first += planned;
            }
        }
        Self::of_blocks(config, names, blocks)
    }

    /// `blocks` are in the order of classes, and cover each from 0 on.
    fn of_blocks(config: LayoutConfig, names: &[String], blocks: Vec<Block>) -> Result<Self> {
        ensure!(config.batch > 0, Config, "batch must be at least 1");
        ensure!(config.batches_per_shard > 0, Config, "batches_per_shard must be at least 1");
        let of_name = |folder| Class { folder, planned: 0 };
        let mut classes: Vec<Class> = folders(names).into_iter().map(of_name).collect();
        let mut starts = vec![0];
        for Block { class, images, .. } in &blocks {
            classes[*class as usize].planned = images.end;
            let shards = (images.end - images.start).div_ceil(config.batch * config.batches_per_shard);
            starts.push(starts[starts.len() - 1] + shards);
        }
        Ok(Self { config, classes, blocks, starts })
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
        // The last block that starts at or before `id`: blocks without images share their start with the next.
        let block = self.starts.partition_point(|&start| start <= id) - 1;
        let Block { class, group, images } = &self.blocks[block];
        let Class { folder, planned } = &self.classes[*class as usize];
        let size = self.config.batch * self.config.batches_per_shard;
        let first = images.start + (id - self.starts[block]) * size;
        let digits = planned.to_string().len().max(5);
        Some(Shard {
            id,
            class: ClassId(*class),
            group: *group,
            images: first..(first + size).min(images.end),
            path: format!("{folder}/{folder}-{first:0digits$}-of-{planned:0digits$}.h5"),
            batch: self.config.batch,
        })
    }

    /// The group of a planned image; none if the plan is not by group, or the image is not planned.
    pub fn group_of(&self, class: ClassId, index: u64) -> Option<u32> {
        let first = self.blocks.partition_point(|block| block.class < class.0);
        let mut of_class = self.blocks[first..].iter().take_while(|block| block.class == class.0);
        of_class.find(|block| block.images.contains(&index)).and_then(|block| block.group)
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
    fn groups_share_a_class_and_no_shard() {
        let names = ["cat", "dog"].map(str::to_string);
        let config = LayoutConfig { batch: 4, batches_per_shard: 2 };
        // cat: 3, 0 and 9 images in three contexts; dog: 0, 5 and 1.
        let layout = Layout::grouped(config, &names, &[3, 0, 9, 0, 5, 1]).unwrap();
        let shards: Vec<_> =
            layout.shards().map(|shard| (shard.path, shard.class.0, shard.group, shard.images)).collect();
        let expected = [
            ("cat/cat-00000-of-00012.h5", 0, Some(0), 0..3),
            ("cat/cat-00003-of-00012.h5", 0, Some(2), 3..11),
            ("cat/cat-00011-of-00012.h5", 0, Some(2), 11..12),
            ("dog/dog-00000-of-00006.h5", 1, Some(4), 0..5),
            ("dog/dog-00005-of-00006.h5", 1, Some(5), 5..6),
        ];
        assert_eq!(
            shards,
            expected.map(|(path, class, group, images)| (path.to_string(), class, group, images))
        );
        assert_eq!((layout.images(), layout.len()), (18, 5));
        let group = |class, index| layout.group_of(ClassId(class), index);
        assert_eq!(
            [group(0, 2), group(0, 3), group(1, 4), group(1, 5), group(1, 6)],
            [Some(0), Some(2), Some(4), Some(5), None]
        );
        assert!(Layout::grouped(config, &names, &[1, 2, 3]).is_err());
        let plain = Layout::new(config, &names, &[12, 6]).unwrap();
        assert!(plain.shards().all(|shard| shard.group.is_none()) && plain.group_of(ClassId(0), 1).is_none());
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
