//! One batch of images, whatever rank makes it: noise by identity, sampling, and the Bad-images contract.

use crate::nets::Frozen;
use crate::source::{BatchId, Source};
use crate::statistics::ClassTable;
use equipoise_base::{ClassId, Result};
use equipoise_diffusion::criterion::{ClassStatistics, Targets, Viewed};
use equipoise_diffusion::feedback::{Feedback, FeedbackConfig};
use equipoise_diffusion::sampler::{Sampled, SamplerConfig, unobserved};
use equipoise_diffusion::view::View;
use equipoise_nn::{Precision, runtime};
use equipoise_shards::Flags;
use tch::{Device, Kind, Tensor};

/// Last sub-seed that generation makes a bad image from.
pub const SUB_SEEDS: u32 = 4;
/// Last sub-seed that the completion of a set tries. The first that gives a usable image is stored, so the image stays a
/// function of its identity, however often a set is completed.
pub const MORE_SUB_SEEDS: u32 = 64;

/// Purpose of an image's starting noise. The set's name is not in its key: sets of one seed are pairs.
const START: &str = "noise/start";

/// How images of a set are made.
pub struct Synthesizer<'a> {
    /// The generator.
    pub source: &'a dyn Source,
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
}

/// A guide with its criterion.
pub struct FeedbackOf<'a> {
    /// Knobs.
    pub config: FeedbackConfig,
    /// The classifier.
    pub guide: &'a Frozen,
    /// How the classifier looks at generated images.
    pub view: &'a View,
    /// Distribution of every class, for hardness.
    pub statistics: Option<&'a ClassTable>,
}

/// An image as it is stored, or the fact that none could be made.
pub struct Made {
    /// Its index within the class.
    pub index: u64,
    /// Hash of the key of its starting noise.
    pub seed: u64,
    /// Height × width × channels samples; `None` if every attempt was bad.
    pub pixels: Option<Vec<u8>>,
    /// Row of the real image in its split that it was conditioned on.
    pub condition: Option<u64>,
    /// Criterion at each guided step.
    pub criterion: Vec<f32>,
    /// What happened to it.
    pub flags: Flags,
}

