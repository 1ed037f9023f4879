//! `equipoise-generate`, stage `grid`: guidance scale against feedback strength on the same noise (seed 002 Fig. 12-14).

use crate::generate::{Factory, GenerateParams};
use crate::step::Step;
use crate::sweep::{self, Picture, Subjects};
use equipoise_base::Result;
use equipoise_diffusion::criterion::{Guide, Targets, Viewed};
use equipoise_report::results::Grid;
use equipoise_shards::Image;
use equipoise_shards::contact::{SheetRow, contact_sheet};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Kind, Tensor};

#[derive(Clone, Debug, Deserialize)]
struct GridParams {
    cfg_scale: Vec<f64>,
    omega: Vec<f64>,
    images: u64,
    #[serde(default)]
    classes: Vec<String>,
    generate: GenerateParams,
    judge: String,
}

/// One cell: share recognised, mean criterion, and the first image of the class that is shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Cell {
    agreement: f64,
    value: f64,
    picture: Option<Picture>,
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
    let subjects = Subjects::new(step, &params.generate.split, &params.classes)?;
    let cells: Vec<(f64, f64)> = params
        .cfg_scale
        .iter()
        .flat_map(|&scale| params.omega.iter().map(move |&omega| (scale, omega)))
        .collect();
    let cells = sweep::share(step, cells.len(), |number| {
        cell(step, &factory, &params, cells[number], &judge, &subjects)
    })?;
    if step.is_root() { commit(step, &params, &subjects, &cells) } else { Ok(()) }
}

fn commit(step: &Step, params: &GridParams, subjects: &Subjects, cells: &[Cell]) -> Result<()> {
    let columns = params.omega.len();
    let table = |read: fn(&Cell) -> f64| -> Vec<Vec<f64>> {
        cells.chunks(columns).map(|row| row.iter().map(read).collect()).collect()
    };
    let criterion = params.generate.feedback.as_ref().and_then(|feedback| feedback.0["criterion"].as_str());
    let grid = Grid {
        class: subjects.name.clone(),
        cfg_scales: params.cfg_scale.clone(),
        omegas: params.omega.clone(),
        criterion: criterion.unwrap_or_default().to_string(),
        agreement: table(|cell| cell.agreement),
        value: table(|cell| cell.value),
        images: params.images * subjects.labels.len() as u64,
    };
    let images: Vec<Vec<Image>> = cells
        .chunks(columns)
        .map(|row| row.iter().filter_map(|cell| cell.picture.as_ref()).map(Picture::image).collect())
        .collect::<Result<_>>()?;
    let labels: Vec<String> = params.cfg_scale.iter().map(|scale| format!("CFG {scale}")).collect();
    let rows: Vec<SheetRow<'_>> =
        images.iter().zip(&labels).map(|(images, label)| SheetRow { label, images }).collect();
    let png = contact_sheet(&rows, sweep::sheet_style(&images))?;
    let name = format!("grid-of-{}-omega-left-to-right.png", subjects.file_name());
    step.commit(&step.dir().join(name), &png)?;
    step.commit_json(&step.dir().join("results.json"), &grid)
}

fn cell(
    step: &Step,
    factory: &Factory,
    params: &GridParams,
    (scale, omega): (f64, f64),
    judge: &dyn Guide,
    subjects: &Subjects,
) -> Result<Cell> {
    let mut generate = params.generate.clone();
    generate.cfg_scale = scale;
    generate.batch = params.images;
    if let Some(feedback) = &mut generate.feedback {
        feedback.0["omega"] = json!(omega);
    }
    let synthesizer = factory.synthesizer(&generate)?;
    let (mut value, mut picture) = (0., None);
    let right = sweep::sample(step, &synthesizer, judge, &subjects.labels, |class, images| {
        if let Some(feedback) = &synthesizer.feedback {
            let labels =
                Tensor::full([params.images as i64], i64::from(class), (Kind::Int64, images.device()));
            let targets = Targets { labels, statistics: feedback.statistics_of(class) };
            let viewed = Viewed::new(feedback.guide, feedback.view);
            let criterion = feedback.config.criterion;
            value += tch::no_grad(|| criterion.evaluate(&viewed, images, &targets).sum(Kind::Double))
                .double_value(&[]);
        }
        if class == subjects.shown {
            picture = Some(Picture::of(images, 0));
        }
        Ok(())
    })?;
    let total = (params.images * subjects.labels.len() as u64) as f64;
    Ok(Cell { agreement: right / total, value: value / total, picture })
}
