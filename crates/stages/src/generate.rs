//! `equipoise-generate`: exact counts of images per class into shards, by any ranks in any order.
//!
//! A shard is its own checkpoint: to resume is to list what is missing or invalid. On a stop the finished batches of a
//! shard are left as `.parts/<shard>`; whoever claims the shard next continues them.

use crate::inputs;
use crate::latent::LatentSource;
use crate::nets::{DataShape, Frozen, Generator, GeneratorConfig};
use crate::precision;
use crate::shard_writer::{Committed, Open, ShardWriter};
use crate::source::{PixelSource, Source};
use crate::statistics::ClassTable;
use crate::step::Step;
use crate::synthesis::{FeedbackOf, Made, SUB_SEEDS, Synthesizer};
use crate::training::Ended;
use crate::world::StageClaims;
use equipoise_base::rng::Key;
use equipoise_base::{Error, ExitCode, Identity, Result, trace};
use equipoise_comm::claims::{Claim, Claims};
use equipoise_config::{method, recipe};
use equipoise_diffusion::criterion::Criterion;
use equipoise_diffusion::feedback::FeedbackConfig;
use equipoise_diffusion::view::View;
use equipoise_rundir::read_json;
use equipoise_shards::{
    Codec, Depth, ENCODER_VERSION, Expect, FileImage, Image, ImageShard, Row, ShardMeta, tool_version, verify,
};
use equipoise_telemetry::Progress;
use equipoise_workplan::{CodecConfig, Layout, LayoutConfig, PlanConfig, Shard};
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Keys of `[sets.NAME]`, complete, with those of `[diffusion]`.
#[derive(Clone, Debug, Deserialize)]
pub struct GenerateParams {
    /// Split whose class counts the plan completes.
    pub split: String,
    /// Classifier that gives feedback.
    pub guide: Option<String>,
    /// Images per batch.
    pub batch: u64,
    /// Batches per shard.
    pub batches_per_shard: u64,
    /// How many images of each class.
    pub plan: method::Plan,
    /// How images are stored.
    pub codec: method::Codec,
    /// Sampler.
    pub sampler: method::Sampler,
    /// Scale of classifier-free guidance.
    pub cfg_scale: f64,
    /// Number format.
    pub precision: recipe::Precision,
    /// Feedback.
    pub feedback: Option<method::Feedback>,
    /// What a latent generator is told about each image.
    pub condition: Option<method::Condition>,
    /// The generator.
    pub diffusion: GeneratorConfig,
}

#[derive(Clone, Debug, Deserialize)]
struct SetParams {
    set: String,
    seed: u64,
}

/// `index.json` of a set: its shards when it is complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardIndex {
    /// Identity of every image in it.
    pub identity: Identity,
    /// The shards, by class and first image.
    pub shards: Vec<ShardEntry>,
}

/// One shard of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// Path within the set.
    pub path: PathBuf,
    /// Class.
    pub class: u32,
    /// Images in it.
    pub images: u64,
    /// Indices that could not be made.
    pub failed: Vec<u64>,
    /// Images that a retry repaired.
    pub retried: u64,
    /// Size of the file.
    pub bytes: u64,
    /// xxh3-64 of the whole file, hexadecimal.
    pub xxh3: String,
}

impl ShardIndex {
    /// The index of a complete set.
    ///
    /// # Errors
    /// 65 when the set is not complete.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("index.json");
        let index = read_json(&equipoise_rundir::RealFs, &path)?;
        index.ok_or_else(|| Error::data(format!("{}: the set is not complete", folder.display())))
    }
}

