//! Hugging Face folders as they are: what is in them, without a tensor library.
//!
//! | module | what it knows |
//! |---|---|
//! | [`folder`] | `model_index.json` of a pipeline: which components there are |
//! | [`component`] | one component: its class, its configuration, its files |
//! | [`weights`] | safetensors files of a component, single or sharded, mapped into memory |
//! | [`lock`] | sizes and SHA-256 of all of them in `weights.lock.json`, checked on load |
//!
//! What a folder holds is input from outside: whatever is wrong with it is an error 65 that names the file.

pub mod component;
pub mod folder;
mod locate;
pub mod lock;
pub mod weights;

pub use component::Component;
pub use folder::Folder;
pub use lock::Lock;
pub use weights::{Dtype, TensorInfo, WeightFiles};
