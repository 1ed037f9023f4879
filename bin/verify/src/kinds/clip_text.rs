//! Kind `clip_text`: the text tower of a Hugging Face folder.

use crate::case::{Case, Tensors};
use equipoise_base::Result;
use equipoise_models::clip::ClipTextModel;
use equipoise_pretrained::Component;
use equipoise_nn::runtime;

/// Computes what the case expects.
pub fn check(case: &Case) -> Result<Tensors> {
    let component = Component::open(&case.dir.join("model"))?;
    let model = ClipTextModel::open(&component, case.dtype(), runtime::device())?;
    let (ids, mask) = (case.input("input_ids")?, case.inputs.get("attention_mask"));
    let out = tch::no_grad(|| model.forward(ids, mask));
    let mut got = Tensors::from([
        ("last_hidden_state".into(), out.last_hidden_state),
        ("pooler_output".into(), out.pooler_output),
    ]);
    got.extend(out.text_embeds.map(|embeds| ("text_embeds".into(), embeds)));
    got.extend((0..).zip(out.hidden_states).map(|(i, state): (i64, _)| (format!("hidden_{i}"), state)));
    Ok(got)
}
