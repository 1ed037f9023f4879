//! `equipoise-features`, stages `embed-*`: what a latent generator is told about its images, once for all ranks, sets and
//! attempts.
//!
//! Images and texts go through CLIP one by one and in fp32, so that an embedding depends on nothing but itself.

use crate::features::{floats, gather};
use crate::inputs;
use crate::step::Step;
use equipoise_base::hash::xxh3;
use equipoise_base::{Error, ExitCode, Identity, Result, ensure};
use equipoise_data::ImageSource as _;
use equipoise_diffusion::condition_config::{names_context, prompt_of};
use equipoise_diffusion::pipeline::{
    IMAGE_PARTS, ImageConditioner, TEXT_PARTS, TextConditioner, takes_images,
};
use equipoise_nn::runtime;
use equipoise_pretrained::Folder;
use equipoise_shards::{FeatureMeta, FeatureReader, Features, Matrix, tool_version};
use equipoise_telemetry::Progress;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use tch::{Kind, Tensor};

/// Extractor of image embeddings; one file per split.
const IMAGES: &str = "clip-images";
/// Extractor of text embeddings ..
const TEXTS: &str = "clip-texts";
/// .. and their file.
const PROMPTS: &str = "prompts";

#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "of", rename_all = "snake_case")]
enum EmbedParams {
    Images { folder: PathBuf, split: String },
    Texts { folder: PathBuf, prompts: Vec<String>, negative_prompts: Vec<String> },
}

/// Embeds the images of a split, or the texts of all sets.
///
/// # Errors
/// 65 naming what is missing or damaged in the folder, or a class without real images; 75 on all ranks once one was
/// asked to stop.
pub fn run(step: &Step) -> Result<()> {
    match step.params()? {
        EmbedParams::Images { folder, split } => images(step, &Folder::open(&folder)?, &split),
        EmbedParams::Texts { folder, prompts, negative_prompts } => {
            let distinct = distinct_texts(&prompts, negative_prompts, &step.classes()?, &step.contexts()?);
            texts(step, &Folder::open(&folder)?, &distinct)
        }
    }
}

/// All texts that images may be told, in order. A plan that is not by group knows no context.
fn distinct_texts(
    prompts: &[String],
    negative_prompts: Vec<String>,
    classes: &[String],
    contexts: &[String],
) -> Vec<String> {
    let mut distinct: BTreeSet<String> = negative_prompts.into_iter().collect();
    for prompt in prompts {
        let contexts = if names_context(prompt) { contexts } else { &[] };
        for context in contexts.iter().map(String::as_str).chain([""]) {
            distinct.extend(classes.iter().map(|class| prompt_of(prompt, class, context)));
        }
    }
    distinct.into_iter().collect()
}

fn images(step: &Step, folder: &Folder, split: &str) -> Result<()> {
    if !takes_images(folder)? {
        equipoise_telemetry::info!("{}: its U-Net is told texts alone", folder.path().display());
        return Ok(());
    }
    let images = inputs::split(step, split)?;
    let label: Vec<i64> = images.set.labels.iter().map(|&label| i64::from(label)).collect();
    // Now rather than when the embeddings are read.
    rows_by_class(&label, &step.classes()?, split)?;
    let conditioner = ImageConditioner::open(folder, Kind::Float, runtime::device())?;
    let features = shared(step, "images", label.len(), conditioner.width(), &|row| {
        let mut embedded = None;
        images.set.with_image(row, &mut |image| {
            embedded = Some(conditioner.embed(&conditioner.pixel_values(image).unsqueeze(0)));
        })?;
        embedded.ok_or_else(|| Error::new(ExitCode::Bug, format!("row {row} has no image")))
    })?;
    let meta = FeatureMeta {
        weight_hash: folder.identity_of(&IMAGE_PARTS)?.to_string(),
        layer: "image_embeds".into(),
        preprocessing: "feature_extractor of the folder".into(),
        ..meta(step, IMAGES, split)
    };
    commit(step, meta, &features, label, images.index, images.hashes)
}

