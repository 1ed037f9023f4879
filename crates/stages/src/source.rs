//! Where images of a set come from: a generator, as sampling sees it. Pixel networks are here, latent ones in
//! [`crate::latent`].

use crate::nets::Generator;
use equipoise_base::rng::Key;
use equipoise_base::{ClassId, Identity, Result, bail};
use equipoise_config::method;
use equipoise_diffusion::decoder::Decoder;
use equipoise_diffusion::guidance::{ClassConditional, Denoiser};
use equipoise_diffusion::sampler::{Sampler, SamplerConfig};
use equipoise_nn::runtime;
use tch::{Kind, Tensor};

/// The images of one batch, all of one class, by identity.
#[derive(Clone, Copy, Debug)]
pub struct BatchId<'a> {
    /// Keys all random numbers of the set.
    pub seed: u64,
    /// Class.
    pub class: ClassId,
    /// Index of each image within the class.
    pub indices: &'a [u64],
    /// Which attempt at a bad image this is; 0 is the first.
    pub sub_seed: u32,
}

impl BatchId<'_> {
    /// Key of an image's random numbers for `purpose`.
    pub fn key<'k>(&self, purpose: &'k str, index: u64) -> Key<'k> {
        Key::new(self.seed, purpose)
            .class(u64::from(self.class.0))
            .index(index)
            .step(u64::from(self.sub_seed))
    }

    /// Key of an image's random numbers in a step of sampling.
    pub fn step_key<'k>(&self, purpose: &'k str, index: u64, step: usize) -> Key<'k> {
        // The sub-seed shares the step's 64 bits: steps are far fewer than 2^32.
        self.key(purpose, index).step(step as u64 | u64::from(self.sub_seed) << 32)
    }

    /// Standard normals [N, ..shape], each image's from its own `key`.
    pub fn normals<'k>(&self, shape: &[i64], key: impl Fn(u64) -> Key<'k>) -> Tensor {
        self.rows(shape, |index, row| key(index).stream().fill_normal(row))
    }

    /// Values [N, ..shape] float32 on the device, a row filled for each image.
    pub fn rows(&self, shape: &[i64], fill: impl Fn(u64, &mut [f32])) -> Tensor {
        let each = shape.iter().product::<i64>() as usize;
        let mut values = vec![0f32; each * self.indices.len()];
        for (row, &index) in values.chunks_mut(each).zip(self.indices) {
            fill(index, row);
        }
        let size: Vec<i64> =
            std::iter::once(self.indices.len() as i64).chain(shape.iter().copied()).collect();
        runtime::upload(&Tensor::from_slice(&values).view(size.as_slice()))
    }
}

/// A generator, loaded.
pub trait Source {
    /// Hash of everything of it that decides bits.
    fn hash(&self) -> &Identity;
    /// Channels, height and width of what is diffused.
    fn shape(&self) -> [i64; 3];
    /// Number of time steps it was trained with.
    fn train_steps(&self) -> i64;
    /// The sampler of a recipe, over the noise that it was trained with.
    ///
    /// # Errors
    /// 78 if they do not fit.
    fn sampler(&self, config: &SamplerConfig) -> Result<Sampler>;
    /// The network with the conditions of a batch, under classifier-free guidance of `scale`.
    ///
    /// # Errors
    /// 65 if there is nothing to condition on.
    fn bind<'s>(&'s self, batch: &BatchId, scale: f64) -> Result<Box<dyn Denoiser + 's>>;
    /// What stands between what is diffused and the image that a guide sees.
    fn decoder(&self) -> Option<&dyn Decoder> {
        None
    }
    /// What was diffused to images [N, C, H, W] as they are stored, nominally in [-1, 1].
    fn images(&self, diffused: Tensor) -> Tensor {
        diffused
    }
    /// Row of the real image in its split that an image is conditioned on.
    fn condition(&self, _batch: &BatchId, _index: u64) -> Option<u64> {
        None
    }
    /// Tells it something else about each image from now on.
    ///
    /// # Errors
    /// 78 if it cannot be told anything, or not this.
    fn recondition(&mut self, _condition: &method::Condition) -> Result<()> {
        bail!(Config, "only a generator of diffusion.folder takes a condition")
    }
    /// Text that the image with this index in its class is conditioned on; empty if none. Images of one batch share it.
    fn prompt(&self, _class: ClassId, _index: u64) -> String {
        String::new()
    }
    /// Filter with which images were resized to be stored; empty if none.
    fn resize_filter(&self) -> &str {
        ""
    }
}

/// A class-conditional network over pixels.
pub struct PixelSource {
    /// The network.
    pub generator: Generator,
    /// Channels, height and width of an image.
    pub shape: [i64; 3],
}

impl Source for PixelSource {
    fn hash(&self) -> &Identity {
        &self.generator.hash
    }

    fn shape(&self) -> [i64; 3] {
        self.shape
    }

    fn train_steps(&self) -> i64 {
        self.generator.schedule.num_train_timesteps
    }

    fn sampler(&self, config: &SamplerConfig) -> Result<Sampler> {
        Sampler::new(&self.generator.schedule, self.generator.prediction, config)
    }

    fn bind<'s>(&'s self, batch: &BatchId, scale: f64) -> Result<Box<dyn Denoiser + 's>> {
        let Generator { unet, null_label, .. } = &self.generator;
        let options = (Kind::Int64, runtime::device());
        let labels = Tensor::full([batch.indices.len() as i64], i64::from(batch.class.0), options);
        Ok(Box::new(ClassConditional::guided(unet, labels, *null_label, scale)))
    }
}
