//! Images made again: to compare them with what is stored, and to complete a set whose images failed.
//!
//! Both go through the [`Factory`](crate::generate::Factory) and [`Synthesizer`] of generation. An image belongs to a
//! batch that is always computed as a whole, so the batch is what is made again.

use crate::generate::{self, Set, ShardIndex};
use crate::step::{self, Step};
use crate::synthesis::{MORE_SUB_SEEDS, Made, SUB_SEEDS, Synthesizer};
use crate::training::Ended;
use equipoise_base::rng::Key;
use equipoise_base::{Error, ExitCode, Result, bail, ensure};
use equipoise_comm::agree::Verdict;
use equipoise_rundir::RunDir;
use equipoise_shards::{Depth, Image, ImageShard, verify};
use equipoise_workplan::Shard;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Which images of a set are made again.
#[derive(Clone, Debug)]
pub enum Pick {
    /// These, by name, folder or number of their class and index within it.
    Images(Vec<(String, u64)>),
    /// So many of them, always the same ones.
    Sample(u64),
}

/// An image made again beside the stored one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// Folder of the class.
    pub class: String,
    /// Index within the class.
    pub index: u64,
    /// What differs; none if nothing does.
    pub difference: Option<String>,
}

/// Makes images of the set of a `generate` stage again, from their identity, and compares them with what is stored.
///
/// Images of a file that says `reproducible=false` may differ by up to `tolerance` levels of 255. Nothing is written
/// and no lease is taken.
///
/// # Errors
/// 78 naming the configuration key or the fact about this machine that differs from the run's, or telling that the
/// weights do; 64 if an image is not planned; 65 naming a damaged file.
pub fn audit(
    run: &Path,
    stage: &str,
    pick: &Pick,
    tolerance: u8,
    on_image: &mut dyn FnMut(&Compared),
) -> Result<()> {
    let step = Step::reader(run, stage)?;
    let (params, factory, set) = generate::open(&step)?;
    let synthesizer = factory.synthesizer(&params)?;
    let index = ShardIndex::read(&set.folder)?;
    ensure!(
        index.identity == set.identity,
        Config,
        "{}: made with identity {}, and this command has {}: configuration and machine are the same, so the weights \
         of the generator or of the guide have changed since",
        set.folder.display(),
        index.identity,
        set.identity
    );
    for (id, wanted) in picked(&set, &index, pick)? {
        let shard = set.shard(id)?;
        let path = set.folder.join(&shard.path);
        let file = ImageShard::read(&path)?;
        verify(&path, Depth::Shallow, &set.expect(&shard, true))?;
        ShardAudit { synthesizer: &synthesizer, file: &file, tolerance }
            .compare(&shard, &wanted, on_image)?;
    }
    Ok(())
}

/// The images to look at, by shard.
fn picked(set: &Set<'_>, index: &ShardIndex, pick: &Pick) -> Result<BTreeMap<u64, BTreeSet<u64>>> {
    let mut wanted: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    match pick {
        Pick::Images(images) => {
            for (class, image) in images {
                let shard = shard_of(set, class, *image)?;
                wanted.entry(shard.id).or_default().insert(*image);
            }
        }
        Pick::Sample(count) => {
            let present = present(set, index)?;
            let mut order = Key::new(0, "audit").stream().permutation(present.len());
            order.truncate(usize::try_from(*count).unwrap_or(usize::MAX));
            for position in order {
                let (id, image) = present[position];
                wanted.entry(id).or_default().insert(image);
            }
        }
    }
    Ok(wanted)
}

fn shard_of(set: &Set<'_>, class: &str, image: u64) -> Result<Shard> {
    let by_name = set.classes.iter().position(|name| name == class);
    let by_folder = || set.layout.folders().position(|folder| folder == class);
    let by_number = || class.parse().ok().filter(|&number: &usize| number < set.classes.len());
    let Some(label) = by_name.or_else(by_folder).or_else(by_number) else {
        bail!(
            Usage,
            "{}: there is no class '{class}'; there are: {}",
            set.folder.display(),
            set.classes.join(", ")
        );
    };
    let of_class = |shard: &Shard| shard.class.0 as usize == label;
    let found = set.layout.shards().find(|shard| of_class(shard) && shard.images.contains(&image));
    found.ok_or_else(|| {
        let planned = set.layout.shards().filter(of_class).map(|shard| shard.images.end).max().unwrap_or(0);
        let message =
            format!("{}: there is no image {class}/{image}: {planned} are planned", set.folder.display());
        Error::new(ExitCode::Usage, message)
    })
}

