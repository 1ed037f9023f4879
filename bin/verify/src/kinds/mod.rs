//! One file per kind of case; a new kind is one file and one line of [`KINDS`].

use crate::case::{Case, Tensors};
use equipoise_base::Result;

/// Computes the tensors that a case expects.
pub type Check = fn(&Case) -> Result<Tensors>;

macro_rules! kinds {
    ($($kind:ident),* $(,)?) => {
        $(mod $kind;)*
        /// All kinds, by name.
        pub const KINDS: &[(&str, Check)] = &[$((stringify!($kind), $kind::check),)*];
    };
}

kinds! {
    adm_unet,
    augment,
    autoencoder_kl,
    clip_image_processor,
    clip_text,
    clip_tokenizer,
    clip_vision,
    ddim,
    ddpm_respaced,
    feedback_guidance,
    losses,
    lt_profile,
    metrics,
    resnet,
    stats,
    unclip_pipeline,
    unet2d_condition,
}