/// Makes every missing shard of a set.
///
/// # Errors
/// 1 when some images could not be made finite, after everything else is committed; 73 when there is too little space.
pub fn run(step: &Step) -> Result<Ended> {
    let (params, factory, set) = open(step)?;
    let synthesizer = factory.synthesizer(&params)?;
    let missing = set.missing()?;
    step.require_space(
        missing.iter().map(|&id| set.images(id)).sum::<u64>() * set.image_bytes,
        missing.len() as u64,
    )?;
    let done: u64 = set.layout.images() - missing.iter().map(|&id| set.images(id)).sum::<u64>();
    let mut progress = Progress::new(&step.stage.name, "images", done, set.layout.images(), step.is_root());
    let claims = step.claims(missing.iter().map(|&id| id as usize).collect())?;
    let writer = ShardWriter::start(step.committer())?;
    let mut own = 0;
    let ended = loop {
        match claims.next()? {
            Claim::Done => break Ended::Done,
            Claim::Stop => break Ended::Stopped,
            Claim::Unit(id) => {
                let shard = set.shard(id as u64)?;
                let mut on_batch = |images: u64| {
                    own += images;
                    step.count_made(images);
                    step.poll_deadline();
                    set.report(&claims, writer.committed()?)?;
                    progress.set(done + own + set.finished_elsewhere(&claims, &missing));
                    step.report_progress("images", &progress, false)
                };
                if !set.make(&shard, &synthesizer, &claims, &writer, &mut on_batch)? {
                    break Ended::Stopped;
                }
            }
        }
    };
    set.report(&claims, writer.finish()?)?;
    set.note_parts()?;
    claims.close()?;
    if step.all_done(ended == Ended::Done)? {
        // In an array job other tasks may be at work; whoever finds the set complete finishes it.
        if step.part().1 > 1 && !set.is_complete()? {
            return Ok(Ended::Part);
        }
        progress.set(set.layout.images());
        step.report_progress("images", &progress, true)?;
        set.finish()?;
        return Ok(Ended::Done);
    }
    Ok(Ended::Stopped)
}

/// The set of a stage: its parameters, the networks that make it, and where everything in it belongs.
///
/// # Errors
/// 65 naming the weights or the split that cannot be used, 78 when parameters do not fit.
pub(crate) fn open(step: &Step) -> Result<(GenerateParams, Factory, Set<'_>)> {
    let params: GenerateParams = step.params()?;
    let named: SetParams = step.params()?;
    let factory = Factory::new(step, &params, named.seed)?;
    let set = Set::new(step, &params, &named, factory.identity(step, &params)?)?;
    Ok((params, factory, set))
}

/// Encodes an image and adds it, or the fact that none could be made, to its shard. All images of a shard are of its
/// `group`.
///
/// # Errors
/// 65 if it does not follow what the shard holds.
pub(crate) fn append(file: &mut ImageShard, made: &Made, group: Option<u32>) -> Result<()> {
    match &made.pixels {
        Some(pixels) => {
            let row = Row {
                index: made.index,
                group: group.map_or(-1, i64::from),
                seed: made.seed,
                condition: made.condition,
                flags: made.flags,
            };
            let ShardMeta { codec, shape: [height, width, channels], .. } = *file.meta();
            let image = Image::new(height, width, channels, pixels.clone())?;
            file.push(row, &codec.encode(&image)?, &made.criterion)
        }
        None => file.push_failed(made.index),
    }
}

/// A shard as a file, which says whether all operators that made it are deterministic: known only after they ran.
///
/// # Errors
/// 65 or 74 if it cannot be written.
pub(crate) fn bytes_of(file: &mut ImageShard) -> Result<FileImage> {
    if !equipoise_nn::runtime::nondeterministic_operators()?.is_empty() {
        file.mark_irreproducible();
    }
    file.write()
}

/// The codec that a recipe names.
///
/// # Errors
/// 78 when the quality is out of range.
pub(crate) fn codec(named: &method::Codec) -> Result<Codec> {
    let config: CodecConfig = named.parse()?;
    config.to_string().parse().map_err(|error: Error| Error::config(error.message()))
}

