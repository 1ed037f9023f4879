//! `equipoise-metrics`, stage `metrics`: synthetic sets as distributions and as labelled images.

use crate::features::{Outputs, commit, evaluate, labels_of};
use crate::inputs::{self, Images};
use crate::nets::Frozen;
use crate::statistics::ClassTable;
use crate::step::Step;
use crate::train::class_counts;
use equipoise_base::rng::Key;
use equipoise_base::{Result, ensure};
use equipoise_data::{AugmentConfig, ImageSet};
use equipoise_diffusion::criterion::Criterion;
use equipoise_diffusion::feedback::FeedbackConfig;
use equipoise_metrics::{Confusion, Diversity, Fid, Prdc};
use equipoise_report::Interval;
use equipoise_report::results::{CriterionGain, Reference, SetMetrics, SetResult};
use equipoise_shards::contact::{SheetRow, SheetStyle, contact_sheet};
use equipoise_shards::{Image, ShardReader};
use equipoise_workplan::CodecConfig;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use tch::{Kind, Tensor};

/// Neighbours of density and coverage: the seed paper names no number, 5 is customary.
const NEIGHBOURS: usize = 5;
/// Images per class on a contact sheet, real and synthetic each.
const SHOWN: usize = 10;

#[derive(Clone, Debug, Deserialize)]
struct MetricsParams {
    extractor: String,
    judge: String,
    reference: String,
    sets: Vec<SetOf>,
}

/// A generated set.
#[derive(Clone, Debug, Deserialize)]
struct SetOf {
    set: String,
    seed: u64,
}

/// A network with the preparation of its images.
struct Eye {
    network: Frozen,
    augment: AugmentConfig,
}

impl Eye {
    fn new(step: &Step, name: &str) -> Result<Self> {
        Ok(Self { network: step.helper(name)?, augment: step.evaluation_of(name)? })
    }

    fn look(&self, step: &Step, images: &Images) -> Result<Outputs> {
        evaluate(step, &self.network, &self.augment, images)
    }
}

/// Measures all sets: `results.json`, feature files, contact sheets.
///
/// # Errors
/// 65 when an input is damaged.
pub fn run(step: &Step) -> Result<()> {
    let params: MetricsParams = step.params()?;
    let (extractor, judge) = (Eye::new(step, &params.extractor)?, Eye::new(step, &params.judge)?);
    let reference = inputs::split(step, &params.reference)?;
    let reference_outputs = extractor.look(step, &reference)?;
    store(step, &params.extractor, &params.reference, &extractor, &reference, &reference_outputs)?;
    let judge_accuracy = agreement(&judge.look(step, &reference)?, &reference)?.accuracy();
    let classes = step.classes()?;
    let (mut results, mut frame) = (Vec::new(), None);
    let mut traces: BTreeMap<(String, u64), Images> = BTreeMap::new();
    for SetOf { set, seed } in &params.sets {
        let images = inputs::synthetic(step, set, *seed)?;
        let outputs = extractor.look(step, &images)?;
        store(step, &params.extractor, &format!("{set}.k{seed}"), &extractor, &images, &outputs)?;
        let matched = matching(&reference, &class_counts(&images, classes.len()))?;
        let real = rows(&reference_outputs.features, &matched);
        if frame.is_none() {
            frame = Some(references(step, &extractor, &reference, &reference_outputs, &matched)?);
        }
        let seen = agreement(&judge.look(step, &images)?, &images)?;
        results.push(measure(step, (set, *seed), &outputs, &images, &real, &seen)?);
        if step.is_root() {
            sheet(step, set, *seed, &images, &classes)?;
        }
        traces.insert((set.clone(), *seed), images);
    }
    gains(step, &traces, &mut results)?;
    let metrics = SetMetrics {
        extractor: params.extractor,
        judge_accuracy,
        reference: frame.unwrap_or_default(),
        sets: results,
    };
    if step.is_root() {
        step.commit_json(&step.dir().join("results.json"), &metrics)?;
    }
    Ok(())
}

fn store(step: &Step, name: &str, split: &str, eye: &Eye, images: &Images, outputs: &Outputs) -> Result<()> {
    match step.is_root() {
        true => commit(step, name, split, &eye.network, images, &outputs.features),
        false => Ok(()),
    }
}

fn agreement(outputs: &Outputs, images: &Images) -> Result<Confusion> {
    Confusion::of_logits(&outputs.logits.to_kind(Kind::Double), &labels_of(images))
}