/// Every image that is there, with the id of its shard.
fn present(set: &Set<'_>, index: &ShardIndex) -> Result<Vec<(u64, u64)>> {
    let mut present = Vec::new();
    let mut entries = index.shards.iter();
    for shard in set.layout.shards() {
        let entry = entries.next().filter(|entry| entry.path == Path::new(&shard.path)).ok_or_else(|| {
            Error::data(format!("{}: index.json does not list the planned shards", set.folder.display()))
        })?;
        let made = shard.images.clone().filter(|image| !entry.failed.contains(image));
        present.extend(made.map(|image| (shard.id, image)));
    }
    Ok(present)
}

/// One shard being compared.
struct ShardAudit<'a> {
    synthesizer: &'a Synthesizer<'a>,
    file: &'a ImageShard,
    tolerance: u8,
}

impl ShardAudit<'_> {
    fn compare(
        &self,
        shard: &Shard,
        wanted: &BTreeSet<u64>,
        on_image: &mut dyn FnMut(&Compared),
    ) -> Result<()> {
        // Images that a completion has made need its further sub-seeds again.
        let completed = self.file.rows().iter().any(|row| row.flags.sub_seed() > SUB_SEEDS);
        let last = if completed { MORE_SUB_SEEDS } else { SUB_SEEDS };
        for made in make_again(self.synthesizer, shard, wanted, last)? {
            let class = shard.path.split('/').next().unwrap_or_default().to_string();
            on_image(&Compared { class, index: made.index, difference: self.difference(&made)? });
        }
        Ok(())
    }

    /// What differs between an image made again and its row.
    fn difference(&self, made: &Made) -> Result<Option<String>> {
        let stored = self.file.rows().iter().position(|row| row.index == made.index);
        let (Some(position), Some(pixels)) = (stored, &made.pixels) else {
            return Ok(match (stored, &made.pixels) {
                (None, None) => None,
                (None, Some(_)) => Some("listed as failed, and could be made now".into()),
                (Some(_), _) => Some("stored, and could not be made now".into()),
            });
        };
        let row = self.file.rows()[position];
        let mut differs: Vec<String> = self.pixels(position, pixels)?.into_iter().collect();
        if row.seed != made.seed {
            differs.push(format!("seed: stored {:016x}, made {:016x}", row.seed, made.seed));
        }
        if row.condition != made.condition {
            differs.push(format!("condition: stored {:?}, made {:?}", row.condition, made.condition));
        }
        if row.flags != made.flags {
            differs.push(format!("flags: stored {}, made {}", row.flags, made.flags));
        }
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<u32>>();
        if self.file.meta().reproducible && bits(self.file.criterion(position)) != bits(&made.criterion) {
            differs.push("criterion".into());
        }
        Ok((!differs.is_empty()).then(|| differs.join("; ")))
    }

    fn pixels(&self, position: usize, pixels: &[u8]) -> Result<Option<String>> {
        let meta = self.file.meta();
        let [height, width, channels] = meta.shape;
        let image = Image::new(height, width, channels, pixels.to_vec())?;
        let made = meta.codec.encode(&image)?;
        if *self.file.images().stored(position) == *made {
            return Ok(None);
        }
        let stored = self.file.images().decode(position)?.pixels;
        let apart = || stored.iter().zip(pixels).map(|(a, b)| a.abs_diff(*b));
        let largest = apart().max().unwrap_or(0);
        if !meta.reproducible && largest <= self.tolerance {
            return Ok(None);
        }
        let count = apart().filter(|&apart| apart > 0).count();
        Ok(Some(format!("{count} of {} samples, by up to {largest} levels", stored.len())))
    }
}

/// The wanted images of a shard, by rising index; bad ones are tried up to sub-seed `last`.
fn make_again(
    synthesizer: &Synthesizer<'_>,
    shard: &Shard,
    wanted: &BTreeSet<u64>,
    last: u32,
) -> Result<Vec<Made>> {
    let mut again = Vec::with_capacity(wanted.len());
    for batch in shard.batches().filter(|batch| wanted.range(batch.images.clone()).next().is_some()) {
        let keep = batch.images.end - batch.images.start;
        let made = synthesizer.batch(shard.class, batch.images.start, keep, last)?;
        again.extend(made.into_iter().filter(|made| wanted.contains(&made.index)));
    }
    Ok(again)
}

