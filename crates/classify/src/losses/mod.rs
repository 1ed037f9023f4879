//! Classification losses over logits [N, C], one family per file.
//!
//! A new loss is one parameter struct in a file beside its siblings, with its [`Method`], and one line in the
//! registry below: the configuration, its schema and [`Loss::new`] follow from that line.

mod balanced_softmax;
mod class_balanced;
mod counts;
mod cross_entropy;
mod focal;
mod lade;
mod ldam;
mod logit_adjust;

pub use balanced_softmax::{BalancedSoftmax, MixBsCe};
pub use class_balanced::{CbCe, CbCeMean, CbFocal, CbFocalLdamdrw};
pub use counts::{Counts, Prior};
pub use cross_entropy::{Ce, LabelSmoothing, LabelSmoothingCm1};
pub use focal::Focal;
pub use lade::{Lade, LadeReg};
pub use ldam::{Ldam, LdamDrw};
pub use logit_adjust::LogitAdjust;

use counts::PerClass;
use equipoise_base::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use tch::{Kind, Reduction, Tensor};

/// Where training stands, for losses that change on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Step since the start of training, from 0.
    pub step: u64,
}

/// Parameters of a loss.
trait Method {
    /// Computes what depends on the counts only.
    ///
    /// # Errors
    /// 78 when a parameter is out of range, 65 when the counts cannot be used.
    fn build(&self, counts: &Counts) -> Result<Box<dyn Objective>>;
}

/// A loss ready for batches.
trait Objective: Debug {
    /// Mean loss, a 0-d tensor, of `logits` [N, C] float32 or float64 for `target` [N] int64.
    fn value(&self, logits: &Tensor, target: &Tensor, progress: Progress) -> Tensor;
}

macro_rules! registry {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Which loss, and its parameters: `{ kind = "focal", gamma = 1.0 }`. No parameter has a default here; the
        /// recipes say them all.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(tag = "kind", rename_all = "snake_case")]
        pub enum LossConfig { $($(#[$doc])* $name($name),)* }

        impl LossConfig {
            fn method(&self) -> &dyn Method {
                match self { $(Self::$name(parameters) => parameters,)* }
            }
        }
    };
}

registry! {
    /// Cross-entropy.
    Ce,
    /// Cross-entropy with smoothed labels, as PyTorch.
    LabelSmoothing,
    /// Cross-entropy with labels smoothed over the other classes only, as DLSA.
    LabelSmoothingCm1,
    /// Focal loss (Lin et al. 2017).
    Focal,
    /// Class-balanced cross-entropy (Cui et al. 2019), weighted mean as LDAM-DRW.
    CbCe,
    /// Class-balanced cross-entropy, weighted sum over N.
    CbCeMean,
    /// Class-balanced focal loss.
    CbFocal,
    /// Class-balanced focal loss as the code of LDAM-DRW has it.
    CbFocalLdamdrw,
    /// Label-distribution-aware margins (Cao et al. 2019).
    Ldam,
    /// LDAM with deferred re-weighting.
    LdamDrw,
    /// Balanced softmax (Ren et al. 2020).
    BalancedSoftmax,
    /// A blend of balanced softmax and cross-entropy (seed paper 002, Fig. 16).
    MixBsCe,
    /// Logit adjustment (Menon et al. 2021).
    LogitAdjust,
    /// LADE (Hong et al. 2021).
    Lade,
    /// The regulariser of LADE alone.
    LadeReg,
}

/// A loss of one training run.
#[derive(Debug)]
pub struct Loss(Box<dyn Objective>);

impl Loss {
    /// Prepares the loss for a training set with these counts.
    ///
    /// # Errors
    /// 78 when a parameter is out of range, 65 when the counts cannot be used, such as a class without images where
    /// the loss needs its logarithm.
    pub fn new(config: &LossConfig, counts: &Counts) -> Result<Self> {
        Ok(Self(config.method().build(counts)?))
    }

    /// Mean loss, a 0-d tensor, of `logits` [N, C] for `target` [N] int64; half-precision logits count in float32.
    pub fn forward(&self, logits: &Tensor, target: &Tensor, progress: Progress) -> Tensor {
        match logits.kind() {
            Kind::Half | Kind::BFloat16 => self.0.value(&logits.to_kind(Kind::Float), target, progress),
            _ => self.0.value(logits, target, progress),
        }
    }
}

/// `-log p_y` of each sample: [N].
pub(crate) fn per_sample(logits: &Tensor, target: &Tensor) -> Tensor {
    reduced(logits, target, None, Reduction::None)
}

/// Mean cross-entropy.
pub(crate) fn cross_entropy(logits: &Tensor, target: &Tensor) -> Tensor {
    reduced(logits, target, None, Reduction::Mean)
}

/// PyTorch's weighted mean: `sum w_y l / sum w_y`.
fn weighted_cross_entropy(logits: &Tensor, target: &Tensor, weight: &PerClass) -> Tensor {
    reduced(logits, target, Some(weight.like(logits)), Reduction::Mean)
}

fn reduced(logits: &Tensor, target: &Tensor, weight: Option<Tensor>, reduction: Reduction) -> Tensor {
    /// No class is ignored: PyTorch's number for that.
    const NONE: i64 = -100;
    logits.cross_entropy_loss(target, weight, reduction, NONE, 0.)
}

#[cfg(test)]
mod tests;
