//! Method parameters: plain values here, typed in the crate that owns the method.
//!
//! Each is a definition of the schema that accepts anything until `cargo xtask schema` puts the method crate's own
//! definition in its place, so that the front end checks methods whose code it does not link.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::borrow::Cow;

macro_rules! methods {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
            #[serde(transparent)]
            pub struct $name(pub Value);

            impl $name {
                /// Reads the parameters into the struct of the crate that owns the method.
                pub fn parse<T: DeserializeOwned>(&self) -> equipoise_base::Result<T> {
                    serde_json::from_value(self.0.clone()).map_err(|error| {
                        equipoise_base::Error::config(format!("{}: {error}: {}", stringify!($name), self.0))
                    })
                }
            }

            impl JsonSchema for $name {
                fn schema_name() -> Cow<'static, str> {
                    stringify!($name).into()
                }

                fn json_schema(_: &mut SchemaGenerator) -> Schema {
                    true.into()
                }
            }
        )*

        /// The definitions that method crates fill in.
        pub const METHODS: &[&str] = &[$(stringify!($name),)*];
    };
}

methods! {
    /// Instruction set of the CPU kernels (`comm`).
    CpuCapability;
    /// Where the images of a split come from (`catalog`).
    Source;
    /// Which images of a source belong to a split (`catalog`).
    Select;
    /// Architecture of a classifier (`models`).
    Arch;
    /// Loss of a classifier (`classify`).
    Loss;
    /// Optimizer (`nn`).
    Optimizer;
    /// Learning rate over the steps (`nn`).
    LearningRate;
    /// Augmentations, in order (`data`).
    Augment;
    /// How training images are drawn (`workplan`).
    Sampling;
    /// Average of a generator's weights (`nn`).
    Ema;
    /// Network of the diffusion model (`models`).
    DiffusionModel;
    /// Noise schedule (`diffusion`).
    NoiseSchedule;
    /// How many images of each class (`workplan`).
    Plan;
    /// How images are stored (`workplan`, encoders in `shards`).
    Codec;
    /// Denoising steps (`diffusion`).
    Sampler;
    /// Classifier feedback (`diffusion`).
    Feedback;
    /// Text and image condition of a latent generator (`diffusion`).
    Condition;
    /// The two-dimensional toy (`diffusion`).
    Toy;
}