/// The networks of a set, loaded.
pub struct Factory {
    source: Box<dyn Source>,
    guide: Option<Frozen>,
    view: Option<View>,
    seed: u64,
    statistics: Option<ClassTable>,
}

impl Factory {
    /// Loads generator and guide.
    ///
    /// # Errors
    /// 65 naming the tensor or file that does not fit.
    pub fn new(step: &Step, params: &GenerateParams, seed: u64) -> Result<Self> {
        let shape = step.data_shape()?;
        let source = source(step, params, &shape)?;
        let (guide, statistics, view) = match (&params.feedback, &params.guide) {
            (Some(feedback), Some(name)) => {
                let config: FeedbackConfig = feedback.parse()?;
                let guide = step.helper(name)?;
                let statistics = match config.criterion {
                    Criterion::Hardness => Some(ClassTable::of_guide(step, name, &guide, config.hardness())?),
                    Criterion::Loss | Criterion::Entropy => None,
                };
                let view = step.view_of(name)?.with_range(config.look.range);
                (Some(guide), statistics, Some(view))
            }
            _ => (None, None, None),
        };
        let seed = Key::new(step.recipe().run.seed, "set").index(seed).hash();
        Ok(Self { source, guide, view, seed, statistics })
    }

    /// Tells a latent generator something else about each image.
    ///
    /// # Errors
    /// 78 if it is a pixel generator, or the condition does not fit.
    pub fn recondition(&mut self, condition: &method::Condition) -> Result<()> {
        self.source.recondition(condition)
    }

    /// Ready to make batches.
    ///
    /// # Errors
    /// 78 when a method's parameters do not fit.
    pub fn synthesizer<'a>(&'a self, params: &GenerateParams) -> Result<Synthesizer<'a>> {
        let feedback = match (&params.feedback, &self.guide, &self.view) {
            (Some(feedback), Some(guide), Some(view)) => Some(FeedbackOf {
                config: feedback.parse()?,
                guide,
                view,
                statistics: self.statistics.as_ref(),
            }),
            _ => None,
        };
        Ok(Synthesizer {
            source: &*self.source,
            sampler: params.sampler.parse()?,
            cfg_scale: params.cfg_scale,
            precision: precision::compute(params.precision)?,
            feedback,
            seed: self.seed,
            batch: params.batch,
        })
    }

    /// Everything that changes pixels: the stage's own identity, the machine's facts, the weights in use.
    fn identity(&self, step: &Step, params: &GenerateParams) -> Result<Identity> {
        let guide = self.guide.as_ref().map_or("none", |guide| guide.hash.as_str());
        let facts = equipoise_nn::runtime::fingerprint()?;
        let generator = self.source.hash();
        let codec = codec(&params.codec)?;
        let encoder = if codec.is_raw() { String::new() } else { format!(" encoder={ENCODER_VERSION}") };
        let facts = format!("{facts} {generator} {guide} {}{encoder}", params.batch);
        Ok(Identity::of(&format!("{} {facts}", step.identity())))
    }
}

/// The generator of a recipe: a folder of a latent diffusion, or a network over pixels.
fn source(step: &Step, params: &GenerateParams, shape: &DataShape) -> Result<Box<dyn Source>> {
    if let (Some(folder), Some(condition)) = (&params.diffusion.folder, &params.condition) {
        let by_group = params.plan.parse::<PlanConfig>()?.is_by_group();
        let groups = by_group.then(|| layout(step, params)).transpose()?;
        let held = precision::compute(params.precision)?;
        let split = &params.split;
        return Ok(Box::new(LatentSource::open(step, folder, condition, split, groups, shape, held)?));
    }
    let weights = match &params.diffusion.weights {
        Some(file) => file.clone(),
        None => step.stage_path("diffusion").join("model.safetensors"),
    };
    let generator = match step.rehearses() && !weights.exists() {
        true => Generator::untrained(&params.diffusion, shape)?,
        false => {
            let tensors = step.weights(&weights)?;
            Generator::load(&params.diffusion, &weights.display().to_string(), &tensors, shape)?
        }
    };
    let [height, width] = shape.size;
    Ok(Box::new(PixelSource { generator, shape: [shape.channels, height, width] }))
}

