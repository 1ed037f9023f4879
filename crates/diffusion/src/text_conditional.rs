//! A latent diffusion network with the conditions of one batch: text and, for unCLIP, an image embedding.

use crate::guidance::{Denoiser, extrapolate};
use equipoise_base::{Result, ensure};
use equipoise_models::unet2d_condition::{Conditioning, UNet2DConditionModel};
use equipoise_nn::MemoryFormat;
use std::cell::OnceCell;
use tch::{Kind, Tensor};

/// Conditions of a batch, one row per sample.
#[derive(Debug)]
pub struct Condition {
    /// Text embeddings [N, L, D].
    pub text: Tensor,
    /// Class labels [N, P]: the noised image embedding with the code of its noise level. For networks with a class
    /// embedding, and for those only.
    pub class_labels: Option<Tensor>,
}

impl Condition {
    /// The unconditional half for `like`: a negative prompt's embeddings [L, D] or [N, L, D], and class labels of zero
    /// (not noised), as in diffusers.
    pub fn negative(text: &Tensor, like: &Condition) -> Self {
        Self {
            text: text.expand_as(&like.text),
            class_labels: like.class_labels.as_ref().map(Tensor::zeros_like),
        }
    }
}

/// Conditions as the network takes them, once it is known in which kind.
#[derive(Debug)]
struct Bound {
    condition: Condition,
    prepared: OnceCell<Conditioning>,
}

impl Bound {
    fn new(condition: Condition) -> Self {
        Self { condition, prepared: OnceCell::new() }
    }

    fn of_kind(&self, kind: Kind) -> &Conditioning {
        self.prepared.get_or_init(|| {
            let labels = self.condition.class_labels.as_ref().map(|labels| labels.to_kind(kind));
            Conditioning::new(self.condition.text.to_kind(kind), labels)
        })
    }
}

/// A U-Net bound to the conditions of a batch, with classifier-free guidance in one pass.
#[derive(Debug)]
pub struct TextConditional<'a> {
    unet: &'a UNet2DConditionModel,
    condition: Bound,
    /// [negative; condition]
    doubled: Option<Bound>,
    scale: f64,
    format: MemoryFormat,
}

impl<'a> TextConditional<'a> {
    /// uncond + scale (cond - uncond); with a scale up to 1 the conditional output alone.
    ///
    /// # Errors
    /// 78 if class labels are given to a network without class embedding, or missing for one that has it.
    pub fn new(
        unet: &'a UNet2DConditionModel,
        condition: Condition,
        negative: &Tensor,
        scale: f64,
    ) -> Result<Self> {
        ensure!(
            unet.has_class_embedding() == condition.class_labels.is_some(),
            Config,
            "{}",
            match condition.class_labels {
                Some(_) => "this U-Net takes text only, no image embedding",
                None => "this U-Net wants an image embedding besides the text",
            }
        );
        let doubled = (scale > 1.).then(|| {
            let negative = Condition::negative(negative, &condition);
            let both = |uncond: &Tensor, cond: &Tensor| Tensor::cat(&[uncond, cond], 0);
            let labels = negative.class_labels.as_ref().zip(condition.class_labels.as_ref());
            Condition {
                text: both(&negative.text, &condition.text),
                class_labels: labels.map(|(uncond, cond)| both(uncond, cond)),
            }
        });
        let format = MemoryFormat::with_group_norms(condition.text.device());
        let (condition, doubled) = (Bound::new(condition), doubled.map(Bound::new));
        Ok(Self { unet, condition, doubled, scale, format })
    }

    fn run(&self, x: &Tensor, t: i64, condition: &Bound) -> Tensor {
        // Only a tensor without four dimensions can be refused here.
        let x = self.format.apply(x).unwrap_or_else(|error| panic!("{error}"));
        let t = Tensor::full([1], t as f64, (Kind::Float, x.device()));
        self.unet.conditioned(&x, &t, condition.of_kind(x.kind()))
    }
}

impl Denoiser for TextConditional<'_> {
    fn denoise(&self, x: &Tensor, t: i64) -> Tensor {
        match &self.doubled {
            None => self.run(x, t, &self.condition),
            Some(both) => extrapolate(&self.run(&Tensor::cat(&[x, x], 0), t, both), x.size()[1], self.scale),
        }
    }

    fn conditional(&self, x: &Tensor, t: i64) -> Tensor {
        self.run(x, t, &self.condition)
    }
}
