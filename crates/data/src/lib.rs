//! Readers, decoding, augmentation, batches, loaders; what CLIP is fed.
//!
//! Pixels are unsigned bytes, rows of interleaved channels (HWC), until a batch is built; then they are normalized
//! float planes (CHW). What a sample looks like after augmentation is a function of the image and a 64-bit key.

pub mod augment;
pub mod batch;
pub mod cifar;
pub mod clip;
pub mod decode;
pub mod files;
mod gzip;
pub mod idx;
pub mod image;
pub mod loader;
pub mod read;
mod resample;
pub mod resize;
pub mod set;

pub use augment::AugmentConfig;
pub use batch::{BatchBuilder, Shape};
pub use image::{Image, ImageRef};
pub use loader::{Loader, MicroBatch, Request};
pub use read::{ReadConfig, read, read_some};
pub use resample::Filter;
pub use set::{ImageSet, ImageSource};
