//! Learning-rate schedules: pure functions of the step, so that a restart has nothing to restore.

use equipoise_base::{Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What happens after the warm-up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Decay {
    /// The rate stays.
    #[default]
    Constant,
    /// Half a cosine from the full rate to `floor` times it at the end (SGDR without restarts).
    Cosine {
        /// Last factor.
        #[serde(default)]
        floor: f64,
    },
    /// A straight line from the full rate to `floor` times it at the end.
    Linear {
        /// Last factor.
        #[serde(default)]
        floor: f64,
    },
    /// Multiplied by `gamma` at every milestone.
    Step {
        /// Times at which the rate drops, ascending.
        milestones: Vec<f64>,
        /// Factor of each drop.
        gamma: f64,
    },
}

/// A schedule. Its times are in epochs where training has epochs, else in steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleConfig {
    /// The rate rises linearly to its full value during this time.
    pub warmup: f64,
    /// What happens after the warm-up.
    pub decay: Decay,
    /// Change the rate once per epoch, as most long-tailed baselines do, instead of at every step.
    pub per_epoch: bool,
}

/// A schedule for a training of known length.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    config: ScheduleConfig,
    unit: u64,
    total: u64,
}

impl Schedule {
    /// `unit` is the number of steps of an epoch (1 where times are in steps), `total` of the whole training.
    ///
    /// # Errors
    /// 78 naming the field that makes no sense.
    pub fn new(config: ScheduleConfig, unit: u64, total: u64) -> Result<Self> {
        ensure!(unit > 0, Config, "schedule: an epoch has no step; lower the batch size");
        let length = total as f64 / unit as f64;
        let warmup = config.warmup;
        ensure!(
            (0. ..=length).contains(&warmup),
            Config,
            "schedule.warmup: {warmup} is not within 0..{length}"
        );
        match &config.decay {
            Decay::Constant => {}
            Decay::Cosine { floor } | Decay::Linear { floor } => {
                ensure!(
                    (0. ..=1.).contains(floor),
                    Config,
                    "schedule.decay.floor: {floor} is not within 0..1"
                );
            }
            Decay::Step { milestones, gamma } => {
                let ascending = milestones.windows(2).all(|pair| pair[0] < pair[1]);
                ensure!(ascending, Config, "schedule.decay.milestones: {milestones:?} do not ascend");
                ensure!(
                    (0. ..=1.).contains(gamma),
                    Config,
                    "schedule.decay.gamma: {gamma} is not within 0..1"
                );
            }
        }
        Ok(Self { config, unit, total })
    }

    /// What to multiply the base rate with at `step`, from 0.
    pub fn factor(&self, step: u64) -> f64 {
        let step = if self.config.per_epoch { step / self.unit * self.unit } else { step };
        let (now, end) = (step as f64 / self.unit as f64, self.total as f64 / self.unit as f64);
        let warmup = self.config.warmup;
        if now < warmup {
            // The first step (or epoch) moves already, the last one of the warm-up has the full rate.
            let grain = if self.config.per_epoch { 1. } else { 1. / self.unit as f64 };
            return ((now + grain) / warmup).min(1.);
        }
        let done = if end > warmup { ((now - warmup) / (end - warmup)).min(1.) } else { 1. };
        match &self.config.decay {
            Decay::Constant => 1.,
            Decay::Cosine { floor } => {
                floor + (1. - floor) * 0.5 * (1. + (std::f64::consts::PI * done).cos())
            }
            Decay::Linear { floor } => floor + (1. - floor) * (1. - done),
            Decay::Step { milestones, gamma } => {
                gamma.powi(milestones.iter().filter(|&&milestone| now >= milestone).count() as i32)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(json: &str, unit: u64, total: u64) -> Schedule {
        Schedule::new(serde_json::from_str(json).unwrap(), unit, total).unwrap()
    }

    /// LDAM-DRW `adjust_learning_rate`: epoch/5 in epochs 1..5, x0.01 after 160 and again after 180.
    #[test]
    fn ldam_drw() {
        let decay = r#"{"kind":"step","milestones":[160,180],"gamma":0.01}"#;
        let json = format!(r#"{{"warmup":5,"per_epoch":true,"decay":{decay}}}"#);
        let schedule = schedule(&json, 10, 2000);
        let at = |epoch: u64| schedule.factor(epoch * 10 + 7);
        assert_eq!([0, 1, 4, 5, 159].map(at), [0.2, 0.4, 1., 1., 1.]);
        assert_eq!([160, 179, 180, 199].map(at), [0.01, 0.01, 0.0001, 0.0001]);
    }

    #[test]
    fn cosine_and_linear_reach_their_floor() {
        let cosine = schedule(r#"{"decay":{"kind":"cosine"}}"#, 5, 100);
        assert_eq!(cosine.factor(0), 1.);
        assert!((cosine.factor(50) - 0.5).abs() < 1e-12);
        assert!(cosine.factor(99) < 1e-3 && cosine.factor(100) == 0.);
        let linear = schedule(r#"{"warmup":10,"decay":{"kind":"linear","floor":0.5}}"#, 1, 110);
        assert_eq!(linear.factor(0), 0.1);
        assert_eq!(linear.factor(9), 1.);
        assert_eq!(linear.factor(60), 0.75);
        assert_eq!(linear.factor(1000), 0.5);
    }

    #[test]
    fn constant_is_the_default() {
        let constant = schedule("{}", 3, 9);
        assert!((0..9).all(|step| constant.factor(step) == 1.));
    }

    #[test]
    fn nonsense_is_refused() {
        let refused = |json: &str| Schedule::new(serde_json::from_str(json).unwrap(), 1, 10).is_err();
        assert!(refused(r#"{"warmup":11}"#));
        assert!(refused(r#"{"warmup":-1}"#));
        assert!(refused(r#"{"decay":{"kind":"cosine","floor":2}}"#));
        assert!(refused(r#"{"decay":{"kind":"step","milestones":[3,2],"gamma":0.1}}"#));
        assert!(serde_json::from_str::<ScheduleConfig>(r#"{"decay":{"kind":"cosine","flor":0}}"#).is_err());
        assert!(Schedule::new(ScheduleConfig::default(), 0, 10).is_err());
    }
}
