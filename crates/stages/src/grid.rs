//! `equipoise-generate`, stage `grid`: guidance scale against feedback strength on the same noise (seed 002 Fig. 12-14).

use crate::generate::{Factory, GenerateParams};
use crate::step::Step;
use equipoise_base::{ClassId, Error, Result};
use equipoise_diffusion::criterion::{Guide, Targets, Viewed};
use equipoise_report::results::Grid;
use equipoise_shards::Image;
use equipoise_shards::contact::{SheetRow, SheetStyle, contact_sheet};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Kind, Tensor};

#[derive(Clone, Debug, Deserialize)]
struct GridParams {
    class: Option<String>,
    cfg_scale: Vec<f64>,
    omega: Vec<f64>,
    images: u64,
    generate: GenerateParams,
    judge: String,
}

/// One cell: share recognised, mean criterion, and the first image of the class that is shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Cell {
    number: usize,
    agreement: f64,
    value: f64,
    /// Height, width, channels.
    shape: [usize; 3],
    pixels: Vec<u8>,
}

impl Cell {
    fn image(&self) -> Result<Image> {
        let [height, width, channels] = self.shape;
        Image::new(height, width, channels, self.pixels.clone())
    }
}

/// Samples every cell; ranks share the cells.
///
/// # Errors
/// Those of loading and sampling.
pub fn run(step: &Step) -> Result<()> {
    let params: GridParams = step.params()?;
    let factory = Factory::new(step, &params.generate, 0)?;
    let judge = step.helper(&params.judge)?;
    let view = step.view_of(&params.judge)?;
    let judge = Viewed::new(&judge, &view);
    let (classes, counts) = crate::inputs::split_counts(step, &params.generate.split)?;
    let sampled: Vec<u32> = match &params.class {
        Some(name) => vec![number_of(&classes, name)?],
        None => (0..classes.len() as u32).collect(),
    };
    // Of several, the rarest class is the one that matters most.
    let class = match sampled[..] {
        [only] => only as usize,
        _ => equipoise_catalog::shots::rarest(&counts, 1).first().copied().unwrap_or(0),
    };
    let cells: Vec<(f64, f64)> = params
        .cfg_scale
        .iter()
        .flat_map(|&scale| params.omega.iter().map(move |&omega| (scale, omega)))
        .collect();
    let mut own = Vec::new();
    for (number, &(scale, omega)) in cells.iter().enumerate().filter(|(n, _)| n % step.world() == step.rank())
    {
        let shown = (class as u32, &sampled[..]);
        own.push(Cell { number, ..cell(&factory, &params, (scale, omega), &judge, shown)? });
        step.comm_beat();
    }
    let gathered = step.comm().all_gather(&serde_json::to_vec(&own).unwrap_or_default())?;
    if !step.is_root() {
        return Ok(());
    }
    let mut all: Vec<Cell> = gathered
        .iter()
        .flat_map(|bytes| serde_json::from_slice::<Vec<Cell>>(bytes).unwrap_or_default())
        .collect();
    all.sort_by_key(|cell| cell.number);
    let columns = params.omega.len();
    let table = |read: fn(&Cell) -> f64| -> Vec<Vec<f64>> {
        all.chunks(columns).map(|row| row.iter().map(read).collect()).collect()
    };
    let criterion = params.generate.feedback.as_ref().and_then(|feedback| feedback.0["criterion"].as_str());
    let grid = Grid {
        class: classes[class].clone(),
        cfg_scales: params.cfg_scale.clone(),
        omegas: params.omega.clone(),
        criterion: criterion.unwrap_or_default().to_string(),
        agreement: table(|cell| cell.agreement),
        value: table(|cell| cell.value),
        images: params.images * sampled.len() as u64,
    };
    let images: Vec<Vec<Image>> =
        all.chunks(columns).map(|row| row.iter().map(Cell::image).collect()).collect::<Result<_>>()?;
    let labels: Vec<String> = params.cfg_scale.iter().map(|scale| format!("CFG {scale}")).collect();
    let rows: Vec<SheetRow<'_>> =
        images.iter().zip(&labels).map(|(images, label)| SheetRow { label, images }).collect();
    let png = contact_sheet(&rows, SheetStyle { scale: 3, ..SheetStyle::default() })?;
    let name = format!("grid-of-{}-omega-left-to-right.png", grid.class.replace(['/', ' '], "-"));
    step.commit(&step.dir().join(name), &png)?;
    step.commit_json(&step.dir().join("results.json"), &grid)
}

fn number_of(classes: &[String], name: &str) -> Result<u32> {
    let found = classes.iter().position(|class| class == name);
    let unknown = || Error::config(format!("grid.class: there is no class '{name}'"));
    found.map(|number| number as u32).ok_or_else(unknown)
}

fn cell(
    factory: &Factory,
    params: &GridParams,
    (scale, omega): (f64, f64),
    judge: &dyn Guide,
    (show, classes): (u32, &[u32]),
) -> Result<Cell> {
    let mut generate = params.generate.clone();
    generate.cfg_scale = scale;
    generate.batch = params.images;
    if let Some(feedback) = &mut generate.feedback {
        feedback.0["omega"] = json!(omega);
    }
    let synthesizer = factory.synthesizer(&generate)?;
    let indices: Vec<u64> = (0..params.images).collect();
    let (mut right, mut value, mut pixels) = (0., 0., Vec::new());
    for &class in classes {
        let sampled = synthesizer.sample(ClassId(class), &indices, 0, synthesizer.precision)?;
        let labels =
            Tensor::full([params.images as i64], i64::from(class), (Kind::Int64, sampled.images.device()));
        tch::no_grad(|| {
            let seen = judge.logits(&sampled.images).argmax(1, false);
            right += seen.eq_tensor(&labels).to_kind(Kind::Double).sum(Kind::Double).double_value(&[]);
        });
        if let Some(feedback) = &synthesizer.feedback {
            let targets = Targets { labels, statistics: feedback.statistics_of(class) };
            let viewed = Viewed::new(feedback.guide, feedback.view);
            let criterion = feedback.config.criterion;
            value +=
                tch::no_grad(|| criterion.evaluate(&viewed, &sampled.images, &targets).sum(Kind::Double))
                    .double_value(&[]);
        }
        if class == show {
            pixels = crate::synthesis::to_pixels(&sampled.images.get(0));
        }
    }
    let total = (params.images * classes.len() as u64) as f64;
    let [channels, height, width] = synthesizer.shape.map(|side| side as usize);
    let (agreement, value) = (right / total, value / total);
    Ok(Cell { number: 0, agreement, value, shape: [height, width, channels], pixels })
}