/// Makes the failed images of a set again, from more sub-seeds than generation tried, then whatever shards are missing
/// or damaged, and writes its index anew: the `generate` stage under its lease, from where it is.
///
/// # Errors
/// 1 if some images could not be made this time either; 69 if a live job owns the stage; 78 naming what differs if
/// this machine cannot match the identity of the run.
pub fn complete(run: &Path, stage: &str) -> Result<ExitCode> {
    let config = RunDir::new(run).config();
    step::run_stage(&config, run, &[format!("stage={stage}")], None, complete_stage)
}

fn complete_stage(step: &Step) -> Result<Ended> {
    if retry_failed(step)? == Ended::Stopped {
        return Ok(Ended::Stopped);
    }
    generate::run(step)
}

/// Each rank takes its part of the shards that have failed images.
fn retry_failed(step: &Step) -> Result<Ended> {
    let (params, factory, set) = generate::open(step)?;
    let synthesizer = factory.synthesizer(&params)?;
    let mut stopped = false;
    for shard in set.layout.shards().filter(|shard| shard.id as usize % step.world() == step.rank()) {
        let path = set.folder.join(&shard.path);
        // What is missing or damaged is made as a whole by the stage itself.
        match verify(&path, Depth::Shallow, &set.expect(&shard, true)) {
            Ok(verified) if !verified.failed.is_empty() => {}
            _ => continue,
        }
        let Ok(old) = ImageShard::read(&path) else { continue };
        step.poll_deadline();
        stopped = step.stop_verdict() != Verdict::Go;
        if stopped {
            break;
        }
        equipoise_telemetry::info!("{}: making {} failed images again", shard.path, old.failed().len());
        let failed = old.failed().iter().copied().collect();
        let again = make_again(&synthesizer, &shard, &failed, MORE_SUB_SEEDS)?;
        if again.iter().any(|made| made.pixels.is_some()) {
            step.commit(&path, &generate::bytes_of(&mut completed(&old, again, shard.group)?)?)?;
        }
    }
    Ok(if step.all_done(!stopped)? { Ended::Done } else { Ended::Stopped })
}

/// A shard with its failed images in their places, as if they had been made in the first place.
fn completed(old: &ImageShard, again: Vec<Made>, group: Option<u32>) -> Result<ImageShard> {
    let mut file = ImageShard::new(old.meta().clone())?;
    let mut again = again.into_iter().peekable();
    for (position, row) in old.rows().iter().enumerate() {
        while let Some(made) = again.next_if(|made| made.index < row.index) {
            generate::append(&mut file, &made, group)?;
        }
        file.push(*row, old.images().stored(position), old.criterion(position))?;
    }
    again.try_for_each(|made| generate::append(&mut file, &made, group))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use equipoise_shards::{Codec, Flags, Row, ShardMeta};

    fn shard(first: u64, planned: u64) -> ImageShard {
        ImageShard::new(ShardMeta {
            identity: "i".into(),
            class: 2,
            class_name: "coat".into(),
            prompt: String::new(),
            first,
            planned,
            shape: [1, 2, 1],
            codec: Codec::Raw,
            resize_filter: String::new(),
            criterion: "entropy".into(),
            guided_steps: 1,
            reproducible: true,
            tool_version: "t".into(),
        })
        .unwrap()
    }

    fn made(index: u64, pixels: Option<u8>) -> Made {
        let criterion = if pixels.is_some() { vec![index as f32] } else { vec![] };
        Made {
            index,
            seed: index,
            pixels: pixels.map(|value| vec![value, 0]),
            condition: None,
            criterion,
            flags: Flags::NONE,
        }
    }

    #[test]
    fn a_completed_shard_equals_one_without_failures() {
        let (mut whole, mut holed) = (shard(4, 5), shard(4, 5));
        for index in 4..9 {
            let image = made(index, Some(index as u8));
            generate::append(&mut whole, &image, Some(7)).unwrap();
            let seen = if [4, 6, 8].contains(&index) { made(index, None) } else { image };
            generate::append(&mut holed, &seen, Some(7)).unwrap();
        }
        assert_eq!(holed.failed(), [4, 6, 8]);
        let again = |last| vec![made(4, Some(4)), made(6, Some(6)), made(8, last)];
        let complete = completed(&holed, again(Some(8)), Some(7)).unwrap();
        assert_eq!(complete.write().unwrap(), whole.write().unwrap());
        let partly = completed(&holed, again(None), Some(7)).unwrap();
        assert_eq!((partly.len(), partly.failed()), (4, &[8][..]));
        assert!(partly.is_finished());
        let row = Row { index: 4, group: 7, seed: 4, condition: None, flags: Flags::NONE };
        assert_eq!(partly.rows()[0], row);
    }
}
