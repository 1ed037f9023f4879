//! The structure of a recipe. `configs/default.toml` explains every key; this file gives each its type, its range and
//! whether it is identity, elastic (`x-elastic`) or a place on disk (`x-path`).

use crate::method::{
    Arch, Augment, Codec, Condition, CpuCapability, DiffusionModel, Ema, Feedback, LearningRate, Loss,
    NoiseSchedule, Optimizer, Plan, Sampler, Sampling, Select, Source, Toy,
};
use crate::named::Named;
use crate::slurm::Slurm;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A resolved recipe: every table complete, every reference checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Recipe {
    /// Version of the recipe format.
    #[schemars(range(min = 1, max = 1))]
    pub schema: u32,
    /// The stage that a step binary is to run; set by the launcher.
    #[schemars(extend("x-elastic" = true))]
    pub stage: Option<String>,
    /// The run as a whole.
    pub run: Run,
    /// Checkpoints of training stages.
    #[schemars(extend("x-elastic" = true))]
    pub checkpoint: Checkpoint,
    /// Batch jobs.
    #[schemars(extend("x-elastic" = true))]
    pub slurm: Slurm,
    /// The data set.
    pub data: Option<Dataset>,
    /// What every classifier and every arm starts from.
    pub classifier: Classifier,
    /// Classifiers that serve others: guides, judges, extractors.
    #[serde(default)]
    pub classifiers: Named<Helper>,
    /// The generator.
    pub diffusion: Diffusion,
    /// What every synthetic set starts from.
    pub generate: Generate,
    /// Synthetic sets.
    #[serde(default)]
    pub sets: Named<Set>,
    /// Classifiers to compare.
    #[serde(default)]
    pub arms: Named<Arm>,
    /// Accuracy of the arms.
    pub evaluate: Evaluate,
    /// Quality of the synthetic sets.
    pub metrics: Metrics,
    /// A sweep of guidance strengths, judged.
    pub grid: Option<Grid>,
    /// A sweep of the dropout of the image condition, judged.
    pub dropout: Option<Dropout>,
    /// The two-dimensional toy.
    pub toy: Option<Toy>,
    /// The page.
    #[schemars(extend("x-elastic" = true))]
    pub report: Report,
}

/// `[run]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Run {
    /// Name of the run and of its folder.
    #[schemars(length(min = 1))]
    pub name: String,
    /// Seed of every random number.
    pub seed: u64,
    /// Folder of run directories.
    #[schemars(extend("x-elastic" = true, "x-path" = true))]
    pub root: PathBuf,
    /// MPI ranks of a step.
    #[schemars(range(min = 1, max = 65536), extend("x-elastic" = true))]
    pub ranks: u32,
    /// Threads of a rank inside an operator.
    #[schemars(range(min = 1, max = 1024))]
    pub threads: u32,
    /// Instruction set of the CPU kernels.
    pub cpu_capability: CpuCapability,
    /// Where tensors live.
    pub device: Device,
    /// Whether each stage records what its ranks do when.
    #[serde(default)]
    #[schemars(extend("x-elastic" = true))]
    pub trace: bool,
}

/// Where tensors live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// The GPU of the rank if there is one, else the CPU.
    Auto,
    /// CPU.
    Cpu,
    /// GPU; without one the step ends with 78.
    Cuda,
}

/// Number format of activations; sums and weights stay in fp32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Bf16 where it is faster, on a GPU and on a CPU of capability avx512_bf16 or avx512_amx; fp32 elsewhere.
    Auto,
    /// 32-bit.
    Fp32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    Fp16,
}

/// Number format of weights in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StoredPrecision {
    /// 32-bit.
    Fp32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    Fp16,
}

/// `[checkpoint]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Checkpoint {
    /// Steps between checkpoints.
    #[schemars(range(min = 1))]
    pub every_steps: u64,
    /// Checkpoints kept.
    #[schemars(range(min = 1))]
    pub keep: u32,
}

/// `[data]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Dataset {
    /// Name in reports and files.
    #[schemars(length(min = 1))]
    pub name: String,
    /// Folder that the paths of sources start from.
    #[schemars(extend("x-path" = true))]
    pub root: PathBuf,
    /// Height and width in pixels.
    #[schemars(inner(range(min = 1, max = 4096)))]
    pub size: [u32; 2],
    /// 1 for grey, 3 for colour.
    #[schemars(range(min = 1, max = 4))]
    pub channels: u32,
    /// Class names by label: a file with one name per line, or a list.
    pub classes: Classes,
    /// Names of the contexts that each class comes in, by number: a file with one name per line, or a list.
    pub contexts: Option<Classes>,
    /// Largest part of the images that may be unreadable and left out.
    #[serde(default = "max_bad")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub max_bad: f64,
    /// How the images of prepared splits are stored; raw if left out.
    pub codec: Option<Codec>,
    /// Parts of the data.
    pub splits: Named<Split>,
}

