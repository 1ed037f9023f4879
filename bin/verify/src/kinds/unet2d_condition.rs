//! Kind `unet2d_condition`: the conditional U-Net of latent diffusion, forward and input gradient.

use crate::case::{Case, Tensors};
use equipoise_base::Result;
use equipoise_models::unet2d_condition::UNet2DConditionModel;
use equipoise_pretrained::Component;
use equipoise_nn::runtime;
use tch::{Kind, Tensor};

/// Computes what the case expects.
pub fn check(case: &Case) -> Result<Tensors> {
    let kind = case.dtype();
    let unet = UNet2DConditionModel::open(&Component::open(&case.dir.join("model"))?, kind, runtime::device())?;
    let input = |name: &str| case.input(name).map(|tensor| tensor.to_kind(kind));
    let sample = input("sample")?.set_requires_grad(case.param("grad")?);
    let labels = unet.has_class_embedding().then(|| input("class_labels")).transpose()?;
    let t = case.input("timestep")?;
    let out = unet.forward(&sample, t, &input("encoder_hidden_states")?, labels.as_ref());
    let mut got = Tensors::from([("out".to_string(), out.detach())]);
    if case.param("grad")? {
        let objective = (out * input("probe")?).sum(None::<Kind>);
        let grad = Tensor::run_backward(&[objective], &[&sample], false, false).remove(0);
        got.insert("grad".into(), grad);
    }
    Ok(got)
}
