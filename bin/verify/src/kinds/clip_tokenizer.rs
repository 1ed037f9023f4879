//! Kind `clip_tokenizer`: texts to ids, exactly.

use crate::case::{Case, Tensors};
use equipoise_base::Result;
use equipoise_data::clip::ClipTokenizer;
use equipoise_pretrained::Component;
use tch::Tensor;

/// Computes what the case expects.
pub fn check(case: &Case) -> Result<Tensors> {
    let tokenizer = ClipTokenizer::open(&Component::open(&case.dir.join("tokenizer"))?)?;
    let texts: Vec<String> = case.param("texts")?;
    let tokens = tokenizer.encode(&texts, case.param("max_length")?)?;
    let lengths: Vec<i64> = tokens.lengths.iter().map(|&length| length as i64).collect();
    Ok(Tensors::from([
        ("input_ids".into(), tokens.input_ids),
        ("attention_mask".into(), tokens.attention_mask),
        ("lengths".into(), Tensor::from_slice(&lengths)),
    ]))
}
