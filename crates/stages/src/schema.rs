//! The schema of recipes, with the parameters of every method: how they reach the front end, which links none of them.

use equipoise_base::{ExitCode, Result, ResultExt};
use schemars::{JsonSchema, schema_for};
use std::io::Write as _;

/// Prints `configs/schema.json`.
///
/// # Errors
/// 101 when a fragment has no place in the recipe.
pub fn print() -> Result<()> {
    fn of<T: JsonSchema>() -> schemars::Schema {
        schema_for!(T)
    }
    let fragments = [
        ("CpuCapability", of::<equipoise_comm::environment::CpuCapability>()),
        ("Source", of::<equipoise_catalog::Source>()),
        ("Select", of::<equipoise_catalog::Selection>()),
        ("Arch", of::<equipoise_models::arch::ArchConfig>()),
        ("Loss", of::<equipoise_classify::LossConfig>()),
        ("Optimizer", of::<equipoise_nn::OptimizerConfig>()),
        ("LearningRate", of::<equipoise_nn::ScheduleConfig>()),
        ("Augment", of::<equipoise_data::AugmentConfig>()),
        ("Sampling", of::<equipoise_workplan::OrderConfig>()),
        ("Ema", of::<equipoise_nn::EmaConfig>()),
        ("DiffusionModel", of::<equipoise_models::adm::AdmConfig>()),
        ("NoiseSchedule", of::<equipoise_diffusion::schedule::DiffusionScheduleConfig>()),
        ("Plan", of::<equipoise_workplan::PlanConfig>()),
        ("Codec", of::<equipoise_workplan::CodecConfig>()),
        ("Sampler", of::<equipoise_diffusion::sampler::SamplerConfig>()),
        ("Condition", of::<equipoise_diffusion::condition_config::ConditionConfig>()),
        ("Feedback", of::<equipoise_diffusion::feedback::FeedbackConfig>()),
        ("Toy", of::<crate::toy::ToyParams>()),
    ];
    let schema = equipoise_config::schema_for_recipe(&fragments)?;
    let text = serde_json::to_string_pretty(&schema).or_exit(ExitCode::Bug, "schema")?;
    // A reader that closes the pipe early is no bug of ours.
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(())
}