/// Rows of the reference in the class proportions of a set, as many as the reference can give: FID compares
/// distributions, and a set that completes rare classes has few head images.
fn matching(reference: &Images, counts: &[u64]) -> Result<Vec<i64>> {
    let there = class_counts(reference, counts.len());
    let scale = counts
        .iter()
        .zip(&there)
        .filter(|(wanted, _)| **wanted > 0)
        .map(|(&wanted, &there)| there as f64 / wanted as f64)
        .fold(1., f64::min);
    let mut left: Vec<u64> = counts.iter().map(|&wanted| (wanted as f64 * scale) as u64).collect();
    let mut rows = Vec::new();
    for (row, &label) in reference.set.labels.iter().enumerate() {
        if left[label as usize] > 0 {
            left[label as usize] -= 1;
            rows.push(row as i64);
        }
    }
    ensure!(rows.len() > 1, BadData, "metrics.reference: too few real images in the classes of the set");
    Ok(rows)
}

fn rows(features: &Tensor, rows: &[i64]) -> Tensor {
    features.index_select(0, &Tensor::from_slice(rows)).to_kind(Kind::Double)
}

/// FID of one half of the matched real images against the other, and of shuffled pixels against them.
fn references(
    step: &Step,
    eye: &Eye,
    reference: &Images,
    outputs: &Outputs,
    matched: &[i64],
) -> Result<Reference> {
    let others: Vec<i64> = {
        let taken: std::collections::BTreeSet<i64> = matched.iter().copied().collect();
        let mut left = class_counts(&subset(reference, matched)?, step.classes()?.len());
        let rest = (0..reference.set.labels.len() as i64).filter(|row| !taken.contains(row));
        rest.filter(|&row| {
            let left = &mut left[reference.set.labels[row as usize] as usize];
            *left = left.saturating_sub(1);
            *left > 0
        })
        .collect()
    };
    let real = rows(&outputs.features, matched);
    let second = if others.len() > 1 { rows(&outputs.features, &others) } else { real.shallow_clone() };
    let shuffled = eye.look(step, &shuffle_pixels(&subset(reference, matched)?)?)?;
    Ok(Reference {
        real: Fid::of_features(&real, &second)?.value,
        shuffled: Fid::of_features(&real, &shuffled.features.to_kind(Kind::Double))?.value,
    })
}

fn subset(images: &Images, rows: &[i64]) -> Result<Images> {
    let rows: Vec<usize> = rows.iter().map(|&row| row as usize).collect();
    Ok(Images {
        set: Arc::new(images.set.select(&rows)),
        hashes: rows.iter().map(|&row| images.hashes[row]).collect(),
        index: rows.iter().map(|&row| images.index[row]).collect(),
    })
}

/// The same pixels of each image in an order keyed by its position: right histograms, no structure.
fn shuffle_pixels(images: &Images) -> Result<Images> {
    let set = &images.set;
    let mut pixels = Vec::with_capacity(set.pixels.len());
    for image in 0..set.labels.len() {
        let mut copy = set.image(image).pixels.to_vec();
        Key::new(0, "shuffled-pixels").index(image as u64).stream().shuffle(&mut copy);
        pixels.extend_from_slice(&copy);
    }
    let shuffled = ImageSet::new(set.height, set.width, set.channels, pixels, set.labels.clone())?;
    Ok(Images { set: Arc::new(shuffled), ..images.clone() })
}

fn measure(
    step: &Step,
    (set, seed): (&str, u64),
    outputs: &Outputs,
    images: &Images,
    real: &Tensor,
    seen: &Confusion,
) -> Result<SetResult> {
    let features = outputs.features.to_kind(Kind::Double);
    let prdc = Prdc::of(real, &features, &[NEIGHBOURS])?;
    let labels = &images.set.labels;
    let mut diversities = Vec::new();
    for class in 0..step.classes()?.len() as u32 {
        let members: Vec<i64> =
            (0..labels.len() as i64).filter(|&row| labels[row as usize] == class).collect();
        if members.len() > 1 {
            diversities.push(Diversity::of(&rows(&outputs.features, &members))?);
        }
    }
    let mean = |read: fn(&Diversity) -> f64| {
        diversities.iter().map(read).sum::<f64>() / diversities.len().max(1) as f64
    };
    let shards = inputs::shards(step, set, seed)?;
    let stored = step.recipe().sets.get(set).map(|set| set.generate.codec.parse::<CodecConfig>());
    let resize_filter = match shards.first() {
        Some(entry) => {
            ShardReader::open(&step.set_path(set, seed).join(&entry.path))?.meta().resize_filter.clone()
        }
        None => String::new(),
    };
    Ok(SetResult {
        resize_filter,
        codec: stored.transpose()?.unwrap_or_default().to_string(),
        set: set.to_string(),
        seed,
        images: labels.len() as u64,
        failed: shards.iter().map(|shard| shard.failed.len() as u64).sum(),
        retried: shards.iter().map(|shard| shard.retried).sum(),
        agreement: seen.accuracy(),
        agreement_by_class: seen.per_class(),
        fid: Fid::of_features(real, &features)?.value,
        density: prdc.first().map_or(0., |prdc| prdc.density),
        coverage: prdc.first().map_or(0., |prdc| prdc.coverage),
        div_cos: mean(|diversity| diversity.div_cos),
        div_std: mean(|diversity| diversity.div_std),
        div_svd: mean(|diversity| diversity.div_svd),
        criterion_gain: None,
    })
}

