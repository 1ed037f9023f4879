//! What the stages leave for people: the JSON side files that the report, `status` and scripts read.
//!
//! They are the only way from pixels and HDF5 to the page. Accuracies are fractions in [0, 1]; absent groups are null.

use crate::pace::Pace;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `stages/evaluate/results.json`: every trained classifier on validation and test images.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Evaluation {
    /// Class names, by label.
    pub classes: Vec<String>,
    /// Real training images per class.
    pub train_counts: Vec<u64>,
    /// Names of the groups (`class/context`); empty if the data set has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Real training images per group.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub train_group_counts: Vec<u64>,
    /// One entry per trained classifier.
    pub runs: Vec<ArmRun>,
}

/// One trained classifier of an arm.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArmRun {
    /// Arm of the recipe.
    pub arm: String,
    /// Seed of its synthetic set, if it has one.
    pub set_seed: Option<u64>,
    /// Seed of the classifier.
    pub seed: u64,
    /// Scores by split, such as `val` and `test`.
    pub scores: BTreeMap<String, Scores>,
}

/// Top-1 accuracy of one classifier on one split.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Scores {
    /// Images scored.
    pub images: u64,
    /// Over all images.
    pub all: f64,
    /// Mean over classes with more than 100 training images.
    pub many: Option<f64>,
    /// Mean over classes with 20 to 100 training images.
    pub medium: Option<f64>,
    /// Mean over classes with fewer than 20 training images.
    pub few: Option<f64>,
    /// Mean over the three classes with the fewest training images.
    pub rare3: Option<f64>,
    /// By class; null for a class without images.
    pub per_class: Vec<Option<f64>>,
    /// By group; absent if the split has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<GroupScores>,
}

/// Top-1 accuracy of one classifier by group: a class in a context.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupScores {
    /// Smallest accuracy of a group with images: the worst-group accuracy.
    pub worst: f64,
    /// The first group that has it.
    pub worst_group: usize,
    /// Mean over the groups with images.
    pub mean: f64,
    /// By group; null for a group without images.
    pub per_group: Vec<Option<f64>>,
}

/// `stages/metrics/results.json`: the synthetic sets, image by image and as distributions.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SetMetrics {
    /// Name of the feature extractor and judge.
    pub extractor: String,
    /// Accuracy of the judge on real test images.
    pub judge_accuracy: f64,
    /// Two FIDs that frame those of the sets.
    pub reference: Reference,
    /// One entry per set and seed.
    pub sets: Vec<SetResult>,
}

/// What FID is for images that are certainly right, and certainly wrong.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Reference {
    /// Real training-distribution images against test images.
    pub real: f64,
    /// The same images with their pixels shuffled, against test images.
    pub shuffled: f64,
}

/// One synthetic set.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SetResult {
    /// Set of the recipe.
    pub set: String,
    /// Seed of its noise.
    pub seed: u64,
    /// Images in it.
    pub images: u64,
    /// Images left out because they could not be made finite.
    pub failed: u64,
    /// Images that a retry repaired.
    pub retried: u64,
    /// Share that the judge recognises as their class.
    pub agreement: f64,
    /// The same by class; null for classes without synthetic images.
    pub agreement_by_class: Vec<Option<f64>>,
    /// How its images are stored: a lossy codec is part of what is measured.
    #[serde(default = "raw")]
    pub codec: String,
    /// Filter with which they were resized to be stored, which is a part of it too; empty if they were not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub resize_filter: String,
    /// Fréchet distance to test images in the same class proportions.
    pub fid: f64,
    /// PRDC density, k = 5.
    pub density: f64,
    /// PRDC coverage, k = 5.
    pub coverage: f64,
    /// Diversities of seed 000 Eq. 3-5, means over classes.
    pub div_cos: f64,
    /// See `div_cos`.
    pub div_std: f64,
    /// See `div_cos`.
    pub div_svd: f64,
    /// How far guidance raised its criterion over the unguided set of the same noise; null for an unguided set.
    pub criterion_gain: Option<CriterionGain>,
}

fn raw() -> String {
    "raw".into()
}