fn max_bad() -> f64 {
    0.001
}

/// Names of classes or of contexts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Classes {
    /// A file with one name per line.
    File(#[schemars(extend("x-path" = true))] PathBuf),
    /// The names.
    Names(#[schemars(length(min = 1))] Vec<String>),
}

/// `[data.splits.NAME]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Split {
    /// Where the images come from.
    pub source: Source,
    /// Which of them; all if left out.
    pub select: Option<Select>,
}

/// `[classifier]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Classifier {
    /// Split to train on.
    pub split: String,
    /// Architecture.
    pub arch: Arch,
    /// Weights that training starts from, all but the head; from a seed if left out.
    #[schemars(extend("x-path" = true))]
    pub init_from: Option<PathBuf>,
    /// Loss.
    pub loss: Loss,
    /// Optimizer.
    pub optimizer: Optimizer,
    /// Learning rate over the steps.
    pub schedule: LearningRate,
    /// Augmentations, in order.
    pub augment: Augment,
    /// How training images are drawn.
    pub sampling: Sampling,
    /// Training steps.
    #[schemars(range(min = 1))]
    pub steps: u64,
    /// Images per step, over all ranks.
    #[schemars(range(min = 1))]
    pub global_batch: u64,
    /// Images that BatchNorm sees at once; the unit that ranks share out.
    #[schemars(range(min = 1))]
    pub micro_batch: u64,
    /// Number format of activations.
    pub precision: Precision,
    /// Keeps the weights of the step that does best on a split; those of the last step if left out.
    pub validate: Option<Validate>,
    /// Steps between rows of metrics.jsonl.
    #[schemars(range(min = 1), extend("x-elastic" = true))]
    pub log_every: u64,
    /// Steps whose loss or gradient is not finite that are left out before the training ends with exit code 71.
    #[schemars(extend("x-elastic" = true))]
    pub skip_non_finite: u64,
}

/// `validate`: early stopping, as far as the weights are concerned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Validate {
    /// Split whose accuracy decides.
    pub split: String,
    /// Steps between looks at it; the last step is always looked at.
    #[schemars(range(min = 1))]
    pub every_steps: u64,
}

/// `[classifiers.NAME]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Helper {
    /// Training, where it differs from `[classifier]`.
    #[serde(flatten)]
    pub training: Classifier,
    /// Trained weights; the classifier is then not trained here.
    #[schemars(extend("x-path" = true))]
    pub weights: Option<PathBuf>,
    /// Seed of its initialisation and sample order.
    #[serde(default)]
    pub seed: u64,
}

/// `[arms.NAME]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Arm {
    /// Training, where it differs from `[classifier]`.
    #[serde(flatten)]
    pub training: Classifier,
    /// Synthetic set to train on beside the real images.
    pub set: Option<String>,
    /// Images of each class to take from the set, the first ones; all if left out.
    #[schemars(range(min = 1))]
    pub set_images: Option<u64>,
    /// Split of real images to train on beside the real images.
    pub extra_split: Option<String>,
    /// Classifier seeds: one training each.
    #[serde(default = "one_seed")]
    #[schemars(length(min = 1), extend("x-elastic" = true))]
    pub seeds: Vec<u64>,
    /// Tries learning rates and batch sizes out first; those of `[classifier]` if left out.
    pub search: Option<Search>,
    /// Name in the report.
    #[schemars(extend("x-elastic" = true))]
    pub label: Option<String>,
}

/// `search`: pairs of learning rate and batch size, each tried in a training of its own over as many images; the one that
/// does best on the split of `validate` is taken for every seed of the arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Search {
    /// Pairs to try.
    #[schemars(range(min = 2, max = 1000))]
    pub draws: u64,
    /// Seed of the pairs, and of the trainings that try them.
    #[serde(default)]
    pub seed: u64,
    /// Learning rates, from and to: uniform over their logarithm.
    pub lr: [f64; 2],
    /// Images per step, from and to: likewise, then rounded to as many micro-batches as the arm has.
    pub global_batch: [u64; 2],
}

fn one_seed() -> Vec<u64> {
    vec![0]
}

/// `[diffusion]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Diffusion {
    /// Trained weights; the generator is then not trained here.
    #[schemars(extend("x-path" = true))]
    pub weights: Option<PathBuf>,
    /// Hugging Face folder of a latent diffusion; it is then the generator, and the other keys play no part.
    #[schemars(extend("x-path" = true))]
    pub folder: Option<PathBuf>,
    /// Network.
    pub model: DiffusionModel,
    /// Noise schedule.
    pub schedule: NoiseSchedule,
    /// What the network predicts.
    pub prediction: Prediction,
    /// Training.
    pub train: DiffusionTraining,
}

