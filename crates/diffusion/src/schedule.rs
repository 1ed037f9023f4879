//! Noise schedules: how much of the image is left at each of T time steps.
//!
//! Notation of DDIM: abar_t is the cumulative product of alpha = 1 - beta, so x_t = sqrt(abar_t) x_0 +
//! sqrt(1 - abar_t) noise.

use equipoise_base::{Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// Shape of the betas over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Betas evenly spaced (Ho et al. 2020).
    Linear,
    /// Square roots of the betas evenly spaced (latent diffusion, Stable Diffusion).
    ScaledLinear,
    /// abar = cos^2, betas at most 0.999 (Nichol and Dhariwal 2021); `squaredcos_cap_v2` in diffusers.
    #[serde(alias = "squaredcos_cap_v2")]
    Cosine,
}

/// The forward process a generator is trained with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiffusionScheduleConfig {
    /// Number of time steps T.
    pub num_train_timesteps: i64,
    /// Shape of the betas.
    pub beta_schedule: BetaSchedule,
    /// First beta; the cosine schedule has none.
    pub beta_start: f64,
    /// Last beta; the cosine schedule has none.
    pub beta_end: f64,
    /// Whether abar is rescaled to end at exactly 0 (Lin et al. 2023); needs a v or sample prediction.
    pub rescale_betas_zero_snr: bool,
}

/// Betas and their cumulative products, index = time step.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// beta_t.
    pub betas: Vec<f64>,
    /// abar_t.
    pub alphas_cumprod: Vec<f64>,
}

impl Schedule {
    /// Computed in float64, as guided-diffusion does.
    ///
    /// # Errors
    /// 78 if the configuration is no schedule.
    pub fn double(config: &DiffusionScheduleConfig) -> Result<Self> {
        Self::compute(config, Kind::Double)
    }

    /// Computed in float32, as diffusers does: models trained with its schedulers are sampled with the same values.
    ///
    /// # Errors
    /// 78 if the configuration is no schedule.
    pub fn single(config: &DiffusionScheduleConfig) -> Result<Self> {
        Self::compute(config, Kind::Float)
    }

    /// From given betas, in float64.
    ///
    /// # Errors
    /// 78 unless every beta is in (0, 1].
    pub fn from_betas(betas: Vec<f64>) -> Result<Self> {
        ensure!(!betas.is_empty(), Config, "a noise schedule without time steps");
        let bad = betas.iter().position(|beta| !(*beta > 0. && *beta <= 1.));
        ensure!(
            bad.is_none(),
            Config,
            "the noise schedule's beta {} is not in (0, 1]",
            bad.unwrap_or_default()
        );
        let alphas_cumprod = betas
            .iter()
            .scan(1., |product, beta| {
                *product *= 1. - beta;
                Some(*product)
            })
            .collect();
        Ok(Self { betas, alphas_cumprod })
    }

    /// From cumulative products, such as those a saved scheduler holds.
    pub fn from_alphas_cumprod(alphas_cumprod: Vec<f64>) -> Self {
        let previous = std::iter::once(1.).chain(alphas_cumprod.iter().copied());
        let betas = alphas_cumprod.iter().zip(previous).map(|(now, before)| 1. - now / before).collect();
        Self { betas, alphas_cumprod }
    }

    /// Number of time steps.
    pub fn len(&self) -> usize {
        self.betas.len()
    }

    /// Whether there is no time step.
    pub fn is_empty(&self) -> bool {
        self.betas.is_empty()
    }

    fn compute(config: &DiffusionScheduleConfig, kind: Kind) -> Result<Self> {
        let DiffusionScheduleConfig { num_train_timesteps: steps, beta_start, beta_end, .. } = *config;
        ensure!(steps >= 1, Config, "num_train_timesteps = {steps}: at least 1");
        let cosine = config.beta_schedule == BetaSchedule::Cosine;
        ensure!(
            cosine || (beta_start > 0. && beta_start <= beta_end && beta_end < 1.),
            Config,
            "beta_start = {beta_start} and beta_end = {beta_end}: want 0 < beta_start <= beta_end < 1"
        );
        let options = (kind, Device::Cpu);
        let betas = match config.beta_schedule {
            BetaSchedule::Linear => Tensor::linspace(beta_start, beta_end, steps, options),
            BetaSchedule::ScaledLinear => {
                Tensor::linspace(beta_start.sqrt(), beta_end.sqrt(), steps, options).square()
            }
            BetaSchedule::Cosine => Tensor::from_slice(&cosine_betas(steps)).to_kind(kind),
        };
        let betas = if config.rescale_betas_zero_snr { zero_terminal_snr(&betas) } else { betas };
        let alphas: Tensor = 1. - &betas;
        let alphas_cumprod = alphas.cumprod(0, None::<Kind>);
        Ok(Self { betas: values(&betas), alphas_cumprod: values(&alphas_cumprod) })
    }
}

