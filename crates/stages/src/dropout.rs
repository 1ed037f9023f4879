//! `equipoise-generate`, stage `dropout`: how much of a real image's embedding is dropped against how alike the images
//! become that are conditioned on it (seed 002, Section 2.2 and Fig. 9).
//!
//! All images of a class are conditioned on its first real image, with the same noise at every probability.

use crate::features::values;
use crate::generate::{Factory, GenerateParams};
use crate::inputs::{self, Images};
use crate::nets::Frozen;
use crate::step::Step;
use crate::sweep::{self, Picture, Subjects};
use equipoise_base::{Error, Result};
use equipoise_diffusion::criterion::{Guide, Viewed};
use equipoise_diffusion::view::View;
use equipoise_metrics::Diversity;
use equipoise_report::results::{Dropout, DropoutRow};
use equipoise_shards::Image;
use equipoise_shards::contact::{SheetRow, contact_sheet};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Kind, Tensor};

#[derive(Clone, Debug, Deserialize)]
struct DropoutParams {
    p: Vec<f64>,
    images: u64,
    #[serde(default)]
    classes: Vec<String>,
    generate: GenerateParams,
    judge: String,
    extractor: String,
}

/// One probability.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Row {
    agreement: f64,
    diversity: f64,
    likeness: f64,
    pictures: Vec<Picture>,
}

/// A network with how it looks at generated images.
struct Eye {
    network: Frozen,
    view: View,
}

impl Eye {
    fn new(step: &Step, name: &str) -> Result<Self> {
        Ok(Self { network: step.helper(name)?, view: step.view_of(name)? })
    }

    /// Features [N, d] of images [N, C, H, W] in [-1, 1], float64 on the CPU.
    fn features(&self, images: &Tensor) -> Tensor {
        let viewed = Viewed::new(&self.network, &self.view);
        tch::no_grad(|| viewed.features(images)).to_device(tch::Device::Cpu).to_kind(Kind::Double)
    }
}

/// Samples every probability; ranks share them.
///
/// # Errors
/// 78 if the generator takes no condition from images, or a probability is out of range; those of sampling.
pub fn run(step: &Step) -> Result<()> {
    let params: DropoutParams = step.params()?;
    let mut factory = Factory::new(step, &params.generate, 0)?;
    let (judge, extractor) = (Eye::new(step, &params.judge)?, Eye::new(step, &params.extractor)?);
    let subjects = Subjects::new(step, &params.generate.split, &params.classes)?;
    let real = inputs::split(step, &params.generate.split)?;
    let rows = sweep::share(step, params.p.len(), |number| {
        row(step, &mut factory, &params, params.p[number], (&judge, &extractor), &subjects, &real)
    })?;
    if step.is_root() { commit(step, &params, &subjects, &real, &rows) } else { Ok(()) }
}

fn row(
    step: &Step,
    factory: &mut Factory,
    params: &DropoutParams,
    p: f64,
    (judge, extractor): (&Eye, &Eye),
    subjects: &Subjects,
    real: &Images,
) -> Result<Row> {
    let mut generate = params.generate.clone();
    generate.batch = params.images;
    let condition = generate.condition.as_mut();
    let condition =
        condition.ok_or_else(|| Error::config("dropout.set: its generator takes no condition"))?;
    condition.0["dropout"]["p"] = json!(p);
    condition.0["example"] = json!(0);
    factory.recondition(condition)?;
    let synthesizer = factory.synthesizer(&generate)?;
    let (mut diversity, mut likeness, mut pictures) = (0., 0., Vec::new());
    let viewed = Viewed::new(&judge.network, &judge.view);
    let right = sweep::sample(step, &synthesizer, &viewed, &subjects.labels, |class, images| {
        let features = extractor.features(images);
        diversity += Diversity::of(&features)?.div_cos;
        likeness += cosine(&features, &extractor.features(&example(real, class)?));
        if class == subjects.shown {
            pictures = (0..params.images as i64).map(|at| Picture::of(images, at)).collect();
        }
        Ok(())
    })?;
    let classes = subjects.labels.len() as f64;
    Ok(Row {
        agreement: right / (params.images as f64 * classes),
        diversity: diversity / classes,
        likeness: likeness / classes,
        pictures,
    })
}

/// Mean cosine of rows [N, d] to one row [1, d].
fn cosine(rows: &Tensor, one: &Tensor) -> f64 {
    let cosines = Tensor::cosine_similarity(rows, one, 1, 1e-12);
    let values = values(&cosines);
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Position of the first real image of a class.
fn first_of(real: &Images, class: u32) -> Result<usize> {
    let found = real.set.labels.iter().position(|&label| label == class);
    found.ok_or_else(|| Error::data(format!("class {class} has no real image to condition on")))
}

/// The first real image of a class, [1, C, H, W] in [-1, 1].
fn example(real: &Images, class: u32) -> Result<Tensor> {
    let set = &real.set;
    let [height, width, channels] = [set.height, set.width, set.channels].map(|side| side as i64);
    let pixels =
        Tensor::from_slice(set.image(first_of(real, class)?).pixels).view([1, height, width, channels]);
    let image = pixels.permute([0, 3, 1, 2]).to_kind(Kind::Float) / 127.5 - 1.;
    Ok(equipoise_nn::runtime::upload(&image.contiguous()))
}

fn commit(
    step: &Step,
    params: &DropoutParams,
    subjects: &Subjects,
    real: &Images,
    rows: &[Row],
) -> Result<()> {
    let set = &real.set;
    let picture = |pixels: &[u8]| Image::new(set.height, set.width, set.channels, pixels.to_vec());
    let shown = first_of(real, subjects.shown)?;
    let blank = vec![u8::MAX; set.image_bytes()];
    let mut sheet = Vec::new();
    for row in rows {
        let mut images = vec![picture(set.image(shown).pixels)?, picture(&blank)?];
        images.extend(row.pictures.iter().map(Picture::image).collect::<Result<Vec<_>>>()?);
        sheet.push(images);
    }
    let labels: Vec<String> = params.p.iter().map(|p| format!("p {p}")).collect();
    let lines: Vec<SheetRow<'_>> =
        sheet.iter().zip(&labels).map(|(images, label)| SheetRow { label, images }).collect();
    let png = contact_sheet(&lines, sweep::sheet_style(&sheet))?;
    let name = format!("dropout-of-{}-beside-the-real-image.png", subjects.file_name());
    step.commit(&step.dir().join(name), &png)?;
    let row = |(row, &p): (&Row, &f64)| DropoutRow {
        p,
        agreement: row.agreement,
        diversity: row.diversity,
        likeness: row.likeness,
    };
    let results = Dropout {
        class: subjects.name.clone(),
        row: shown as u64,
        images: params.images,
        classes: subjects.labels.len() as u64,
        extractor: params.extractor.clone(),
        rows: rows.iter().zip(&params.p).map(row).collect(),
    };
    step.commit_json(&step.dir().join("results.json"), &results)
}