/// What a diffusion network predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise.
    Epsilon,
    /// The velocity, sqrt(abar) noise - sqrt(1 - abar) image.
    VPrediction,
    /// The image.
    Sample,
}

/// `[diffusion.train]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DiffusionTraining {
    /// Split to train on; without one nothing is trained.
    pub split: Option<String>,
    /// Optimizer.
    pub optimizer: Optimizer,
    /// Learning rate over the steps.
    pub schedule: LearningRate,
    /// Augmentations, in order.
    pub augment: Augment,
    /// How training images are drawn.
    pub sampling: Sampling,
    /// Training steps.
    #[schemars(range(min = 1))]
    pub steps: u64,
    /// Images per step, over all ranks.
    #[schemars(range(min = 1))]
    pub global_batch: u64,
    /// The unit that ranks share out.
    #[schemars(range(min = 1))]
    pub micro_batch: u64,
    /// Average of the weights, which is what samples.
    pub ema: Ema,
    /// Part of the labels dropped, for classifier-free guidance.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub class_dropout: f64,
    /// Number format of activations.
    pub precision: Precision,
    /// Number format of the weights file.
    pub stored: StoredPrecision,
    /// Seed of its initialisation and sample order.
    pub seed: u64,
    /// Steps between rows of metrics.jsonl.
    #[schemars(range(min = 1), extend("x-elastic" = true))]
    pub log_every: u64,
    /// Steps whose loss or gradient is not finite that are left out before the training ends with exit code 71.
    #[schemars(extend("x-elastic" = true))]
    pub skip_non_finite: u64,
}

/// `[generate]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Generate {
    /// Split whose class counts the plan completes.
    pub split: String,
    /// Classifier that gives feedback.
    pub guide: Option<String>,
    /// Images sampled at once; part of their identity.
    #[schemars(range(min = 1))]
    pub batch: u64,
    /// Batches in a shard file.
    #[schemars(range(min = 1))]
    pub batches_per_shard: u64,
    /// How many images of each class.
    pub plan: Plan,
    /// How images are stored.
    pub codec: Codec,
    /// Denoising steps.
    pub sampler: Sampler,
    /// Classifier-free guidance; 1 is none.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub cfg_scale: f64,
    /// Number format of activations, and of the matrices that a latent generator holds.
    pub precision: Precision,
    /// Classifier feedback; none if left out.
    pub feedback: Option<Feedback>,
    /// What a latent generator is told about each image.
    pub condition: Option<Condition>,
}

/// `[sets.NAME]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Set {
    /// Generation, where it differs from `[generate]`.
    #[serde(flatten)]
    pub generate: Generate,
    /// Set seeds: one set of images each.
    #[serde(default = "one_seed")]
    #[schemars(length(min = 1), extend("x-elastic" = true))]
    pub seeds: Vec<u64>,
    /// Name in the report.
    #[schemars(extend("x-elastic" = true))]
    pub label: Option<String>,
}

/// `[evaluate]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Evaluate {
    /// Splits to measure accuracy on.
    #[schemars(length(min = 1))]
    pub splits: Vec<String>,
}

/// `[metrics]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Metrics {
    /// Classifier whose features FID, density and coverage use.
    pub extractor: String,
    /// Classifier that says whether an image is recognised as its class.
    pub judge: String,
    /// Split of real images to compare with.
    pub reference: String,
}

/// `[grid]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Grid {
    /// Set whose generation is varied.
    pub set: String,
    /// Values of `cfg_scale`.
    #[schemars(length(min = 1))]
    pub cfg_scale: Vec<f64>,
    /// Values of the feedback strength.
    #[schemars(length(min = 1))]
    pub omega: Vec<f64>,
    /// Images of each class in each cell.
    #[schemars(range(min = 1))]
    pub images: u32,
    /// Classes that are sampled, by name; all if left out. The picture shows the rarest of them.
    pub classes: Option<Vec<String>>,
}

/// `[dropout]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Dropout {
    /// Set whose generation is varied; it needs a condition.
    pub set: String,
    /// Values of `condition.dropout.p`, one row each; 1 leaves the text alone.
    #[schemars(length(min = 1), inner(range(min = 0.0, max = 1.0)))]
    pub p: Vec<f64>,
    /// Images of each class in each row.
    #[schemars(range(min = 1))]
    pub images: u32,
    /// Classes that are sampled, by name; all if left out. The picture shows the rarest of them.
    pub classes: Option<Vec<String>>,
}

/// `[report]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// Heading.
    pub title: Option<String>,
    /// Arm that others are compared with; the first if left out.
    pub baseline: Option<String>,
    /// Split whose accuracies the page shows.
    pub split: String,
    /// Remarks to print, such as what the generator was trained on.
    #[serde(default)]
    pub notes: Vec<String>,
}
