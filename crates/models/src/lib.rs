//! Architectures and weights: ResNets, U-Nets.

pub mod adm;
pub mod arch;
pub mod resnet;

pub use arch::{ArchConfig, Classifier};
