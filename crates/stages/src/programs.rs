//! Which step binary runs which stage.

use crate::step::Step;
use crate::training::Ended;
use crate::{
    dropout, embed, evaluate, features, generate, grid, measure, prepare, pretrain, statistics, toy, train,
};
use equipoise_base::{Result, bail};
use equipoise_config::Kind;

/// Runs the stage that the step was started for.
///
/// # Errors
/// Those of the stage; 64 when the front end itself does this kind.
pub fn run(step: &Step) -> Result<Ended> {
    match step.stage.kind {
        Kind::Classifier | Kind::Arm => train::run(step),
        Kind::Diffusion => pretrain::run(step),
        Kind::Generate => generate::run(step),
        Kind::Prepare => prepare::run(step).map(|()| Ended::Done),
        Kind::Features => features::run(step).map(|()| Ended::Done),
        Kind::Embed => embed::run(step).map(|()| Ended::Done),
        Kind::Statistics => statistics::run(step).map(|()| Ended::Done),
        Kind::Evaluate => evaluate::run(step).map(|()| Ended::Done),
        Kind::Metrics => measure::run(step).map(|()| Ended::Done),
        Kind::Grid => grid::run(step).map(|()| Ended::Done),
        Kind::Dropout => dropout::run(step).map(|()| Ended::Done),
        Kind::Toy => toy::run(step).map(|()| Ended::Done),
        Kind::Report => bail!(Usage, "'{}' is done by `equipoise report`", step.stage.name),
    }
}
