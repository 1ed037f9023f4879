//! Kind `clip_vision`: the vision tower of a Hugging Face folder.

use crate::case::{Case, Tensors};
use equipoise_base::Result;
use equipoise_models::clip::ClipVisionModel;
use equipoise_pretrained::Component;
use equipoise_nn::runtime;

/// Computes what the case expects.
pub fn check(case: &Case) -> Result<Tensors> {
    let component = Component::open(&case.dir.join("model"))?;
    let model = ClipVisionModel::open(&component, case.dtype(), runtime::device())?;
    let pixels = case.input("pixel_values")?;
    let out = tch::no_grad(|| model.forward(pixels));
    Ok(Tensors::from([
        ("last_hidden_state".into(), out.last_hidden_state),
        ("pooled".into(), out.pooled),
        ("image_embeds".into(), out.image_embeds),
    ]))
}
