//! Long-tail losses, mixing, contrastive and group methods.

pub mod contrastive;
pub mod groups;
pub mod losses;
pub mod mix;

pub use losses::{Counts, Loss, LossConfig, Progress};
