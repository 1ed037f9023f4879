//! One batch of images, whatever rank makes it: noise by identity, sampling, and the Bad-images contract.

use crate::nets::{Frozen, Generator};
use equipoise_base::rng::Key;
use equipoise_base::{ClassId, Result};
use equipoise_diffusion::criterion::{ClassStatistics, Targets, Viewed};
use equipoise_diffusion::feedback::{Feedback, FeedbackConfig};
use equipoise_diffusion::guidance::ClassConditional;
use equipoise_diffusion::sampler::{Sampled, Sampler, SamplerConfig, unobserved};
use equipoise_diffusion::view::View;
use equipoise_nn::{Precision, runtime};
use equipoise_shards::Flags;
use tch::{Device, Kind, Tensor};

/// Times a bad image is made again from another sub-seed.
const SUB_SEEDS: u32 = 4;

/// How images of a set are made.
pub struct Synthesizer<'a> {
    /// The generator.
    pub generator: &'a Generator,
    /// Sampler and steps.
    pub sampler: SamplerConfig,
    /// Scale of classifier-free guidance.
    pub cfg_scale: f64,
    /// Number format of the network.
    pub precision: Precision,
    /// Feedback of a classifier, if any.
    pub feedback: Option<FeedbackOf<'a>>,
    /// Keys all noise of the set.
    pub seed: u64,
    /// Images of a batch: always this many are computed.
    pub batch: u64,
    /// Channels, height, width.
    pub shape: [i64; 3],
}

/// A guide with its criterion.
pub struct FeedbackOf<'a> {
    /// Knobs.
    pub config: FeedbackConfig,
    /// The classifier.
    pub guide: &'a Frozen,
    /// How the classifier looks at generated images.
    pub view: &'a View,
    /// Statistics of every class for hardness: means [K, D], inverse covariance and log determinant.
    pub statistics: Option<Vec<ClassStatistics>>,
}

/// An image as it is stored, or the fact that none could be made.
pub struct Made {
    /// Its index within the class.
    pub index: u64,
    /// Hash of the key of its starting noise.
    pub seed: u64,
    /// Height × width × channels samples; `None` if every attempt was bad.
    pub pixels: Option<Vec<u8>>,
    /// Criterion at each guided step.
    pub criterion: Vec<f32>,
    /// What happened to it.
    pub flags: Flags,
}

impl FeedbackOf<'_> {
    /// Statistics of one class, shared by a whole batch of it.
    pub fn statistics_of(&self, class: u32) -> Option<ClassStatistics> {
        let of_class = &self.statistics.as_ref()?[class as usize];
        Some(ClassStatistics {
            mu: of_class.mu.shallow_clone(),
            cov_inv: of_class.cov_inv.shallow_clone(),
            logdet: of_class.logdet.shallow_clone(),
        })
    }
}

/// What is wrong with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bad {
    NonFinite,
    Black,
    Constant,
}

impl Bad {
    fn flag(self) -> Flags {
        match self {
            Bad::NonFinite => Flags::NON_FINITE,
            Bad::Black => Flags::BLACK,
            Bad::Constant => Flags::CONSTANT,
        }
    }
}

