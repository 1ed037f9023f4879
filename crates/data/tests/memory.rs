//! F23: what decoding takes, measured. Its own process: the peak is that of the process.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

use equipoise_data::decode::{Limits, decode};
use equipoise_testkit::figure;
use image::{ExtendedColorType, ImageEncoder as _, codecs};

const SIDE: u32 = 3000;

/// Largest resident size since the last reset, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn reset_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

#[test]
fn the_largest_allowed_image_takes_at_most_twice_its_pixels() {
    // The deepest kind: 16 bits in three channels.
    let raw = vec![90u8; (SIDE * SIDE * 6) as usize];
    let mut deep = Vec::new();
    let encoder = codecs::png::PngEncoder::new(&mut deep);
    encoder.write_image(&raw, SIDE, SIDE, ExtendedColorType::Rgb16).unwrap();
    drop(raw);
    let limits = Limits { max_pixels: u64::from(SIDE * SIDE), ..Limits::default() };
    reset_peak();
    let before = peak();
    let image = decode(&deep, 3, &limits).unwrap();
    assert_eq!((image.height, image.width), (SIDE as usize, SIDE as usize));
    let taken = peak().saturating_sub(before);
    let largest = limits.max_pixels * 6;
    assert!(taken > largest / 2, "{taken} bytes: the peak was not measured");
    assert!(taken <= 2 * largest, "{taken} bytes for an image of {largest}");
    figure("F23", "memory by the size of the largest image", format!("{:.2}", taken as f64 / largest as f64));

    // One more pixel per row is refused before anything is allocated.
    let smaller = Limits { max_pixels: limits.max_pixels - 1, ..limits };
    drop(image);
    reset_peak();
    let before = peak();
    assert!(decode(&deep, 3, &smaller).unwrap_err().to_string().contains("max_pixels"));
    assert!(peak() - before < 4 << 20, "a refused image was decoded");
}