/// For every guided set: how much higher its criterion is than on the unguided set of the same noise, image by image.
fn gains(step: &Step, sets: &BTreeMap<(String, u64), Images>, results: &mut [SetResult]) -> Result<()> {
    let recipe = step.recipe();
    let unguided =
        recipe.sets.iter().find(|(_, set)| set.generate.feedback.is_none()).map(|(name, _)| name.to_string());
    let Some(unguided) = unguided else { return Ok(()) };
    for result in results {
        let Some(set) = recipe.sets.get(&result.set) else { continue };
        let (Some(feedback), Some(guide)) = (&set.generate.feedback, &set.generate.guide) else { continue };
        let Some(plain) = sets.get(&(unguided.clone(), result.seed)) else { continue };
        let config: FeedbackConfig = feedback.parse()?;
        let eye = Eye::new(step, guide)?;
        let value = |images: &Images| -> Result<BTreeMap<(u32, u64), f64>> {
            let values = criterion_of(step, &eye, guide, &config, images)?;
            Ok(images.set.labels.iter().copied().zip(images.index.iter().copied()).zip(values).collect())
        };
        let (guided, plain) = (value(&sets[&(result.set.clone(), result.seed)])?, value(plain)?);
        let differences: Vec<f64> =
            guided.iter().filter_map(|(image, value)| Some(value - plain.get(image)?)).collect();
        result.criterion_gain = Interval::of(&differences).map(|interval| CriterionGain {
            criterion: feedback.0["criterion"].as_str().unwrap_or_default().to_string(),
            against: unguided.clone(),
            pairs: interval.n as u64,
            mean: interval.mean,
            low: interval.low(),
            high: interval.high(),
        });
    }
    Ok(())
}

/// The guide's criterion on stored images.
fn criterion_of(
    step: &Step,
    eye: &Eye,
    guide: &str,
    config: &FeedbackConfig,
    images: &Images,
) -> Result<Vec<f64>> {
    let outputs = eye.look(step, images)?;
    let labels = labels_of(images);
    let log_p = outputs.logits.to_kind(Kind::Double).log_softmax(-1, None::<Kind>);
    let values = match config.criterion {
        Criterion::Entropy => -(log_p.exp() * &log_p).sum_dim_intlist(-1, false, None::<Kind>),
        Criterion::Loss => -log_p.gather(1, &labels.unsqueeze(1), false).squeeze_dim(1),
        Criterion::Hardness => {
            ClassTable::read(step, guide, config.hardness())?.hardness(&outputs.features, &labels)?
        }
    };
    Ok((0..values.size()[0]).map(|row| values.double_value(&[row])).collect())
}

/// `real-beside-<set>.png`: the first images of each class that the set has, real ones left.
fn sheet(step: &Step, set: &str, seed: u64, images: &Images, classes: &[String]) -> Result<()> {
    let real = inputs::split(step, &step.recipe().classifier.split)?;
    let pick = |images: &Images, class: u32| -> Result<Vec<Image>> {
        let set = &images.set;
        let members = (0..set.labels.len()).filter(|&at| set.labels[at] == class).take(SHOWN);
        members
            .map(|at| Image::new(set.height, set.width, set.channels, set.image(at).pixels.to_vec()))
            .collect()
    };
    let mut rows = Vec::new();
    for (class, name) in classes.iter().enumerate() {
        let synthetic = pick(images, class as u32)?;
        if synthetic.is_empty() {
            continue;
        }
        let mut row = pick(&real, class as u32)?;
        let blank = Image::new(
            images.set.height,
            images.set.width,
            images.set.channels,
            vec![255; images.set.image_bytes()],
        )?;
        row.resize(SHOWN + 1, blank);
        row.extend(synthetic);
        rows.push((name.clone(), row));
    }
    let rows: Vec<SheetRow<'_>> = rows.iter().map(|(label, images)| SheetRow { label, images }).collect();
    let png = contact_sheet(&rows, SheetStyle { scale: 2, ..SheetStyle::default() })?;
    step.commit(&step.dir().join(format!("real-beside-{set}-set-{seed}.png")), &png)
}
