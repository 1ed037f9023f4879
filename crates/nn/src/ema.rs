//! Exponential moving average of flat parameters, for sampling from diffusion models.

use crate::FlatParams;
use equipoise_base::{Error, Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Parameters of [`Ema`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EmaConfig {
    /// Weight of the average in each update.
    pub decay: f64,
    /// Start with min(decay, (1 + n) / (10 + n)) after n updates, so that short trainings average too.
    pub warmup: bool,
}

impl Default for EmaConfig {
    fn default() -> Self {
        Self { decay: 0.9999, warmup: false }
    }
}

/// The average: a <- decay a + (1 - decay) p after each step (guided-diffusion `update_ema`).
///
/// It covers trainable parameters; buffers such as running statistics stay the model's own.
#[derive(Debug)]
pub struct Ema {
    config: EmaConfig,
    values: Tensor,
    updates: u64,
}

impl Ema {
    /// An average that starts at the parameters.
    ///
    /// # Errors
    /// 78 if the decay is not in [0, 1).
    pub fn new(config: EmaConfig, parameters: &FlatParams) -> Result<Self> {
        ensure!((0. ..1.).contains(&config.decay), Config, "ema.decay: {} is not in [0, 1)", config.decay);
        Ok(Self { config, values: parameters.values().copy(), updates: 0 })
    }

    /// Takes in the parameters after a step.
    pub fn update(&mut self, parameters: &FlatParams) {
        let n = self.updates as f64;
        let EmaConfig { decay, warmup } = self.config;
        let decay = if warmup { decay.min((1. + n) / (10. + n)) } else { decay };
        tch::no_grad(|| {
            let _ = self.values.g_mul_scalar_(decay).g_add_(&(parameters.values() * (1. - decay)));
        });
        self.updates += 1;
    }

    /// Runs `body` while the model has the averaged parameters; its own come back after, bit for bit, also when
    /// `body` panics.
    pub fn scope<T>(&self, parameters: &FlatParams, body: impl FnOnce() -> T) -> T {
        let _restore =
            Restore { target: parameters.values().shallow_clone(), saved: parameters.values().copy() };
        tch::no_grad(|| parameters.values().shallow_clone().copy_(&self.values));
        body()
    }

    /// `ema.<parameter>` and `ema_updates` (int64 [1]). Views: copy them before the next update.
    pub fn state(&self, parameters: &FlatParams) -> Vec<(String, Tensor)> {
        let mut state = parameters.named("ema.", &self.values);
        state.push(("ema_updates".into(), Tensor::from_slice(&[self.updates as i64])));
        state
    }

    /// Takes up a saved state; `source` names it in errors.
    ///
    /// # Errors
    /// 65 naming the first tensor that is missing or of another shape.
    pub fn load(&mut self, parameters: &FlatParams, source: &str, state: &[(String, Tensor)]) -> Result<()> {
        let is_count = |tensor: &Tensor| tensor.size() == [1] && tensor.kind() == Kind::Int64;
        let count = state.iter().find(|(name, tensor)| name == "ema_updates" && is_count(tensor));
        let updates = count.and_then(|(_, tensor)| u64::try_from(tensor.int64_value(&[0])).ok());
        let updates =
            updates.ok_or_else(|| Error::data(format!("{source}: tensor 'ema_updates' is missing")))?;
        parameters.read_named(source, "ema.", state, &self.values)?;
        self.updates = updates;
        Ok(())
    }
}

struct Restore {
    target: Tensor,
    saved: Tensor,
}

impl Drop for Restore {
    fn drop(&mut self) {
        tch::no_grad(|| self.target.copy_(&self.saved));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::tests::parameters;

    #[test]
    fn averages_swaps_and_restores() {
        let (params, flat) = parameters(Kind::Double);
        let start = flat.values().copy();
        let mut ema = Ema::new(EmaConfig { decay: 0.75, warmup: false }, &flat).unwrap();
        let _ = tch::no_grad(|| flat.values().shallow_clone().g_add_scalar_(1.));
        let moved = flat.values().copy();
        ema.update(&flat);
        let expected = &start * 0.75 + &moved * 0.25;
        let seen = ema.scope(&flat, || params.trainable()[0].1.copy());
        assert!(seen.allclose(&flat.slices()[0].view(&expected), 1e-12, 0., false));
        assert!(flat.values().equal(&moved));
    }

    #[test]
    fn warm_up_follows_recent_parameters() {
        let (_, flat) = parameters(Kind::Double);
        let mut ema = Ema::new(EmaConfig { decay: 0.9999, warmup: true }, &flat).unwrap();
        let _ = tch::no_grad(|| flat.values().shallow_clone().fill_(2.));
        (0..200).for_each(|_| ema.update(&flat));
        let error = ema.scope(&flat, || (flat.values() - 2.).abs().max().double_value(&[]));
        assert!(error < 1e-3, "{error}");
    }

    #[test]
    fn saved_and_loaded_continues_with_the_same_bits() {
        let (_, flat) = parameters(Kind::Float);
        let config = EmaConfig { decay: 0.9, warmup: true };
        let mut ema = Ema::new(config, &flat).unwrap();
        ema.update(&flat);
        let state: Vec<_> =
            ema.state(&flat).into_iter().map(|(name, tensor)| (name, tensor.copy())).collect();
        let _ = tch::no_grad(|| flat.values().shallow_clone().g_mul_scalar_(0.3));
        let mut other = Ema::new(config, &flat).unwrap();
        other.load(&flat, "s", &state).unwrap();
        ema.update(&flat);
        other.update(&flat);
        assert!(
            ema.scope(&flat, || flat.values().copy()).equal(&other.scope(&flat, || flat.values().copy()))
        );
        assert!(other.load(&flat, "s", &state[1..]).is_err());
    }
}
