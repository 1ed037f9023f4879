//! What CLIP is fed: text as token ids, images as normalised planes, both exactly as transformers prepares them.

mod image_processor;
mod tokenizer;

pub use image_processor::{ClipImageProcessor, Resize, Size};
pub use tokenizer::{ClipTokenizer, Tokens};
