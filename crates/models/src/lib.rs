//! Architectures and weights: ResNets, U-Nets, CLIP, the networks of latent diffusion.

pub mod adm;
pub mod arch;
pub mod autoencoder_kl;
mod blocks2d;
pub mod clip;
pub mod hf_config;
pub mod resnet;
pub mod sinusoid;
pub mod unet2d_condition;

pub use arch::{ArchConfig, Classifier};
