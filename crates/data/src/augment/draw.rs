//! Random windows, with the distributions of torchvision.

use super::canvas::Window;
use equipoise_base::rng::Stream;

/// `RandomResizedCrop`: a window with a share of the area in `scale` and an aspect ratio (width over height) in `ratio`,
/// both given as low and high; after ten windows that do not fit, the middle one with the nearest possible ratio.
pub(super) fn resized_crop(
    height: usize,
    width: usize,
    scale: [f64; 2],
    ratio: [f64; 2],
    stream: &mut Stream,
) -> Window {
    let area = (height * width) as f64;
    for _ in 0..10 {
        let target = area * stream.range(scale[0], scale[1]);
        let aspect = log_uniform(ratio, stream);
        let w = (target * aspect).sqrt().round_ties_even() as usize;
        let h = (target / aspect).sqrt().round_ties_even() as usize;
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            return place(height, width, h, w, stream);
        }
    }
    let whole = width as f64 / height as f64;
    let (h, w) = if whole < ratio[0] {
        (((width as f64 / ratio[0]).round_ties_even() as usize).clamp(1, height), width)
    } else if whole > ratio[1] {
        (height, ((height as f64 * ratio[1]).round_ties_even() as usize).clamp(1, width))
    } else {
        (height, width)
    };
    Window { top: (height - h) / 2, left: (width - w) / 2, height: h, width: w }
}

/// `RandomErasing`: a window with a share of the area in `scale` and an aspect ratio (height over width) in `ratio`;
/// none if ten do not fit.
pub(super) fn erased(
    height: usize,
    width: usize,
    scale: [f64; 2],
    ratio: [f64; 2],
    stream: &mut Stream,
) -> Option<Window> {
    let area = (height * width) as f64;
    for _ in 0..10 {
        let target = area * stream.range(scale[0], scale[1]);
        let aspect = log_uniform(ratio, stream);
        let h = (target * aspect).sqrt().round_ties_even() as usize;
        let w = (target / aspect).sqrt().round_ties_even() as usize;
        if h < height && w < width {
            return Some(place(height, width, h, w, stream));
        }
    }
    None
}

/// A window of this size anywhere within the image.
pub(super) fn place(height: usize, width: usize, h: usize, w: usize, stream: &mut Stream) -> Window {
    let top = stream.below((height - h) as u64 + 1) as usize;
    let left = stream.below((width - w) as u64 + 1) as usize;
    Window { top, left, height: h, width: w }
}

/// Uniform in the logarithm. `libm`, because its results do not depend on the platform.
fn log_uniform([low, high]: [f64; 2], stream: &mut Stream) -> f64 {
    libm::exp(stream.range(libm::log(low), libm::log(high)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use equipoise_base::rng::Key;

    #[test]
    fn windows_fit() {
        for (height, width) in [(1, 1), (1, 500), (500, 1), (7, 5), (48, 64)] {
            for index in 0..200 {
                let mut stream = Key::new(0, "window").index(index).stream();
                let window = resized_crop(height, width, [0.08, 1.0], [0.75, 4.0 / 3.0], &mut stream);
                assert!(window.height >= 1 && window.top + window.height <= height, "{window:?}");
                assert!(window.width >= 1 && window.left + window.width <= width, "{window:?}");
                if let Some(window) = erased(height, width, [0.02, 0.33], [0.3, 3.3], &mut stream) {
                    assert!(window.top + window.height <= height && window.left + window.width <= width);
                }
            }
        }
    }

    /// Large shares fit less often, so the mean lies below the middle of the scale: 0.480, by the same rule in Python.
    #[test]
    fn areas_follow_the_scale() {
        let share = |index| {
            let mut stream = Key::new(0, "area").index(index).stream();
            let window = resized_crop(200, 200, [0.08, 1.0], [0.75, 4.0 / 3.0], &mut stream);
            (window.height * window.width) as f64 / 40_000.0
        };
        let mean = (0..4000).map(share).sum::<f64>() / 4000.0;
        assert!((mean - 0.480).abs() < 0.012, "{mean}");
    }
}
