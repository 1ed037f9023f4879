//! CLIP: the text and vision towers of Radford et al., "Learning transferable visual models from natural language
//! supervision" (2021), as transformers' `CLIPTextModel` and `CLIPVisionModelWithProjection` with their names.
//!
//! OpenAI's towers, those of OpenCLIP that Stable Diffusion 2.x uses, and a whole `CLIPModel` load as they are.

mod config;
mod encoder;
mod text;
mod vision;

pub use config::{Activation, ClipTextConfig, ClipTransformer, ClipVisionConfig};
pub use text::{ClipTextModel, ClipTextOutput};
pub use vision::{ClipVisionModel, ClipVisionOutput};
