//! ADM: the U-Net and the noisy-image classifier of Dhariwal and Nichol, "Diffusion models beat GANs on image
//! synthesis" (2021), with the names of `openai/guided-diffusion`'s state dicts.
//!
//! [`AdmUNet`] is the generator, [`AdmEncoder`] its downward half with a pooling head. Beyond the reference,
//! [`AdmConfig::patch`] folds p x p pixels into channels first, so that a small generator is fast.

mod attention;
mod blocks;
mod config;
mod encoder;
mod trunk;
mod unet;

pub use config::{AdmConfig, AdmPool, AdmShape};
pub use encoder::AdmEncoder;
pub use unet::AdmUNet;

#[cfg(test)]
mod tests {
    use super::*;
    use equipoise_base::ExitCode;
    use equipoise_nn::Params;
    use tch::{Device, Kind, Tensor};

    /// The quickstart's generator.
    fn small() -> AdmConfig {
        AdmConfig {
            model_channels: 64,
            channel_mult: vec![1., 2.],
            num_res_blocks: 1,
            attention_resolutions: vec![2],
            num_heads: 4,
            num_head_channels: -1,
            num_heads_upsample: -1,
            use_scale_shift_norm: true,
            resblock_updown: false,
            conv_resample: false,
            use_new_attention_order: true,
            patch: 2,
            learn_sigma: false,
        }
    }

    fn shape() -> AdmShape {
        AdmShape { image_size: 28, in_channels: 1, out_channels: 1, labels: Some(11) }
    }

    #[test]
    fn patches_keep_the_image_and_the_output_starts_at_zero() {
        let params = Params::new(0, Kind::Float, Device::Cpu);
        let unet = AdmUNet::new(&params.root(), &small(), &shape()).unwrap();
        assert!((2_800_000..2_900_000).contains(&params.count()), "{} parameters", params.count());
        let x = Tensor::ones([2, 1, 28, 28], (Kind::Float, Device::Cpu));
        let (t, y) = (Tensor::from_slice(&[0f32, 999.]), Tensor::from_slice(&[3i64, 10]));
        let out = tch::no_grad(|| unet.forward(&x, &t, Some(&y)));
        assert_eq!((out.size(), out.abs().max().double_value(&[])), (vec![2, 1, 28, 28], 0.));
    }

    #[test]
    fn every_pool_gives_logits() {
        for pool in [AdmPool::Adaptive, AdmPool::Attention, AdmPool::Spatial, AdmPool::SpatialV2] {
            let params = Params::for_loading(Kind::Float, Device::Cpu);
            let config = AdmConfig { num_head_channels: 32, patch: 1, ..small() };
            let shape = AdmShape { out_channels: 7, labels: None, ..shape() };
            let encoder = AdmEncoder::new(&params.root(), &config, &shape, pool).unwrap();
            let x = Tensor::ones([2, 1, 28, 28], (Kind::Float, Device::Cpu));
            let logits = tch::no_grad(|| encoder.forward(&x, &Tensor::from_slice(&[0f32, 5.])));
            assert_eq!(logits.size(), [2, 7], "{pool:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_a_configuration_error_that_names_the_key() {
        let three = AdmConfig { channel_mult: vec![1., 2., 2.], ..small() };
        let with = |change: fn(&mut AdmConfig)| {
            let mut config = small();
            change(&mut config);
            config
        };
        for (config, words) in [
            (three, "28 is not a multiple of 8"),
            (with(|c| c.patch = 3), "28 is not a multiple of 6"),
            (with(|c| c.patch = 0), "patch = 0"),
            (with(|c| c.channel_mult.clear()), "channel_mult"),
            (with(|c| c.model_channels = 40), "40 channels"),
            (with(|c| c.model_channels = 0), "model_channels = 0"),
            (with(|c| c.num_heads = 5), "num_heads = 5"),
            (with(|c| c.num_heads_upsample = 0), "num_heads_upsample = 0"),
            (with(|c| c.num_head_channels = 48), "num_head_channels = 48"),
            (with(|c| c.num_res_blocks = 0), "num_res_blocks"),
        ] {
            let params = Params::for_loading(Kind::Float, Device::Cpu);
            let error = AdmUNet::new(&params.root(), &config, &shape()).unwrap_err();
            assert_eq!(error.code(), ExitCode::Config);
            assert!(error.message().contains(words), "{} / {words}", error.message());
        }
    }
}