fn texts(step: &Step, folder: &Folder, texts: &[String]) -> Result<()> {
    let conditioner = TextConditioner::open(folder, Kind::Float, runtime::device())?;
    let [length, width] = conditioner.shape();
    let features = shared(step, "texts", texts.len(), length * width, &|row| {
        Ok(conditioner.embed(&conditioner.tokenize(&texts[row..=row])?).flatten(1, 2))
    })?;
    let meta = FeatureMeta {
        weight_hash: folder.identity_of(&TEXT_PARTS)?.to_string(),
        layer: "last_hidden_state".into(),
        preprocessing: format!("tokenizer of the folder, {length} tokens"),
        ..meta(step, TEXTS, PROMPTS)
    };
    let hashes = texts.iter().map(|text| xxh3(text.as_bytes())).collect();
    commit(step, meta, &features, vec![-1; texts.len()], (0..texts.len() as u64).collect(), hashes)
}

/// Rows [1, dim] of `count` inputs as one matrix: ranks share them, and all get all.
fn shared(
    step: &Step,
    unit: &'static str,
    count: usize,
    dim: i64,
    embed: &dyn Fn(usize) -> Result<Tensor>,
) -> Result<Tensor> {
    step.require_space(count as u64 * dim as u64 * 4, 1)?;
    let per_rank = count.div_ceil(step.world());
    let own = (step.rank() * per_rank).min(count)..((step.rank() + 1) * per_rank).min(count);
    let mut progress = Progress::new(&step.stage.name, unit, 0, count as u64, step.is_root());
    let mut rows = Vec::with_capacity(own.len());
    for row in own {
        if step.should_stop() {
            break;
        }
        rows.push(embed(row)?.to_device(tch::Device::Cpu));
        step.passed(unit, 1);
        // The others are about as far.
        progress.set((rows.len() * step.world()).min(count) as u64);
        step.report_progress(unit, &progress, false)?;
    }
    step.agree_to_go_on()?;
    progress.set(count as u64);
    step.report_progress(unit, &progress, true)?;
    gather(step, rows, count as i64, dim)
}

fn meta(step: &Step, extractor: &str, split: &str) -> FeatureMeta {
    FeatureMeta {
        identity: step.identity().to_string(),
        extractor: extractor.into(),
        split: split.into(),
        tool_version: tool_version(),
        ..FeatureMeta::default()
    }
}

fn commit(
    step: &Step,
    meta: FeatureMeta,
    features: &Tensor,
    label: Vec<i64>,
    index: Vec<u64>,
    source_xxh3: Vec<u64>,
) -> Result<()> {
    if !step.is_root() {
        return Ok(());
    }
    let path = step.features_path(&meta.extractor, &meta.split)?;
    let file = Features {
        features: Matrix::F32(floats(features)),
        dim: features.size()[1] as usize,
        group: vec![-1; label.len()],
        label,
        index,
        source_xxh3,
        meta,
    };
    step.commit(&path, &file.write()?)
}

/// Rows of each class.
///
/// # Errors
/// 65 naming a class without any.
fn rows_by_class(labels: &[i64], classes: &[String], split: &str) -> Result<Vec<Vec<u64>>> {
    let mut rows = vec![Vec::new(); classes.len()];
    for (row, &label) in labels.iter().enumerate() {
        if let Some(rows) = usize::try_from(label).ok().and_then(|label| rows.get_mut(label)) {
            rows.push(row as u64);
        }
    }
    let empty = rows.iter().position(Vec::is_empty);
    ensure!(
        empty.is_none(),
        BadData,
        "split '{split}' has no image of class '{}', which unCLIP needs to condition on",
        empty.map_or("", |class| classes[class].as_str())
    );
    Ok(rows)
}

/// Tokens of a text in CLIP, for a rehearsal.
const TOKENS: i64 = 77;

/// Embeddings that were stored, read as they are asked for.
struct Stored {
    rows: Rows,
    path: PathBuf,
}

enum Rows {
    File(Box<FeatureReader>),
    /// What a rehearsal takes for rows of this length that no stage has made yet.
    StandIn(i64),
}

impl Stored {
    /// # Errors
    /// 65 if the file is missing or damaged, or was made with other weights.
    fn open(step: &Step, extractor: &str, split: &str, weights: &Identity) -> Result<Self> {
        let path = step.nearest(step.features_path(extractor, split)?);
        let file = FeatureReader::open(&path)?;
        ensure!(
            file.meta().weight_hash == weights.as_str(),
            BadData,
            "{}: made with other weights than the generator's folder has",
            path.display()
        );
        Ok(Self { rows: Rows::File(Box::new(file)), path })
    }

