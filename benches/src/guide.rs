//! The classifier that gives feedback in the sampling benchmarks.

use equipoise_base::Result;
use equipoise_diffusion::criterion::Guide;
use equipoise_models::resnet::cifar::CifarResNetConfig;
use equipoise_models::{ArchConfig, Classifier};
use equipoise_nn::layers::Mode;
use equipoise_nn::{Params, runtime, weights};
use std::path::Path;
use tch::{Kind, Tensor};

/// Classes that it tells apart.
pub const CLASSES: i64 = 10;

/// A frozen classifier in evaluation mode.
#[derive(Debug)]
pub struct Judge(Classifier);

impl Judge {
    /// The committed judge of the quickstart, for grey images; its architecture is in `benches/gpu/generate.toml`.
    ///
    /// # Errors
    /// 65 if the weights are not of this network.
    pub fn committed(file: &Path) -> Result<Self> {
        let judge = Self::of(Params::for_loading(Kind::Float, runtime::device()), (32, 2), 1)?;
        judge.0.load(&file.display().to_string(), &weights::read(file)?)?;
        Ok(judge.frozen())
    }

    /// One that nobody has trained, for colour images: as much work as any other of its shape.
    ///
    /// # Errors
    /// 78 if the shape is no network.
    pub fn untrained(width: i64) -> Result<Self> {
        Ok(Self::of(Params::new(0, Kind::Float, runtime::device()), (width, 1), 3)?.frozen())
    }

    fn of(params: Params, (width, stem_stride): (i64, i64), channels: i64) -> Result<Self> {
        let config = CifarResNetConfig { depth: 8, width, stem_stride, normalized_head: false };
        Ok(Self(Classifier::new(&ArchConfig::CifarResnet(config), params, channels, CLASSES)?))
    }

    fn frozen(self) -> Self {
        self.0.params().freeze();
        self
    }

    /// Its parameters and buffers by name.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        self.0.params().all()
    }
}

impl Guide for Judge {
    fn logits(&self, x: &Tensor) -> Tensor {
        self.0.forward(x, Mode::Eval)
    }

    fn features(&self, x: &Tensor) -> Tensor {
        self.0.features(x, Mode::Eval)
    }
}
