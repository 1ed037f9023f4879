//! Augmentation: torchvision's v2 transforms in plain Rust, their parameters drawn from a key per visit.
//!
//! [`Canvas`] holds the functional transforms, [`Op`] one transform with its random parameters, and [`AugmentConfig`]
//! the list that a recipe gives.

mod blur;
mod canvas;
mod color;
mod draw;
mod geometry;
mod op;

pub use canvas::{Canvas, Window};
pub use op::Op;

use crate::ImageRef;
use equipoise_base::Result;
use equipoise_base::rng::Key;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Transforms in the order in which they are applied.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct AugmentConfig {
    /// The transforms.
    pub ops: Vec<Op>,
}

impl AugmentConfig {
    /// Checks parameters against the number of channels of the result.
    ///
    /// # Errors
    /// 78 naming the transform.
    pub fn check(&self, channels: usize) -> Result<()> {
        for (position, op) in self.ops.iter().enumerate() {
            op.check(channels)
                .map_err(|error| error.context(format!("augment[{position}] ({})", op.name())))?;
        }
        Ok(())
    }

    /// Height and width of what becomes of an image of this height and width.
    pub fn output_size(&self, size: [usize; 2]) -> [usize; 2] {
        self.ops.iter().fold(size, |size, op| op.output_size(size))
    }

    /// Puts `image` on the canvas in `channels` channels, in [0, 1], and transforms it as `key` says.
    ///
    /// The result is a function of the image, the configuration and the key. Each transform draws from its own
    /// stream, so that a transform added behind changes nothing in front.
    pub fn apply(&self, image: ImageRef<'_>, channels: usize, key: u64, canvas: &mut Canvas) {
        let stream = |position: usize, op: &Op| Key::new(key, op.name()).index(position as u64).stream();
        let mut done = 0;
        match self.ops.first() {
            // Of a large photo only the part that is used becomes floats.
            Some(op @ Op::ResizedCrop { size, filter, .. }) => {
                let window = op.window(image.height, image.width, &mut stream(0, op));
                canvas.load(image, channels, window);
                canvas.resize(*size, *size, *filter);
                done = 1;
            }
            _ => canvas.load(image, channels, Window::whole(image.height, image.width)),
        }
        for (position, op) in self.ops.iter().enumerate().skip(done) {
            op.apply(canvas, &mut stream(position, op));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Image;

    fn parse(text: &str) -> serde_json::Result<AugmentConfig> {
        serde_json::from_str(text)
    }

    fn picture() -> Image {
        let pixels = (0..12 * 10 * 3u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        Image { height: 12, width: 10, channels: 3, pixels }
    }

    fn all() -> AugmentConfig {
        parse(
            r#"[
            {"op": "resized_crop", "size": 8}, {"op": "hflip"}, {"op": "crop", "padding": 2},
            {"op": "color_jitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
            {"op": "grayscale", "p": 0.5}, {"op": "gaussian_blur", "kernel": 3, "p": 0.5},
            {"op": "resize", "size": 9}, {"op": "center_crop", "size": 8},
            {"op": "normalize", "mean": [0.5], "std": [0.25]}, {"op": "erase", "p": 0.5}]"#,
        )
        .unwrap()
    }

    #[test]
    fn a_key_decides_everything() {
        let (config, image) = (all(), picture());
        config.check(3).unwrap();
        let run = |key| {
            let mut canvas = Canvas::default();
            config.apply(image.view(), 3, key, &mut canvas);
            let [height, width] = config.output_size([image.height, image.width]);
            assert_eq!((canvas.channels(), canvas.height(), canvas.width()), (3, height, width));
            assert!(canvas.planes().iter().all(|value| value.is_finite()));
            canvas.planes().to_vec()
        };
        assert_eq!(run(1), run(1));
        let different: std::collections::BTreeSet<Vec<u32>> =
            (0..20).map(|key| run(key).iter().map(|value| value.to_bits()).collect()).collect();
        assert_eq!(different.len(), 20);
    }

    #[test]
    fn sizes_are_known_beforehand() {
        let size = |text: &str| parse(text).unwrap().output_size([12, 10]);
        assert_eq!(size(r#"[{"op": "hflip"}, {"op": "crop", "padding": 2}]"#), [12, 10]);
        assert_eq!(size(r#"[{"op": "crop", "size": 7}]"#), [7, 7]);
        assert_eq!(size(r#"[{"op": "resize", "size": 5}]"#), [6, 5]);
        assert_eq!(size(r#"[{"op": "resized_crop", "size": 9}, {"op": "center_crop", "size": 8}]"#), [8, 8]);
    }

    #[test]
    fn a_used_canvas_is_as_good_as_new() {
        let (config, image) = (all(), picture());
        let mut used = Canvas::default();
        for key in 0..10 {
            config.apply(image.view(), 3, key, &mut used);
            let mut new = Canvas::default();
            config.apply(image.view(), 3, key, &mut new);
            assert_eq!(used.planes(), new.planes());
        }
    }

    #[test]
    fn hflip_is_as_frequent_as_asked() {
        let image = Image { height: 1, width: 2, channels: 1, pixels: vec![0, 255] };
        let config = parse(r#"[{"op": "hflip", "p": 0.25}]"#).unwrap();
        let mut canvas = Canvas::default();
        let flips = (0..2000).filter(|&key| {
            config.apply(image.view(), 1, key, &mut canvas);
            canvas.planes() == [1.0, 0.0]
        });
        assert!((420..580).contains(&flips.count()));
    }

    #[test]
    fn configuration_is_strict() {
        assert!(parse(r#"[{"op": "hflip", "q": 1}]"#).is_err());
        assert!(parse(r#"[{"op": "rotate"}]"#).is_err());
        for bad in [
            r#"[{"op": "hflip", "p": 1.5}]"#,
            r#"[{"op": "resized_crop", "size": 0}]"#,
            r#"[{"op": "resized_crop", "size": 8, "scale": [0.5, 0.1]}]"#,
            r#"[{"op": "normalize", "mean": [0.5, 0.5], "std": [1.0]}]"#,
            r#"[{"op": "normalize", "mean": [0.5], "std": [0.0]}]"#,
            r#"[{"op": "gaussian_blur", "kernel": 4}]"#,
            r#"[{"op": "color_jitter", "hue": 0.7}]"#,
        ] {
            let error = parse(bad).unwrap().check(3).unwrap_err();
            assert!(error.to_string().starts_with("augment[0] ("), "{bad}: {error}");
        }
    }
}
