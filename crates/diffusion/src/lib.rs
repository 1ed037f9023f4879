//! Schedules, samplers, guidance and feedback criteria, diffusion training.
//!
//! A generator is a [`guidance::DenoisingNetwork`]; [`guidance::ClassConditional`] binds it to the labels of a batch,
//! [`sampler::Sampler`] turns noise into images with it, and [`feedback::Feedback`] lets a classifier steer that.
//! Nothing here draws a random number: noise, time steps and dropped labels are given by the caller, keyed by identity.

pub mod condition_config;
pub mod criterion;
pub mod ddim;
pub mod ddpm;
pub mod decoder;
pub mod dpm_solver;
pub mod feedback;
pub mod guidance;
pub mod image_embedding;
pub mod pipeline;
pub mod prediction;
pub mod random_folder;
pub mod respacing;
pub mod sampler;
pub mod schedule;
pub mod scheduler_config;
pub mod text_conditional;
pub mod toy;
pub mod train;
pub mod view;
