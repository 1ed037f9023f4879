//! Optimizers over flat vectors, with state that a checkpoint can hold, and learning-rate schedules.
//!
//! A new optimizer is one file beside these and one variant of [`OptimizerConfig`].

mod adamw;
pub mod schedule;
mod sgd;

pub use adamw::{AdamW, AdamWConfig};
pub use schedule::{Schedule, ScheduleConfig};
pub use sgd::{Sgd, SgdConfig};

use crate::FlatParams;
use equipoise_base::{Error, Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Name of the tensor that counts steps, int64 [1].
const STEP: &str = "step";

/// Changes parameters by a gradient.
///
/// `load(state())` into a fresh optimizer continues with the same bits.
pub trait Optimizer: std::fmt::Debug {
    /// One step in place. `gradient` is flat, as [`FlatParams::gradient`] gives it; it is not changed.
    ///
    /// # Errors
    /// 101 if the gradient does not belong to these parameters.
    fn step(&mut self, parameters: &FlatParams, gradient: &Tensor, lr: f64) -> Result<()>;

    /// The state by name, such as `momentum.<parameter>`, and `step`. Views: copy them before the next step.
    fn state(&self, parameters: &FlatParams) -> Vec<(String, Tensor)>;

    /// Takes up a saved state; `source` names it in errors.
    ///
    /// # Errors
    /// 65 naming the first tensor that is missing or of another shape.
    fn load(&mut self, parameters: &FlatParams, source: &str, state: &[(String, Tensor)]) -> Result<()>;
}

/// Which optimizer, and its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum OptimizerConfig {
    /// Stochastic gradient descent with momentum.
    Sgd(SgdConfig),
    /// Adam with decoupled weight decay.
    #[serde(rename = "adamw")]
    AdamW(AdamWConfig),
}

impl OptimizerConfig {
    /// The learning rate that a [`Schedule`] scales.
    pub fn lr(&self) -> f64 {
        match self {
            OptimizerConfig::Sgd(config) => config.lr,
            OptimizerConfig::AdamW(config) => config.lr,
        }
    }

    /// A fresh optimizer for these parameters.
    ///
    /// # Errors
    /// 78 naming the field that is out of range.
    pub fn build(&self, parameters: &FlatParams) -> Result<Box<dyn Optimizer>> {
        ensure!(
            self.lr() >= 0. && self.lr().is_finite(),
            Config,
            "optimizer.lr: {} is not a rate",
            self.lr()
        );
        Ok(match self {
            OptimizerConfig::Sgd(config) => Box::new(Sgd::new(*config, parameters)?),
            OptimizerConfig::AdamW(config) => Box::new(AdamW::new(*config, parameters)?),
        })
    }
}

fn check_range(field: &str, value: f64, range: std::ops::Range<f64>) -> Result<()> {
    ensure!(
        range.contains(&value),
        Config,
        "optimizer.{field}: {value} is not in [{}, {})",
        range.start,
        range.end
    );
    Ok(())
}

fn step_tensor(steps: u64) -> (String, Tensor) {
    (STEP.into(), Tensor::from_slice(&[steps as i64]))
}

fn read_step(source: &str, state: &[(String, Tensor)]) -> Result<u64> {
    let found = state
        .iter()
        .find(|(name, tensor)| name == STEP && tensor.size() == [1] && tensor.kind() == Kind::Int64);
    let steps = found.and_then(|(_, tensor)| u64::try_from(tensor.int64_value(&[0])).ok());
    steps.ok_or_else(|| {
        Error::data(format!("{source}: tensor '{STEP}' is missing or not a count (int64 [1])"))
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{Init, Params, weights};
    use std::collections::BTreeMap;
    use tch::Device;

    /// A model of two parameters, one of whose lengths leaves a gap.
    pub(crate) fn parameters(kind: Kind) -> (Params, FlatParams) {
        let params = Params::new(5, kind, Device::Cpu);
        let _ = params.root().param("a", &[3, 7], Init::Normal(1.));
        let _ = params.root().param("b", &[4], Init::Normal(1.));
        let flat = FlatParams::new(&params).unwrap();
        (params, flat)
    }

    /// A made-up gradient that depends on the step.
    pub(crate) fn gradient(flat: &FlatParams, step: u64) -> Tensor {
        let all = Tensor::arange(flat.len(), (Kind::Double, Device::Cpu)) * 0.7 + step as f64;
        let gradient = flat.zeros();
        for slice in flat.slices() {
            slice.view(&gradient).copy_(&slice.view(&all.sin()));
        }
        gradient
    }

    fn run(flat: &FlatParams, optimizer: &mut dyn Optimizer, steps: std::ops::Range<u64>) {
        for step in steps {
            optimizer.step(flat, &gradient(flat, step), 0.05 / (step + 1) as f64).unwrap();
        }
    }

    #[test]
    fn saved_loaded_and_continued_is_uninterrupted() {
        for text in [
            r#"{"kind":"sgd","lr":0.1}"#,
            r#"{"kind":"sgd","lr":0.1,"momentum":0.0}"#,
            r#"{"kind":"sgd","lr":0.1,"nesterov":true}"#,
            r#"{"kind":"adamw","lr":0.1,"weight_decay":0.1}"#,
        ] {
            for stop in [0, 1, 3] {
                let config: OptimizerConfig = serde_json::from_str(text).unwrap();
                let (_, whole) = parameters(Kind::Float);
                run(&whole, config.build(&whole).unwrap().as_mut(), 0..6);

                let (params, first) = parameters(Kind::Float);
                let mut optimizer = config.build(&first).unwrap();
                run(&first, optimizer.as_mut(), 0..stop);
                let state = weights::to_bytes(&optimizer.state(&first), &BTreeMap::new()).unwrap();
                let model = weights::to_bytes(&params.all(), &BTreeMap::new()).unwrap();

                let (params, second) = parameters(Kind::Float);
                params.load("m", &weights::from_bytes("m", model.clone()).unwrap()).unwrap();
                let mut optimizer = config.build(&second).unwrap();
                optimizer.load(&second, "s", &weights::from_bytes("s", state.clone()).unwrap()).unwrap();
                run(&second, optimizer.as_mut(), stop..6);
                assert!(second.values().equal(whole.values()), "{text} stopped at {stop}");
            }
        }
    }

    #[test]
    fn a_damaged_state_is_told() {
        let (_, flat) = parameters(Kind::Float);
        let mut optimizer = OptimizerConfig::Sgd(SgdConfig::default()).build(&flat).unwrap();
        let mut state = optimizer.state(&flat);
        state.retain(|(name, _)| name != "step");
        let error = optimizer.load(&flat, "ckpt", &state).unwrap_err();
        assert!(error.message().starts_with("ckpt: tensor 'step'"), "{error}");
        let error = optimizer.load(&flat, "ckpt", &[step_tensor(1)]).unwrap_err();
        assert!(error.message().contains("momentum.a"), "{error}");
    }

    #[test]
    fn configurations_are_strict() {
        let parse = serde_json::from_str::<OptimizerConfig>;
        assert!(parse(r#"{"kind":"sgd","lr":0.1,"momentun":0.9}"#).is_err());
        assert!(parse(r#"{"kind":"adam","lr":0.1}"#).is_err());
        let (_, flat) = parameters(Kind::Float);
        let error = parse(r#"{"kind":"sgd","lr":0.1,"momentum":1.5}"#).unwrap().build(&flat).unwrap_err();
        assert!(error.message().contains("optimizer.momentum"), "{error}");
        assert!(parse(r#"{"kind":"adamw","lr":-1.0}"#).unwrap().build(&flat).is_err());
    }
}
