//! The tch layer: parameters by name, modules, safetensors, optimizers with saveable state, precision policy.
//!
//! The only crate that speaks to libtorch beyond tensor operations (the C++ shim lives here).

mod cuda;
pub mod ema;
pub mod flat;
pub mod layers;
pub mod mapped;
pub mod optim;
pub mod overlap;
pub mod params;
pub mod precision;
pub mod reduce;
pub mod runtime;
mod shim;
pub mod start;
pub mod statistics;
pub mod transport;
pub mod weights;

pub use ema::{Ema, EmaConfig};
pub use flat::FlatParams;
pub use optim::{Optimizer, OptimizerConfig, Schedule, ScheduleConfig};
pub use overlap::OverlappedTree;
pub use params::{Init, Params, Scope};
pub use precision::{Held, MemoryFormat, Precision};
pub use reduce::GradientTree;
pub use runtime::RuntimeConfig;
pub use statistics::Module;
pub use transport::{HostTree, Transport};
