//! What a rehearsal reads in place of inputs that no stage has made yet: images and networks of the right shape. How long
//! a unit takes does not depend on what they show.

use crate::inputs::Images;
use crate::step::Step;
use equipoise_base::Result;
use equipoise_data::ImageSet;
use std::sync::Arc;

/// Images of a stand-in, unless there are more classes or they would take too much memory.
const IMAGES: usize = 2048;
/// Bytes of its pixels, if there is one of each class at least.
const BYTES: usize = 256 << 20;

/// Images of all classes in turn, with a pattern that compresses neither well nor badly.
///
/// # Errors
/// As [`Step::data_shape`].
pub fn images(step: &Step) -> Result<Images> {
    let shape = step.data_shape()?;
    let ([height, width], channels) = (shape.size.map(|side| side as usize), shape.channels as usize);
    let (classes, each) = (shape.classes as usize, height * width * channels);
    let count = IMAGES.min(BYTES / each.max(1)).max(classes);
    let sample =
        |at: usize| ((at / each * 29) ^ (at % each / channels * 3) ^ (at / (width * channels) * 7)) as u8;
    let pixels = (0..count * each).map(sample).collect();
    let labels = (0..count).map(|image| (image % classes) as u32).collect();
    let set = ImageSet::new(height, width, channels, pixels, labels)?;
    Ok(Images {
        set: Arc::new(set),
        hashes: vec![0; count],
        index: (0..count as u64).map(|image| image / classes as u64).collect(),
    })
}
