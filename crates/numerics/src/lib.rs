//! Statistics, distances and linear algebra on tensors.
//!
//! Everything is computed in float64 whatever the kind of the input, and input is checked before it reaches
//! libtorch: a wrong shape or a NaN is an error that says so, never a panic.

pub mod check;
pub mod hardness;
pub mod knn;
pub mod linalg;
pub mod stats;

pub use hardness::Hardness;
pub use stats::{ClassMoments, Moments, Spread};
