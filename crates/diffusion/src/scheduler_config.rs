//! `scheduler_config.json` of a Hugging Face folder: the noise a network was trained with, and the conventions of its
//! sampling. Which sampler, how many steps and how much noise stay a choice of the recipe.

use crate::ddim::{DdimConfig, Spacing};
use crate::prediction::Prediction;
use crate::sampler::SamplerConfig;
use crate::schedule::{BetaSchedule, DiffusionScheduleConfig, Schedule};
use equipoise_base::Result;
use equipoise_models::hf_config::Keys;
use equipoise_pretrained::Component;
use serde_json::{Value, json};

/// What a saved scheduler says; names and defaults as in diffusers.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    /// The forward process.
    pub schedule: DiffusionScheduleConfig,
    /// What the network predicts.
    pub prediction: Prediction,
    timestep_spacing: Spacing,
    steps_offset: i64,
    set_alpha_to_one: bool,
    clip_sample: bool,
    clip_sample_range: f64,
}

impl SchedulerConfig {
    /// Reads a `scheduler` component.
    ///
    /// # Errors
    /// 65 naming the file, and the key whose value is not supported; 74 if it cannot be read.
    pub fn open(component: &Component) -> Result<Self> {
        Self::from_json(&component.config_path()?.display().to_string(), component.config()?)
    }

    /// Reads a `scheduler_config.json` of any class; `source` names the file in errors.
    ///
    /// # Errors
    /// 65 naming the key whose value is not supported.
    pub fn from_json(source: &str, json: Value) -> Result<Self> {
        let class = json["_class_name"].as_str().unwrap_or("DDIMScheduler").to_string();
        let mut keys = Keys::new(source, json)?;
        keys.only(&[("thresholding", json!(false)), ("trained_betas", Value::Null)])?;
        let schedule = DiffusionScheduleConfig {
            num_train_timesteps: keys.take("num_train_timesteps", 1000)?,
            beta_schedule: keys.take("beta_schedule", BetaSchedule::Linear)?,
            beta_start: keys.take("beta_start", 1e-4)?,
            beta_end: keys.take("beta_end", 0.02)?,
            rescale_betas_zero_snr: keys.take("rescale_betas_zero_snr", false)?,
        };
        // Keys that the other classes do not have mean what those classes do.
        let clips = matches!(class.as_str(), "DDIMScheduler" | "DDPMScheduler");
        Ok(Self {
            schedule,
            prediction: keys.take("prediction_type", Prediction::Epsilon)?,
            timestep_spacing: keys.take("timestep_spacing", Spacing::Leading)?,
            steps_offset: keys.take("steps_offset", 0)?,
            set_alpha_to_one: keys.take("set_alpha_to_one", class != "PNDMScheduler")?,
            clip_sample: keys.take("clip_sample", clips)?,
            clip_sample_range: keys.take("clip_sample_range", 1.)?,
        })
    }

    /// The schedule in float32, as diffusers computes it.
    ///
    /// # Errors
    /// 78 if it is no schedule.
    pub fn single(&self) -> Result<Schedule> {
        Schedule::single(&self.schedule)
    }

    /// DDIM with the conventions of the folder.
    pub fn ddim(&self, steps: i64, eta: f64) -> DdimConfig {
        DdimConfig {
            steps,
            eta,
            timestep_spacing: self.timestep_spacing,
            steps_offset: self.steps_offset,
            set_alpha_to_one: self.set_alpha_to_one,
            clip_sample: self.clip_sample,
            clip_sample_range: self.clip_sample_range,
        }
    }

    /// A recipe's sampler with the conventions of the folder: the network was trained for those.
    pub fn adapt(&self, sampler: &SamplerConfig) -> SamplerConfig {
        match sampler {
            SamplerConfig::Ddim(ddim) => SamplerConfig::Ddim(self.ddim(ddim.steps, ddim.eta)),
            SamplerConfig::DpmSolver(solver) => {
                let mut solver = solver.clone();
                solver.timestep_spacing = self.timestep_spacing;
                solver.steps_offset = self.steps_offset;
                SamplerConfig::DpmSolver(solver)
            }
            SamplerConfig::Ddpm(_) => sampler.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheduler_of_stable_diffusion() {
        let read = |class: &str| {
            let json = json!({
                "_class_name": class, "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
                "prediction_type": "v_prediction", "skip_prk_steps": true, "steps_offset": 1,
            });
            SchedulerConfig::from_json("scheduler/scheduler_config.json", json).unwrap()
        };
        let (pndm, ddim) = (read("PNDMScheduler").ddim(30, 0.), read("DDIMScheduler").ddim(30, 0.));
        assert_eq!((pndm.steps_offset, pndm.timestep_spacing), (1, Spacing::Leading));
        assert_eq!((pndm.set_alpha_to_one, pndm.clip_sample), (false, false));
        assert_eq!((ddim.set_alpha_to_one, ddim.clip_sample), (true, true));
        assert_eq!(read("PNDMScheduler").prediction, Prediction::VPrediction);
        let recipe = SamplerConfig::Ddim(DdimConfig { steps_offset: 7, ..ddim });
        assert_eq!(read("PNDMScheduler").adapt(&recipe), SamplerConfig::Ddim(pndm));
    }

    #[test]
    fn what_is_not_implemented_is_refused() {
        let broken = |json| SchedulerConfig::from_json("f", json).unwrap_err().to_string();
        assert!(broken(json!({ "thresholding": true })).contains("thresholding"));
        assert!(broken(json!({ "beta_schedule": "sigmoid" })).contains("beta_schedule"));
        assert!(broken(json!({ "trained_betas": [0.1] })).contains("trained_betas"));
    }
}