impl FeedbackOf<'_> {
    /// Statistics of one class, shared by a whole batch of it.
    pub fn statistics_of(&self, class: u32) -> Option<ClassStatistics> {
        self.statistics.map(|table| table.of_class(class))
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
    /// and with them the bits, are the same for the last batch of a class. Bad ones are tried up to sub-seed `last`.
    ///
    /// # Errors
    /// 78 if generator, sampler and feedback do not fit together.
    pub fn batch(&self, class: ClassId, first: u64, keep: u64, last: u32) -> Result<Vec<Made>> {
        let indices: Vec<u64> = (first..first + self.batch).collect();
        let sampled = on_host(self.sample(class, &indices, 0, self.precision)?);
        (0..keep as usize)
            .map(|slot| match judge(&sampled, slot) {
                Ok(pixels) => {
                    let made = self.identified(class, indices[slot], 0);
                    Ok(Made { pixels: Some(pixels), criterion: criterion_of(&sampled, slot), ..made })
                }
                Err(bad) => self.retry(class, indices[slot], bad, last),
            })
            .collect()
    }

    /// An image of which nothing is known yet but who it is.
    fn identified(&self, class: ClassId, index: u64, sub_seed: u32) -> Made {
        let batch = BatchId { seed: self.seed, class, indices: &[index], sub_seed };
        Made {
            index,
            seed: batch.key(START, index).hash(),
            pixels: None,
            condition: self.source.condition(&batch, index),
            criterion: Vec::new(),
            flags: Flags::NONE,
        }
    }

    /// Non-finite: the same seed in fp32. Then, or if black or constant: sub-seeds. Each attempt is a whole batch of
    /// this one image, so that it does not depend on its neighbours. Nothing is tried if `last` is 0.
    fn retry(&self, class: ClassId, index: u64, bad: Bad, last: u32) -> Result<Made> {
        let mut flags = bad.flag();
        let indices = vec![index; self.batch as usize];
        let mut attempts: Vec<(u32, Precision)> = (1..=last).map(|sub| (sub, Precision::Fp32)).collect();
        if bad == Bad::NonFinite && last > 0 {
            attempts.insert(0, (0, Precision::Fp32));
        }
        for (sub_seed, precision) in attempts {
            let sampled = on_host(self.sample(class, &indices, sub_seed, precision)?);
            if let Ok(pixels) = judge(&sampled, 0) {
                flags = flags.with(Flags::RETRIED_FP32).with_sub_seed(sub_seed);
                let made = self.identified(class, index, sub_seed);
                return Ok(Made {
                    pixels: Some(pixels),
                    criterion: criterion_of(&sampled, 0),
                    flags,
                    ..made
                });
            }
        }
        Ok(Made { flags, ..self.identified(class, index, 0) })
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
        let (source, device) = (self.source, runtime::device());
        let batch = BatchId { seed: self.seed, class, indices, sub_seed };
        let start = batch.normals(&source.shape(), |index| batch.key(START, index));
        let sampler = source.sampler(&self.sampler)?;
        let viewed = self.feedback.as_ref().map(|feedback| Viewed::new(feedback.guide, feedback.view));
        let feedback = match (&self.feedback, &viewed) {
            (Some(of), Some(viewed)) => {
                let labels = Tensor::full([indices.len() as i64], i64::from(class.0), (Kind::Int64, device));
                let targets = Targets { labels, statistics: of.statistics_of(class.0) };
                let feedback = Feedback::new(&of.config, viewed, targets, source.train_steps())?;
                Some(match source.decoder() {
                    Some(decoder) => feedback.through(decoder),
                    None => feedback,
                })
            }
            _ => None,
        };
        let mut step_noise = |step: usize| {
            Ok(batch.normals(&source.shape(), |index| batch.step_key("noise/step", index, step)))
        };
        let sampled = precision.scope(device, || -> Result<Option<Sampled>> {
            let denoiser = source.bind(&batch, self.cfg_scale)?;
            let sampled =
                sampler.sample(&*denoiser, &start, feedback.as_ref(), &mut step_noise, &mut unobserved)?;
            let images = |sampled: Sampled| Sampled { images: source.images(sampled.images), ..sampled };
            Ok(sampled.map(images))
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
        let sampler = self.source.sampler(&self.sampler)?;
        let below = feedback.config.max_t * self.source.train_steps() as f64;
        let FeedbackConfig { every, offset, .. } = feedback.config;
        let applies = |(index, &t): (usize, &i64)| index % every == offset && (t as f64) < below;
        Ok(sampler.timesteps().iter().enumerate().filter(|&at| applies(at)).count())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nets::{DataShape, Generator, GeneratorConfig};
    use crate::source::PixelSource;
    use equipoise_config::{method, recipe};
    use equipoise_nn::Params;
    use serde_json::json;

    /// Makes 2 x 2 images in one step: the sign of the noise above a threshold that six in ten images fail with every
    /// pixel, which makes them black.
    fn mostly_black() -> Generator {
        let model = json!({
            "model_channels": 32, "channel_mult": [1.0], "num_res_blocks": 1, "attention_resolutions": [],
            "num_heads": 1, "num_head_channels": -1, "num_heads_upsample": -1, "use_scale_shift_norm": true,
            "resblock_updown": false, "conv_resample": true, "use_new_attention_order": false, "patch": 1,
            "learn_sigma": false
        });
        let schedule = json!({
            "num_train_timesteps": 1000, "beta_schedule": "cosine", "beta_start": 1e-4, "beta_end": 0.02,
            "rescale_betas_zero_snr": false
        });
        let config = GeneratorConfig {
            weights: None,
            folder: None,
            model: method::DiffusionModel(model),
            schedule: method::NoiseSchedule(schedule),
            prediction: recipe::Prediction::Epsilon,
        };
        let shape = DataShape { size: [2, 2], channels: 1, classes: 2 };
        let params = Params::new(0, Kind::Float, Device::Cpu);
        let generator = Generator::new(&config, params, &shape).unwrap();
        // The output convolution starts at 0, so its bias alone is the noise estimate.
        let (_, bias) =
            generator.params.trainable().into_iter().find(|(name, _)| name == "out.2.bias").unwrap();
        let _ = tch::no_grad(|| bias.shallow_clone().fill_(1.2));
        generator
    }

    #[test]
    fn completion_goes_on_where_generation_gave_up() {
        let source = PixelSource { generator: mostly_black(), shape: [1, 2, 2] };
        let sampler = json!({
            "kind": "ddim", "steps": 1, "eta": 0.0, "timestep_spacing": "trailing", "steps_offset": 0,
            "set_alpha_to_one": true, "clip_sample": true, "clip_sample_range": 1.0
        });
        let synthesizer = Synthesizer {
            source: &source,
            sampler: serde_json::from_value(sampler).unwrap(),
            cfg_scale: 1.,
            precision: Precision::Fp32,
            feedback: None,
            seed: 3,
            batch: 40,
        };
        let made = |last| synthesizer.batch(ClassId(1), 0, 40, last).unwrap();
        let (first, completed) = (made(SUB_SEEDS), made(MORE_SUB_SEEDS));
        let failed = first.iter().filter(|image| image.pixels.is_none()).count();
        assert!((1..20).contains(&failed), "{failed} of 40 failed");
        for (before, after) in first.iter().zip(&completed) {
            assert!(after.pixels.is_some(), "{}", after.index);
            match before.pixels {
                Some(_) => assert_eq!((&before.pixels, before.flags), (&after.pixels, after.flags)),
                None => assert!(after.flags.sub_seed() > SUB_SEEDS && after.flags.has(Flags::BLACK)),
            }
        }
    }
}
