//! How long stages take: how much there is to do on the slowest rank, and how fast it goes.

use super::Sizes;
use crate::cost::{self, Estimate, Estimator, launches};
use crate::runner::Run;
use equipoise_base::Result;
use equipoise_config::recipe::{Device, Recipe};
use equipoise_config::{Kind, Stage};
use equipoise_workplan::effort;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// Time of one stage.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StageTime {
    /// Wall seconds that it will take, or is to have taken by what was known before; null if nothing like it was measured.
    pub seconds: Option<f64>,
    /// Where that speed was measured.
    pub measured_by: Option<String>,
    /// Wall seconds that it took, once it is done.
    pub took: Option<f64>,
    /// Seconds times ranks, in hours.
    pub rank_hours: Option<f64>,
}

/// Time of a whole run on this machine, one stage after the other.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Total {
    /// Wall seconds that the stages take that are not done, as far as is known.
    pub seconds: f64,
    /// Their seconds times ranks, in hours.
    pub rank_hours: f64,
    /// The same where each rank has a GPU; null on CPUs.
    pub gpu_hours: Option<f64>,
    /// Stages not done of which nothing is known.
    pub unknown: usize,
    /// Wall seconds that the finished stages took.
    pub took: f64,
    /// What was expected of the finished stages that there was an expectation of, and what these took.
    pub compared: (f64, f64),
    /// What the calibration in use was measured on.
    pub calibrated_on: Option<String>,
}

impl Total {
    /// Adds up stages with their ranks.
    pub fn of<'t>(
        stages: impl Iterator<Item = (&'t StageTime, usize)>,
        recipe: &Recipe,
        estimator: &Estimator,
    ) -> Self {
        let mut total = Self::default();
        for (time, ranks) in stages {
            match (time.took, time.seconds) {
                (Some(took), expected) => {
                    total.took += took;
                    if let Some(expected) = expected.filter(|_| time.measured_by.is_some()) {
                        total.compared.0 += expected;
                        total.compared.1 += took;
                    }
                }
                (None, Some(seconds)) => {
                    total.seconds += seconds;
                    total.rank_hours += seconds * ranks as f64 / 3600.0;
                }
                (None, None) => total.unknown += 1,
            }
        }
        total.gpu_hours = uses_gpus(recipe, estimator).then_some(total.rank_hours);
        total.calibrated_on = estimator.calibration.as_ref().and_then(|found| found.describe());
        total
    }
}

/// Times of stages, from what is known.
pub struct Times<'a> {
    run: &'a Run,
    sizes: &'a Sizes,
    estimator: &'a Estimator,
    took: BTreeMap<String, f64>,
}

impl<'a> Times<'a> {
    /// # Errors
    /// 74 if the record of launches cannot be read.
    pub fn new(run: &'a Run, sizes: &'a Sizes, estimator: &'a Estimator) -> Result<Self> {
        Ok(Self { run, sizes, estimator, took: launches::seconds(&run.dir)? })
    }

    /// What a stage takes on `ranks`, whether it is done or not; none if nothing like it was measured.
    pub fn estimate(&self, stage: &Stage, ranks: usize) -> Option<Estimate> {
        self.estimator.of(self.run, stage, ranks, || self.units(stage, ranks))
    }

    /// Time of a stage. One that is done is compared with the calibration: its own speed would predict itself.
    ///
    /// # Errors
    /// 65 or 74 if its records cannot be read.
    pub fn of(&self, stage: &Stage, ranks: usize) -> Result<StageTime> {
        // The page leaves no outcome; the launcher notes that it was written.
        let written = stage.kind == Kind::Report && self.took.contains_key(&stage.name);
        let done = written || self.run.is_done(stage)?;
        let took = if done { self.took(stage)? } else { None };
        let estimate = match done {
            true => self.estimator.calibrated(self.run, stage, ranks, || self.units(stage, ranks)),
            false => self.estimate(stage, ranks),
        };
        // The front end writes the page within a second; statistics are sums over a file.
        let counts_nothing = matches!(stage.kind, Kind::Report | Kind::Statistics);
        let seconds = estimate.as_ref().map(|estimate| estimate.seconds).or(counts_nothing.then_some(1.0));
        let spent = if done { took } else { seconds };
        Ok(StageTime {
            seconds,
            measured_by: estimate.map(|estimate| estimate.source.to_string()),
            took,
            rank_hours: spent.map(|seconds| seconds * ranks as f64 / 3600.0),
        })
    }

    fn units(&self, stage: &Stage, ranks: usize) -> Option<f64> {
        self.sizes.units(&self.run.resolved.recipe, stage, ranks)
    }

    fn took(&self, stage: &Stage) -> Result<Option<f64>> {
        if let Some(&seconds) = self.took.get(&stage.name) {
            return Ok(Some(seconds));
        }
        let provenance = cost::provenance(self.run, stage)?;
        Ok(provenance.map(|it| if it.process_seconds > 0.0 { it.process_seconds } else { it.seconds }))
    }
}

