//! Kind `autoencoder_kl`: encoding, decoding and the gradient of decoding.

use crate::case::{Case, Tensors};
use equipoise_base::Result;
use equipoise_models::autoencoder_kl::AutoencoderKL;
use equipoise_pretrained::Component;
use equipoise_nn::runtime;
use tch::{Kind, Tensor};

/// Computes what the case expects.
pub fn check(case: &Case) -> Result<Tensors> {
    let kind = case.dtype();
    let vae = AutoencoderKL::open(&Component::open(&case.dir.join("model"))?, kind, runtime::device())?;
    let input = |name: &str| case.input(name).map(|tensor| tensor.to_kind(kind));
    let posterior = vae.encode(&input("image")?);
    let latent = input("latent")?.set_requires_grad(true);
    let decoded = vae.decode(&latent);
    let objective = (&decoded * input("probe")?).sum(None::<Kind>);
    let grad = Tensor::run_backward(&[objective], &[&latent], false, false).remove(0);
    let sample = posterior.sample(&input("noise")?);
    let named = [
        ("mean", posterior.mean),
        ("logvar", posterior.logvar),
        ("sample", sample),
        ("decoded", decoded.detach()),
        ("decode_grad", grad),
    ];
    Ok(named.map(|(name, tensor)| (name.to_string(), tensor)).into())
}