fn cosine_betas(steps: i64) -> Vec<f64> {
    let alpha_bar = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
    let at = |i: i64| alpha_bar(i as f64 / steps as f64);
    (0..steps).map(|i| (1. - at(i + 1) / at(i)).min(0.999)).collect()
}

/// Shifts and scales sqrt(abar) so that the first value stays and the last becomes 0.
fn zero_terminal_snr(betas: &Tensor) -> Tensor {
    let alphas: Tensor = 1. - betas;
    let root = alphas.cumprod(0, None::<Kind>).sqrt();
    let (first, last) = (root.get(0), root.get(-1));
    let root = (root - &last) * (&first / (&first - &last));
    let alpha_bar = root.square();
    let steps = alpha_bar.size()[0];
    let alphas = alpha_bar.narrow(0, 1, steps - 1) / alpha_bar.narrow(0, 0, steps - 1);
    1. - Tensor::cat(&[alpha_bar.narrow(0, 0, 1), alphas], 0)
}

/// A 1-D tensor's values.
fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_kind(Kind::Double).iter::<f64>().map(Iterator::collect).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(beta_schedule: BetaSchedule) -> DiffusionScheduleConfig {
        DiffusionScheduleConfig {
            num_train_timesteps: 1000,
            beta_schedule,
            beta_start: 1e-4,
            beta_end: 0.02,
            rescale_betas_zero_snr: false,
        }
    }

    #[test]
    fn linear_betas_are_evenly_spaced() {
        let schedule = Schedule::double(&config(BetaSchedule::Linear)).unwrap();
        for (i, beta) in schedule.betas.iter().enumerate() {
            assert!((beta - (1e-4 + i as f64 * (0.02 - 1e-4) / 999.)).abs() < 1e-15, "beta {i} is {beta}");
        }
        let product: f64 = schedule.betas.iter().map(|beta| 1. - beta).product();
        assert!((product - schedule.alphas_cumprod[999]).abs() < 1e-15);
    }

    #[test]
    fn scaled_linear_roots_are_evenly_spaced() {
        let schedule = Schedule::double(&config(BetaSchedule::ScaledLinear)).unwrap();
        let (low, high) = (1e-4f64.sqrt(), 0.02f64.sqrt());
        assert!((schedule.betas[500].sqrt() - (low + 500. * (high - low) / 999.)).abs() < 1e-14);
    }

    #[test]
    fn cosine_follows_the_squared_cosine_until_the_cap() {
        let schedule = Schedule::double(&config(BetaSchedule::Cosine)).unwrap();
        let f = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
        for t in [0usize, 10, 500, 900] {
            let want = f((t + 1) as f64 / 1000.) / f(0.);
            assert!((schedule.alphas_cumprod[t] - want).abs() < 1e-12, "abar {t}");
        }
        assert_eq!(schedule.betas[999], 0.999);
    }

    #[test]
    fn single_precision_is_single() {
        let single = Schedule::single(&config(BetaSchedule::Linear)).unwrap();
        let double = Schedule::double(&config(BetaSchedule::Linear)).unwrap();
        for (one, two) in single.alphas_cumprod.iter().zip(&double.alphas_cumprod) {
            assert_eq!(*one, *one as f32 as f64);
            assert!((one - two).abs() < 1e-6);
        }
    }

    #[test]
    fn zero_terminal_snr_ends_at_zero_and_keeps_the_start() {
        let plain = Schedule::double(&config(BetaSchedule::ScaledLinear)).unwrap();
        let rescaled =
            DiffusionScheduleConfig { rescale_betas_zero_snr: true, ..config(BetaSchedule::ScaledLinear) };
        let rescaled = Schedule::double(&rescaled).unwrap();
        assert_eq!(rescaled.alphas_cumprod[999], 0.);
        assert!((rescaled.alphas_cumprod[0] - plain.alphas_cumprod[0]).abs() < 1e-12);
    }

    #[test]
    fn cumulative_products_give_the_betas_back() {
        let schedule = Schedule::double(&config(BetaSchedule::Cosine)).unwrap();
        let again = Schedule::from_alphas_cumprod(schedule.alphas_cumprod.clone());
        assert!(schedule.betas.iter().zip(&again.betas).all(|(a, b)| (a - b).abs() < 1e-12));
    }

    #[test]
    fn nonsense_is_a_configuration_error() {
        let nonsense = [
            DiffusionScheduleConfig { num_train_timesteps: 0, ..config(BetaSchedule::Cosine) },
            DiffusionScheduleConfig { beta_start: 0., ..config(BetaSchedule::Linear) },
            DiffusionScheduleConfig { beta_end: 1., ..config(BetaSchedule::Linear) },
        ];
        for config in nonsense {
            assert_eq!(Schedule::single(&config).unwrap_err().code(), equipoise_base::ExitCode::Config);
        }
    }
}
