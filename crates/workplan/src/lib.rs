//! Pure functions: which image, batch, shard, sample belongs where and when.
//!
//! No function here reads a file, a clock or a rank, except where the rank is an argument: two processes that
//! ask the same question get the same answer.

pub mod balance;
pub mod effort;
pub mod layout;
pub mod order;
pub mod parameters;
pub mod ranks;
pub mod simulate;
pub mod space;

pub use balance::{ClassPlan, Plan, PlanConfig};
pub use layout::{Layout, LayoutConfig, Shard};
pub use order::{OrderConfig, Pool, Sample, TrainingOrder};
pub use space::CodecConfig;