/// Whether ranks compute on GPUs, as far as can be told without one.
pub fn uses_gpus(recipe: &Recipe, estimator: &Estimator) -> bool {
    let calibrated = estimator.calibration.iter().flat_map(|found| &found.work);
    match recipe.run.device {
        Device::Cuda => true,
        Device::Cpu => false,
        Device::Auto => calibrated.into_iter().any(|entry| entry.rehearsal.gpu_total.is_some()),
    }
}

impl Sizes {
    /// Units that the slowest of `ranks` does one after the other, in the units that the stage's loop counts; none for
    /// stages that count none.
    pub(super) fn units(&self, recipe: &Recipe, stage: &Stage, ranks: usize) -> Option<f64> {
        let params = &stage.params;
        let text = |key: &str| params[key].as_str().unwrap_or_default();
        let count = |value: &Value| value.as_array().map_or(0, Vec::len) as u64;
        Some(match stage.kind {
            Kind::Prepare => self.split(text("split"))?.counts.read as f64,
            Kind::Classifier | Kind::Arm => params["steps"].as_u64()? as f64,
            Kind::Diffusion => params["train"]["steps"].as_u64()? as f64,
            Kind::Generate => effort::generation(&self.set(text("set"))?.layout, ranks),
            Kind::Embed => self.embedded(params).div_ceil(ranks as u64) as f64,
            Kind::Features => effort::pass(self.split(text("split"))?.images, ranks) as f64,
            Kind::Evaluate => {
                let splits =
                    params["splits"].as_array()?.iter().filter_map(|split| self.split(split.as_str()?));
                let each: u64 = splits.map(|split| effort::pass(split.images, ranks)).sum();
                (each * count(&params["runs"])) as f64
            }
            Kind::Metrics => {
                let passes = self.metrics_passes(recipe, params);
                passes.map(|images| effort::pass(images, ranks)).sum::<u64>() as f64
            }
            Kind::Grid => {
                let cells = count(&params["cfg_scale"]) * count(&params["omega"]);
                (cells.div_ceil(ranks as u64) * self.swept_classes(params)) as f64
            }
            Kind::Dropout => (count(&params["p"]).div_ceil(ranks as u64) * self.swept_classes(params)) as f64,
            // Three seeds are the toy's default.
            Kind::Toy => params["seeds"].as_array().map_or(3, Vec::len).div_ceil(ranks) as f64,
            Kind::Statistics | Kind::Report => return None,
        })
    }

    /// Images or texts that a stage embeds, one by one.
    pub(super) fn embedded(&self, params: &Value) -> u64 {
        match params["split"].as_str() {
            Some(split) => self.split(split).map_or(0, |split| split.images),
            None => {
                let count = |key: &str| params[key].as_array().map_or(0, Vec::len) as u64;
                count("prompts") * self.classes + count("negative_prompts")
            }
        }
    }

    fn swept_classes(&self, params: &Value) -> u64 {
        params["classes"].as_array().map_or(self.classes, |classes| classes.len() as u64)
    }

    /// Images of each pass that `metrics` makes through a network.
    fn metrics_passes(&self, recipe: &Recipe, params: &Value) -> impl Iterator<Item = u64> {
        let reference = params["reference"].as_str().and_then(|split| self.split(split));
        let mut passes = vec![reference.map_or(0, |split| split.images); 2];
        let unguided = recipe.sets.iter().find(|(_, set)| set.generate.feedback.is_none());
        for (at, set) in params["sets"].as_array().into_iter().flatten().enumerate() {
            let Some(planned) = set["set"].as_str().and_then(|name| self.set(name)) else { continue };
            passes.extend([planned.images; 2]);
            if let (0, Some(reference)) = (at, reference) {
                passes.push(matched(&planned.synthetic(self.classes), &reference.counts.classes));
            }
            let guided = recipe.sets.get(&planned.name).is_some_and(|set| set.generate.feedback.is_some());
            let seed = set["seed"].as_u64();
            let plain = unguided.filter(|(_, plain)| plain.seeds.iter().any(|other| Some(*other) == seed));
            if let (true, Some((plain, _))) = (guided, plain) {
                passes.extend([planned.images, self.set(plain).map_or(0, |set| set.images)]);
            }
        }
        passes.into_iter()
    }
}

/// Real images in the class proportions of a set, as many as there are: what `metrics` compares it with.
fn matched(wanted: &[u64], there: &[u64]) -> u64 {
    let pairs = || wanted.iter().zip(there).filter(|(wanted, _)| **wanted > 0);
    let scale = pairs().map(|(&wanted, &there)| there as f64 / wanted as f64).fold(1.0, f64::min);
    pairs().map(|(&wanted, &there)| ((wanted as f64 * scale) as u64).min(there)).sum()
}

#[cfg(test)]
mod tests {
    use super::matched;

    #[test]
    fn the_scarcest_class_decides_how_many_match() {
        assert_eq!(matched(&[4, 0, 2], &[100, 100, 100]), 6);
        assert_eq!(matched(&[4, 0, 2], &[2, 100, 100]), 3);
        assert_eq!(matched(&[], &[]), 0);
    }
}