/// Where every image of the plan belongs: by class, or by group.
///
/// # Errors
/// 65 if the split cannot be read; 78 if the plan is by group and its images have none.
fn layout(step: &Step, params: &GenerateParams) -> Result<Layout> {
    let plan: PlanConfig = params.plan.parse()?;
    let config = LayoutConfig { batch: params.batch, batches_per_shard: params.batches_per_shard };
    if !plan.is_by_group() {
        let (classes, counts) = inputs::split_counts(step, &params.split)?;
        return Layout::new(config, &classes, &plan.plan(&counts).synthetic());
    }
    let no_groups = || {
        let split = &params.split;
        Error::config(format!("data.splits.{split}: a plan by group needs a source that says contexts"))
    };
    let counts = inputs::group_counts(step, &params.split)?.ok_or_else(no_groups)?;
    Layout::grouped(config, &step.classes()?, &plan.plan(&counts).synthetic())
}

/// A set being made.
pub(crate) struct Set<'a> {
    step: &'a Step,
    /// Where every planned image belongs.
    pub(crate) layout: Layout,
    /// Its folder.
    pub(crate) folder: PathBuf,
    /// Identity of every image in it.
    pub(crate) identity: Identity,
    /// Class names by label.
    pub(crate) classes: Vec<String>,
    criterion: String,
    shape: [usize; 3],
    codec: Codec,
    image_bytes: u64,
    /// Images in shards that this rank has made.
    own: Cell<u64>,
    /// What it has sampled of shards that wait to be committed, and how long that took.
    sampled: RefCell<BTreeMap<u64, (Range<u64>, Duration)>>,
}

impl<'a> Set<'a> {
    fn new(step: &'a Step, params: &GenerateParams, named: &SetParams, identity: Identity) -> Result<Self> {
        let (classes, layout) = (step.classes()?, layout(step, params)?);
        let shape = step.data_shape()?;
        let criterion = match &params.feedback {
            Some(feedback) => feedback.0["criterion"].as_str().unwrap_or_default().to_string(),
            None => String::new(),
        };
        let shape = [shape.size[0] as usize, shape.size[1] as usize, shape.channels as usize];
        let folder = step.set_path(&named.set, named.seed);
        let image_bytes =
            params.codec.parse::<CodecConfig>()?.image_bytes(shape.iter().product::<usize>() as u64);
        let codec = codec(&params.codec)?;
        let (own, sampled) = Default::default();
        Ok(Self {
            step,
            layout,
            folder,
            identity,
            classes,
            criterion,
            shape,
            codec,
            image_bytes,
            own,
            sampled,
        })
    }

    /// A shard by its position in the layout.
    pub(crate) fn shard(&self, id: u64) -> Result<Shard> {
        self.layout.shard(id).ok_or_else(|| Error::new(ExitCode::Bug, format!("shard {id} is not planned")))
    }

    fn images(&self, id: u64) -> u64 {
        self.layout.shard(id).map_or(0, |shard| shard.images.end - shard.images.start)
    }

    /// What the file of a shard must be.
    pub(crate) fn expect(&self, shard: &Shard, finished: bool) -> Expect {
        Expect {
            identity: Some(self.identity.to_string()),
            class: Some(shard.class.0),
            plan: Some((shard.images.start, shard.images.end - shard.images.start)),
            finished,
            file_xxh3: None,
        }
    }

    /// Whether all shards are there, as the root sees it.
    fn is_complete(&self) -> Result<bool> {
        let missing = |shard: Shard| !self.folder.join(&shard.path).exists();
        let open = self.step.is_root() && self.layout.shards().any(missing);
        self.step.all_done(!open)
    }

