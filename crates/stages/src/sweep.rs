//! What the sweeps over settings have in common: cells that the ranks share, classes, pictures that travel to rank 0.

use crate::inputs;
use crate::step::Step;
use crate::synthesis::{Synthesizer, to_pixels};
use equipoise_base::{ExitCode, Result, ResultExt as _, ensure};
use equipoise_catalog::shots::rarest;
use equipoise_diffusion::criterion::Guide;
use equipoise_shards::Image;
use equipoise_shards::contact::SheetStyle;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// The classes that a sweep samples.
pub struct Subjects {
    /// Their labels, ascending.
    pub labels: Vec<u32>,
    /// The one that pictures show: the rarest, which matters most.
    pub shown: u32,
    /// Its name.
    pub name: String,
}

impl Subjects {
    /// The classes of `split` named by `wanted`; all if none is.
    ///
    /// # Errors
    /// 78 naming a class that does not exist.
    pub fn new(step: &Step, split: &str, wanted: &[String]) -> Result<Self> {
        let (names, counts) = inputs::split_counts(step, split)?;
        for class in wanted {
            ensure!(
                names.contains(class),
                Config,
                "{}.classes: there is no class '{class}'",
                step.stage.name
            );
        }
        let is_wanted = |name: &String| wanted.is_empty() || wanted.contains(name);
        let labels: Vec<u32> =
            (0..names.len()).filter(|&label| is_wanted(&names[label])).map(|label| label as u32).collect();
        let shown =
            rarest(&counts, counts.len()).into_iter().find(|&label| is_wanted(&names[label])).unwrap_or(0);
        Ok(Self { labels, shown: shown as u32, name: names[shown].clone() })
    }

    /// Its name as part of a file's.
    pub fn file_name(&self) -> String {
        self.name.replace(['/', ' '], "-")
    }
}

/// An image on its way to rank 0.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Picture {
    /// Height, width, channels.
    shape: [usize; 3],
    pixels: Vec<u8>,
}

impl Picture {
    /// Row `at` of images [N, C, H, W] in [-1, 1].
    pub fn of(images: &Tensor, at: i64) -> Self {
        let image = images.get(at).to_kind(Kind::Float);
        let size = image.size();
        Self { shape: [size[1], size[2], size[0]].map(|side| side as usize), pixels: to_pixels(&image) }
    }

    /// As a sheet takes it.
    ///
    /// # Errors
    /// 65 if it has no pixels.
    pub fn image(&self) -> Result<Image> {
        let [height, width, channels] = self.shape;
        Image::new(height, width, channels, self.pixels.clone())
    }
}

/// Small images are enlarged on a sheet.
pub fn sheet_style(images: &[Vec<Image>]) -> SheetStyle {
    /// Rows that a cell should have at least.
    const ROWS: usize = 84;
    let height = images.iter().flatten().map(|image| image.height).max().unwrap_or(ROWS);
    SheetStyle { scale: (ROWS / height.max(1)).clamp(1, 3), ..SheetStyle::default() }
}

/// Makes cells `0 .. count`, each on one rank; all of them, in order, on every rank.
///
/// # Errors
/// Those of `cell`; 75 on all ranks once one was asked to stop.
pub fn share<T: Serialize + DeserializeOwned>(
    step: &Step,
    count: usize,
    mut cell: impl FnMut(usize) -> Result<T>,
) -> Result<Vec<T>> {
    let mut own = Vec::new();
    for number in (0..count).filter(|number| number % step.world() == step.rank()) {
        if step.should_stop() {
            break;
        }
        own.push((number, cell(number)?));
        step.comm_beat();
    }
    step.agree_to_go_on()?;
    let bytes = serde_json::to_vec(&own).or_exit(ExitCode::Bug, "cells of a sweep")?;
    let mut all: Vec<(usize, T)> = Vec::new();
    for bytes in step.comm().all_gather(&bytes)? {
        all.extend(
            serde_json::from_slice::<Vec<(usize, T)>>(&bytes).or_exit(ExitCode::Bug, "cells of a sweep")?,
        );
    }
    all.sort_by_key(|(number, _)| *number);
    Ok(all.into_iter().map(|(_, cell)| cell).collect())
}

/// The first images of every class in turn, [N, C, H, W] in [-1, 1], with the number that `judge` recognises. Ends early
/// when a stop is asked for: [`share`] then gives the cell up.
///
/// # Errors
/// Those of sampling.
pub fn sample(
    step: &Step,
    synthesizer: &Synthesizer<'_>,
    judge: &dyn Guide,
    labels: &[u32],
    mut each: impl FnMut(u32, &Tensor) -> Result<()>,
) -> Result<f64> {
    let indices: Vec<u64> = (0..synthesizer.batch).collect();
    let mut right = 0.;
    for &class in labels {
        let sampled =
            synthesizer.sample(equipoise_base::ClassId(class), &indices, 0, synthesizer.precision)?;
        right += tch::no_grad(|| {
            let seen = judge.logits(&sampled.images).argmax(1, false);
            seen.eq(i64::from(class)).to_kind(Kind::Double).sum(Kind::Double).double_value(&[])
        });
        each(class, &sampled.images)?;
        step.passed("batches", 1);
        step.comm_beat();
        if step.should_stop() {
            break;
        }
    }
    Ok(right)
}