impl Synthesizer<'_> {
    /// Makes the images `first .. first + keep` of a class. Always `batch` images are computed, so that the kernels,
    /// and with them the bits, are the same for the last batch of a class.
    ///
    /// # Errors
    /// 78 if generator, sampler and feedback do not fit together.
    pub fn batch(&self, class: ClassId, first: u64, keep: u64) -> Result<Vec<Made>> {
        let indices: Vec<u64> = (first..first + self.batch).collect();
        let sampled = on_host(self.sample(class, &indices, 0, self.precision)?);
        (0..keep as usize)
            .map(|slot| {
                let index = indices[slot];
                let seed = self.start_key(class, index, 0).hash();
                match judge(&sampled, slot) {
                    Ok(pixels) => {
                        let criterion = criterion_of(&sampled, slot);
                        Ok(Made { index, seed, pixels: Some(pixels), criterion, flags: Flags::NONE })
                    }
                    Err(bad) => self.retry(class, index, bad),
                }
            })
            .collect()
    }

    /// Non-finite: the same seed in fp32. Then, or if black or constant: sub-seeds. Each attempt is a whole batch of
    /// this one image, so that it does not depend on its neighbours.
    fn retry(&self, class: ClassId, index: u64, bad: Bad) -> Result<Made> {
        let mut flags = bad.flag();
        let indices = vec![index; self.batch as usize];
        let mut attempts: Vec<(u32, Precision)> = (1..=SUB_SEEDS).map(|sub| (sub, Precision::Fp32)).collect();
        if bad == Bad::NonFinite {
            attempts.insert(0, (0, Precision::Fp32));
        }
        for (sub_seed, precision) in attempts {
            let sampled = on_host(self.sample(class, &indices, sub_seed, precision)?);
            if let Ok(pixels) = judge(&sampled, 0) {
                flags = flags.with(Flags::RETRIED_FP32).with_sub_seed(sub_seed);
                let seed = self.start_key(class, index, sub_seed).hash();
                return Ok(Made {
                    index,
                    seed,
                    pixels: Some(pixels),
                    criterion: criterion_of(&sampled, 0),
                    flags,
                });
            }
        }
        let seed = self.start_key(class, index, 0).hash();
        Ok(Made { index, seed, pixels: None, criterion: Vec::new(), flags })
    }

    /// Final images [N, C, H, W] in [-1, 1] with the criterion trace, for `indices` of a class.
    ///
    /// # Errors
    /// As [`Synthesizer::batch`].
    pub fn sample(
        &self,
        class: ClassId,
        indices: &[u64],
        sub_seed: u32,
        precision: Precision,
    ) -> Result<Sampled> {
        let device = runtime::device();
        let start = self.noise(indices, |index| self.start_key(class, index, sub_seed));
        let labels = Tensor::full([indices.len() as i64], i64::from(class.0), (Kind::Int64, device));
        let Self { generator, cfg_scale, .. } = self;
        let denoiser = ClassConditional::guided(
            &generator.unet,
            labels.shallow_clone(),
            generator.null_label,
            *cfg_scale,
        );
        let sampler = Sampler::new(&generator.schedule, generator.prediction, &self.sampler)?;
        let viewed = self.feedback.as_ref().map(|feedback| Viewed::new(feedback.guide, feedback.view));
        let feedback = match (&self.feedback, &viewed) {
            (Some(of), Some(viewed)) => {
                let targets = Targets { labels, statistics: of.statistics_of(class.0) };
                Some(Feedback::new(&of.config, viewed, targets, generator.schedule.num_train_timesteps)?)
            }
            _ => None,
        };
        let mut step_noise = |step: usize| {
            let key = |index| Key::new(self.seed, "noise/step").class(u64::from(class.0)).index(index);
            // The sub-seed shares the step's 64 bits: steps are far fewer than 2^32.
            let step = step as u64 | u64::from(sub_seed) << 32;
            Ok(self.noise(indices, |index| key(index).step(step)))
        };
        let sampled = precision.scope(device, || {
            sampler.sample(&denoiser, &start, feedback.as_ref(), &mut step_noise, &mut unobserved)
        })??;
        // `unobserved` never breaks off, so there is a result.
        sampled.ok_or_else(|| equipoise_base::Error::new(equipoise_base::ExitCode::Bug, "sampling broke off"))
    }

    /// Number of steps at which the criterion is recorded.
    ///
    /// # Errors
    /// 78 if the sampler does not fit the generator.
    pub fn guided_steps(&self) -> Result<usize> {
        let Some(feedback) = &self.feedback else { return Ok(0) };
        let sampler = Sampler::new(&self.generator.schedule, self.generator.prediction, &self.sampler)?;
        let below = feedback.config.max_t * self.generator.schedule.num_train_timesteps as f64;
        let FeedbackConfig { every, offset, .. } = feedback.config;
        let applies = |(index, &t): (usize, &i64)| index % every == offset && (t as f64) < below;
        Ok(sampler.timesteps().iter().enumerate().filter(|&at| applies(at)).count())
    }

    /// The key of an image's starting noise. The set's name is not in it: sets of one seed are pairs.
    fn start_key(&self, class: ClassId, index: u64, sub_seed: u32) -> Key<'static> {
        Key::new(self.seed, "noise/start").class(u64::from(class.0)).index(index).step(u64::from(sub_seed))
    }

    fn noise<'k>(&self, indices: &[u64], key: impl Fn(u64) -> Key<'k>) -> Tensor {
        let [channels, height, width] = self.shape;
        let each = (channels * height * width) as usize;
        let mut values = vec![0f32; each * indices.len()];
        for (chunk, &index) in values.chunks_mut(each).zip(indices) {
            key(index).stream().fill_normal(chunk);
        }
        let shape = [indices.len() as i64, channels, height, width];
        runtime::upload(&Tensor::from_slice(&values).view(shape))
    }
}

/// A finished batch in host memory: one wait for the device, however many questions follow.
fn on_host(sampled: Sampled) -> Sampled {
    let Sampled { images, criterion } = sampled;
    Sampled { images: images.to_device(Device::Cpu), criterion: criterion.to_device(Device::Cpu) }
}

/// The stored form of an image, or what is wrong with it.
fn judge(sampled: &Sampled, slot: usize) -> std::result::Result<Vec<u8>, Bad> {
    let image = sampled.images.get(slot as i64).to_kind(Kind::Float);
    if image.isfinite().all().int64_value(&[]) == 0 {
        return Err(Bad::NonFinite);
    }
    let pixels = to_pixels(&image);
    match (pixels.iter().min(), pixels.iter().max()) {
        (Some(0), Some(0)) => Err(Bad::Black),
        (low, high) if low == high => Err(Bad::Constant),
        _ => Ok(pixels),
    }
}

/// [C, H, W] in [-1, 1] to height × width × channels bytes.
pub fn to_pixels(image: &Tensor) -> Vec<u8> {
    let bytes = ((image / 2. + 0.5).clamp(0., 1.) * 255.).round().to_kind(Kind::Uint8);
    equipoise_nn::weights::raw_bytes(&bytes.permute([1, 2, 0]))
}

fn criterion_of(sampled: &Sampled, slot: usize) -> Vec<f32> {
    let trace = sampled.criterion.to_kind(Kind::Float);
    (0..trace.size()[0]).map(|step| trace.double_value(&[step, slot as i64]) as f32).collect()
}
