//! Kind `adm_unet`: forward and input gradient of the guided-diffusion networks.

use crate::case::{Case, Tensors};
use equipoise_base::Result;
use equipoise_models::adm::{AdmConfig, AdmEncoder, AdmPool, AdmShape, AdmUNet};
use equipoise_nn::{Params, runtime};
use serde::Deserialize;
use tch::{Kind, Tensor};

/// Constructor arguments of `UNetModel` and `EncoderUNetModel`, with their defaults.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Constructor {
    image_size: i64,
    in_channels: i64,
    model_channels: i64,
    out_channels: i64,
    num_res_blocks: i64,
    attention_resolutions: Vec<i64>,
    dropout: f64,
    channel_mult: Vec<f64>,
    conv_resample: bool,
    dims: i64,
    num_classes: Option<i64>,
    use_checkpoint: bool,
    use_fp16: bool,
    num_heads: i64,
    num_head_channels: i64,
    num_heads_upsample: i64,
    use_scale_shift_norm: bool,
    resblock_updown: bool,
    use_new_attention_order: bool,
    pool: AdmPool,
}

impl Default for Constructor {
    fn default() -> Self {
        Self {
            image_size: 0,
            in_channels: 0,
            model_channels: 0,
            out_channels: 0,
            num_res_blocks: 0,
            attention_resolutions: Vec::new(),
            dropout: 0.,
            channel_mult: vec![1., 2., 4., 8.],
            conv_resample: true,
            dims: 2,
            num_classes: None,
            use_checkpoint: false,
            use_fp16: false,
            num_heads: 1,
            num_head_channels: -1,
            num_heads_upsample: -1,
            use_scale_shift_norm: false,
            resblock_updown: false,
            use_new_attention_order: false,
            pool: AdmPool::Adaptive,
        }
    }
}

impl Constructor {
    /// Reads `params.config`.
    pub fn read(case: &Case) -> Result<Self> {
        let this: Self = case.param("config")?;
        // Checkpointing changes memory, not values; the others would.
        if this.dropout != 0. || this.dims != 2 || this.use_fp16 {
            return Err(case.broken("only dropout 0, dims 2 and use_fp16 false are defined for this kind"));
        }
        Ok(this)
    }

    fn config(&self) -> AdmConfig {
        AdmConfig {
            model_channels: self.model_channels,
            channel_mult: self.channel_mult.clone(),
            num_res_blocks: self.num_res_blocks,
            attention_resolutions: self.attention_resolutions.clone(),
            num_heads: self.num_heads,
            num_head_channels: self.num_head_channels,
            num_heads_upsample: self.num_heads_upsample,
            use_scale_shift_norm: self.use_scale_shift_norm,
            resblock_updown: self.resblock_updown,
            conv_resample: self.conv_resample,
            use_new_attention_order: self.use_new_attention_order,
            patch: 1,
            // The constructor is told the number of output channels instead.
            learn_sigma: false,
        }
    }

    fn shape(&self) -> AdmShape {
        AdmShape {
            image_size: self.image_size,
            in_channels: self.in_channels,
            out_channels: self.out_channels,
            labels: self.num_classes,
        }
    }

    /// The generator with the weights of the case, frozen.
    pub fn unet(&self, case: &Case, kind: Kind) -> Result<AdmUNet> {
        let params = Params::for_loading(kind, runtime::device());
        let unet = AdmUNet::new(&params.root(), &self.config(), &self.shape())?;
        load(case, &params)?;
        Ok(unet)
    }

    fn encoder(&self, case: &Case, kind: Kind) -> Result<AdmEncoder> {
        let params = Params::for_loading(kind, runtime::device());
        let encoder = AdmEncoder::new(&params.root(), &self.config(), &self.shape(), self.pool)?;
        load(case, &params)?;
        Ok(encoder)
    }
}

fn load(case: &Case, params: &Params) -> Result<()> {
    params.load("weights.safetensors", &case.weights("weights.safetensors")?)?;
    params.freeze();
    Ok(())
}

/// Computes what the case expects.
pub fn check(case: &Case) -> Result<Tensors> {
    let constructor = Constructor::read(case)?;
    let kind = case.dtype();
    let x = case.input("x")?.to_kind(kind).set_requires_grad(true);
    let t = case.input("t")?;
    let op: String = case.param("op")?;
    let (name, out, objective) = match op.as_str() {
        "unet" => {
            let y = constructor.num_classes.map(|_| case.input("y")).transpose()?;
            let out = constructor.unet(case, kind)?.forward(&x, t, y);
            let objective = (&out * case.input("probe")?.to_kind(kind)).sum(None::<Kind>);
            ("out", out, objective)
        }
        "classifier" => {
            let logits = constructor.encoder(case, kind)?.forward(&x, t);
            let index = case.input("y")?.unsqueeze(1);
            let objective = logits.log_softmax(1, None).gather(1, &index, false).sum(None::<Kind>);
            ("logits", logits, objective)
        }
        other => return Err(case.broken(&format!("op '{other}' is unknown"))),
    };
    let grad = Tensor::run_backward(&[objective], &[&x], false, false).remove(0);
    Ok([(name.to_string(), out), ("grad".to_string(), grad)].into())
}
