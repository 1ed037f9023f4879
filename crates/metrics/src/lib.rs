//! FID, PRDC, diversity, accuracy by split and group, agreement of labels.
//!
//! Everything is float64. Results are plain serde structs: their field docs are the documentation of the JSON.

pub mod accuracy;
pub mod agreement;
pub mod diversity;
pub mod fid;
pub mod groups;
pub mod prdc;

pub use accuracy::{Confusion, Splits, imbalance_std};
pub use diversity::Diversity;
pub use fid::Fid;
pub use groups::GroupAccuracy;
pub use prdc::Prdc;