    /// As [`Self::open`]; for a rehearsal before there is a file, rows of length `dim`.
    fn open_or_stand_in(
        step: &Step,
        extractor: &str,
        split: &str,
        weights: &Identity,
        dim: i64,
    ) -> Result<Self> {
        let path = step.features_path(extractor, split)?;
        match step.rehearses() && !path.exists() {
            true => Ok(Self { rows: Rows::StandIn(dim), path }),
            false => Self::open(step, extractor, split, weights),
        }
    }

    /// Length of a row.
    fn dim(&self) -> i64 {
        match &self.rows {
            Rows::File(file) => file.dim() as i64,
            Rows::StandIn(dim) => *dim,
        }
    }

    /// A row [1, dim] float32 on the device.
    fn row(&self, row: usize) -> Result<Tensor> {
        match &self.rows {
            Rows::File(file) => {
                let values = file.rows(row..row + 1)?.to_f32();
                Ok(runtime::upload(&Tensor::from_slice(&values).unsqueeze(0)))
            }
            Rows::StandIn(dim) => Ok(Tensor::zeros([1, *dim], (Kind::Float, runtime::device()))),
        }
    }
}

/// Embeddings of the real images that condition.
pub struct ImageEmbeddings {
    stored: Stored,
    of_class: Vec<Vec<u64>>,
}

impl ImageEmbeddings {
    /// What `embed-images` stored of a split, of length `width`; `weights` is the identity of [`IMAGE_PARTS`].
    ///
    /// # Errors
    /// 65 if the file is missing, damaged or of other weights, or a class has no image.
    pub fn open(
        step: &Step,
        split: &str,
        classes: &[String],
        width: i64,
        weights: &Identity,
    ) -> Result<Self> {
        let stored = Stored::open_or_stand_in(step, IMAGES, split, weights, width)?;
        let of_class = match &stored.rows {
            Rows::File(file) => rows_by_class(file.labels(), classes, split)?,
            Rows::StandIn(_) => vec![vec![0]; classes.len()],
        };
        Ok(Self { stored, of_class })
    }

    /// Length E of an embedding.
    pub fn width(&self) -> i64 {
        self.stored.dim()
    }

    /// Rows of the images of a class.
    pub fn of_class(&self, class: u32) -> &[u64] {
        &self.of_class[class as usize]
    }

    /// The embedding [1, E] of an image.
    ///
    /// # Errors
    /// 65 if the file was damaged since.
    pub fn row(&self, row: u64) -> Result<Tensor> {
        self.stored.row(row as usize)
    }
}

/// Embeddings of texts.
pub struct TextEmbeddings {
    stored: Stored,
    /// Row of each text by its xxh3-64.
    rows: BTreeMap<u64, usize>,
    width: i64,
}

impl TextEmbeddings {
    /// What `embed-texts` stored; `weights` is the identity of [`TEXT_PARTS`], `width` that of one token.
    ///
    /// # Errors
    /// 65 if the file is missing, damaged, of other weights or of another width.
    pub fn open(step: &Step, width: i64, weights: &Identity) -> Result<Self> {
        let stored = Stored::open_or_stand_in(step, TEXTS, PROMPTS, weights, TOKENS * width)?;
        let dim = stored.dim();
        ensure!(
            dim % width == 0,
            BadData,
            "{}: {dim} values are no tokens of width {width}",
            stored.path.display()
        );
        let rows = match &stored.rows {
            Rows::File(file) => file.sources().iter().enumerate().map(|(row, &hash)| (hash, row)).collect(),
            Rows::StandIn(_) => BTreeMap::new(),
        };
        Ok(Self { stored, rows, width })
    }

    /// The embeddings [1, L, D] of a text.
    ///
    /// # Errors
    /// 65 if it was not embedded.
    pub fn of(&self, text: &str) -> Result<Tensor> {
        let missing = || Error::data(format!("{}: has no text \"{text}\"", self.stored.path.display()));
        let row = match (&self.stored.rows, self.rows.get(&xxh3(text.as_bytes()))) {
            (_, Some(&row)) => row,
            (Rows::StandIn(_), None) => 0,
            (Rows::File(_), None) => return Err(missing()),
        };
        Ok(self.stored.row(row)?.view([1, -1, self.width]))
    }
}