/// Paired difference of the criterion on final images: guided minus unguided, same noise, class and index.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CriterionGain {
    /// Criterion, as in the recipe.
    pub criterion: String,
    /// The unguided set.
    pub against: String,
    /// Pairs.
    pub pairs: u64,
    /// Mean difference.
    pub mean: f64,
    /// Ends of the 95 % interval of the mean.
    pub low: f64,
    /// See `low`.
    pub high: f64,
}

/// `stages/grid/results.json`: one cell per guidance scale and feedback strength, same noise in all.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Grid {
    /// Class shown.
    pub class: String,
    /// Classifier-free guidance scales, one row each.
    pub cfg_scales: Vec<f64>,
    /// Feedback strengths, one column each.
    pub omegas: Vec<f64>,
    /// Criterion of the feedback.
    pub criterion: String,
    /// Share that the judge recognises, `[row][column]`, over all classes.
    pub agreement: Vec<Vec<f64>>,
    /// Mean criterion of the final images, `[row][column]`.
    pub value: Vec<Vec<f64>>,
    /// Images per cell behind the two numbers.
    pub images: u64,
}

/// `stages/dropout/results.json`: seed 002 Fig. 9, images conditioned on one real image of their class, same noise at
/// every probability.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Dropout {
    /// Class shown.
    pub class: String,
    /// Row in the split of the real image that is shown.
    pub row: u64,
    /// Images of each class at each probability.
    pub images: u64,
    /// Classes behind the numbers.
    pub classes: u64,
    /// Classifier whose features are compared.
    pub extractor: String,
    /// One entry per probability.
    pub rows: Vec<DropoutRow>,
}

/// One probability of dropping an element of the image condition.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct DropoutRow {
    /// The probability.
    pub p: f64,
    /// Share that the judge recognises as their class.
    pub agreement: f64,
    /// Cosine diversity of the images of a class (seed 000 Eq. 3), mean over classes.
    pub diversity: f64,
    /// Cosine of their features to those of the real image, mean over images and classes.
    pub likeness: f64,
}

/// `stages/<training>/search.json`: what was tried before, and which of it this training takes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Search {
    /// In the order of the draws.
    pub tried: Vec<Tried>,
    /// Position of the best.
    pub taken: usize,
}

/// One pair of learning rate and batch size.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tried {
    /// Stage that has tried it.
    pub stage: String,
    /// Learning rate.
    pub lr: f64,
    /// Images per step.
    pub global_batch: u64,
    /// Step with the best accuracy.
    pub step: u64,
    /// Accuracy then, on the split of `validate`.
    pub accuracy: f64,
}

/// `stages/toy/results.json`: seed 002 Fig. 6.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Toy {
    /// One entry per way of sampling.
    pub arms: Vec<ToyArm>,
    /// Real training points with class and whether the mode is the rare one, thinned for the picture.
    pub real: Vec<ToyPoint>,
}

/// One way of sampling the toy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ToyArm {
    /// Such as `unguided`.
    pub name: String,
    /// Share of samples in the rare modes, one value per seed.
    pub minority_share: Vec<f64>,
    /// Share of samples near a mode of their class, one value per seed.
    pub validity: Vec<f64>,
    /// Accuracy of a linear classifier, trained on real and synthetic points, on the rare modes; per seed.
    pub minority_accuracy: Vec<f64>,
    /// Samples of the first seed, thinned for the picture.
    pub points: Vec<ToyPoint>,
}

/// A point of the toy.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ToyPoint {
    /// First coordinate.
    pub x: f32,
    /// Second coordinate.
    pub y: f32,
    /// Class, 0 or 1.
    pub class: u8,
}

/// `stages/<stage>/provenance.json`: what a stage ran on and what it cost.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Provenance {
    /// Everything that decides bits, as one canonical line.
    pub fingerprint: String,
    /// Ranks of the last attempt.
    pub ranks: usize,
    /// Threads of each rank.
    pub threads: usize,
    /// Host of rank 0.
    pub host: String,
    /// CPU model.
    pub cpu: String,
    /// Seconds of the last attempt.
    pub seconds: f64,
    /// The same from the start of the process on, loading of libraries included.
    #[serde(default)]
    pub process_seconds: f64,
    /// Speed of its loop, if it counts units.
    #[serde(default)]
    pub pace: Option<Pace>,
    /// Largest resident memory of rank 0, bytes.
    pub peak_memory: u64,
    /// Version of Equipoise.
    pub version: String,
}