    /// Ids of shards that are not there or not valid, in claim order: each rank looks at its part. A task of an array
    /// job reads its part of the shards, and believes of the others that they are valid if they are there.
    fn missing(&self) -> Result<Vec<u64>> {
        let (rank, world) = (self.step.rank() as u64, self.step.world() as u64);
        let (part, parts) = self.step.part();
        let mut bad = Vec::new();
        for shard in self.layout.shards().filter(|shard| shard.id % world == rank) {
            let path = self.folder.join(&shard.path);
            let own = shard.id / world % parts == part;
            if !path.exists() || self.step.rehearses() {
                bad.push(shard.id);
            } else if !own {
                continue;
            } else if let Err(error) = verify(&path, Depth::Deep, &self.expect(&shard, true)) {
                equipoise_telemetry::warn!("making it again: {error}");
                self.step.discard(&path)?;
                bad.push(shard.id);
            }
        }
        let own: Vec<u8> = bad.iter().flat_map(|id| id.to_le_bytes()).collect();
        let all = self.step.comm().all_gather(&own)?.concat();
        let missing: std::collections::BTreeSet<u64> =
            all.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default())).collect();
        Ok(self.layout.claim_order().into_iter().filter(|id| missing.contains(id)).collect())
    }

    /// Images in shards that other ranks have committed in this attempt, where this rank knows of them.
    fn finished_elsewhere(&self, claims: &StageClaims, units: &[u64]) -> u64 {
        let Some(tally) = claims.tally() else { return 0 };
        let handed_out = &units[..units.len().saturating_sub(tally.unclaimed)];
        let committed = handed_out.iter().filter(|&&id| !tally.held.contains_key(&(id as usize)));
        let total: u64 = committed.map(|&id| self.images(id)).sum();
        total.saturating_sub(self.own.get())
    }

    fn part_path(&self, shard: &Shard) -> PathBuf {
        self.folder.join(".parts").join(shard.path.replace('/', "_"))
    }

    /// The finished batches that an earlier claimant left, or an empty shard.
    fn begin(&self, shard: &Shard, synthesizer: &Synthesizer<'_>) -> Result<ImageShard> {
        let (source, guided_steps) = (synthesizer.source, synthesizer.guided_steps()?);
        let part = self.part_path(shard);
        if part.exists() && !self.step.rehearses() {
            match verify(&part, Depth::Deep, &self.expect(shard, false)).and_then(|_| ImageShard::read(&part))
            {
                Ok(begun) => return Ok(begun),
                Err(error) => {
                    equipoise_telemetry::warn!("starting the shard again: {error}");
                    self.step.discard(&part)?;
                }
            }
        }
        ImageShard::new(ShardMeta {
            identity: self.identity.to_string(),
            class: shard.class.0,
            class_name: self.classes[shard.class.0 as usize].clone(),
            prompt: source.prompt(shard.class, shard.images.start),
            first: shard.images.start,
            planned: shard.images.end - shard.images.start,
            shape: self.shape,
            codec: self.codec,
            resize_filter: source.resize_filter().to_string(),
            criterion: self.criterion.clone(),
            guided_steps,
            reproducible: true,
            tool_version: tool_version(),
        })
    }

    /// Makes a shard and hands it over to be committed; `false` when a stop came first and the finished batches are left
    /// as a part.
    fn make(
        &self,
        shard: &Shard,
        synthesizer: &Synthesizer<'_>,
        claims: &dyn Claims,
        writer: &ShardWriter,
        on_batch: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<bool> {
        let begun = Instant::now();
        let file = self.begin(shard, synthesizer)?;
        let first = file.next_index();
        let mut next = first;
        let (path, part) = (self.folder.join(&shard.path), self.part_path(shard));
        writer.begin(Open { id: shard.id, group: shard.group, file, path, part })?;
        let sampled = |until: u64| {
            self.sampled.borrow_mut().insert(shard.id, (first..until, begun.elapsed()));
        };
        for batch in shard.batches() {
            if batch.images.start < next {
                continue;
            }
            if claims.should_stop()? {
                if next > shard.images.start {
                    writer.leave()?;
                    sampled(next);
                }
                return Ok(false);
            }
            let keep = batch.images.end - batch.images.start;
            // An untrained guide may spoil images; to try them again would tell nothing about good ones.
            let sub_seeds = if self.step.rehearses() { 0 } else { SUB_SEEDS };
            let made = {
                let _span = trace::numbered("sample", batch.images.start);
                synthesizer.batch(shard.class, batch.images.start, keep, sub_seeds)?
            };
            writer.batch(made)?;
            next = batch.images.end;
            on_batch(keep)?;
            self.step.passed("batches", 1);
        }
        writer.commit()?;
        sampled(shard.images.end);
        Ok(true)
    }

    /// Tells the other ranks what this one has committed, and the deadline how long that takes.
    fn report(&self, claims: &dyn Claims, committed: Vec<Committed>) -> Result<()> {
        for Committed { id, took } in committed {
            self.own.set(self.own.get() + self.images(id));
            self.step.measured_commit(took);
            let sampled = self.sampled.borrow_mut().remove(&id);
            self.note_sampled(id, sampled)?;
            claims.finished(id as usize)?;
        }
        Ok(())
    }

    /// Notes what is on disk by now: after the end, the part of a shard that was left.
    fn note_parts(&self) -> Result<()> {
        let left = self.sampled.take();
        left.into_iter().try_for_each(|(id, sampled)| self.note_sampled(id, Some(sampled)))
    }

    fn note_sampled(&self, id: u64, sampled: Option<(Range<u64>, Duration)>) -> Result<()> {
        if let Some((images, took)) = sampled {
            self.step.note_work(&self.shard(id)?.path, images, took);
        }
        Ok(())
    }

    /// Writes `index.json` once all shards are there; fails with 1 when images are missing in them.
    fn finish(&self) -> Result<()> {
        self.step.comm().barrier()?;
        if !self.step.is_root() {
            return self.step.comm().barrier();
        }
        let begun = Instant::now();
        let mut index = ShardIndex { identity: self.identity.clone(), shards: Vec::new() };
        for shard in self.layout.shards() {
            let path = self.folder.join(&shard.path);
            let bytes = self.step.vfs().read(&path).map_err(|error| Error::io("read", &path, error))?;
            let file = ImageShard::from_bytes(&path.display().to_string(), &bytes)?;
            let retried = file.rows().iter().filter(|row| row.flags != equipoise_shards::Flags::NONE).count();
            index.shards.push(ShardEntry {
                path: shard.path.clone().into(),
                class: shard.class.0,
                images: file.len() as u64,
                failed: file.failed().to_vec(),
                retried: retried as u64,
                bytes: bytes.len() as u64,
                xxh3: format!("{:016x}", equipoise_base::hash::xxh3(&bytes)),
            });
        }
        self.step.remove_folder(&self.folder.join(".parts"))?;
        self.step.commit_json(&self.folder.join("index.json"), &index)?;
        self.step.note_common_work("index", 0..1, begun.elapsed());
        let failed: usize = index.shards.iter().map(|shard| shard.failed.len()).sum();
        self.step.comm().barrier()?;
        if failed > 0 {
            let index = self.folder.join("index.json");
            let message = format!(
                "{failed} images came out unusable from every seed that was tried; they are listed in {}",
                index.display()
            );
            // sets/<set> lies in the run directory.
            let run = self.folder.ancestors().nth(2).unwrap_or(&self.folder).display();
            return Err(Error::new(ExitCode::CheckFailed, message)
                .next(format!("equipoise shards regenerate {run} --failed")));
        }
        Ok(())
    }
}
