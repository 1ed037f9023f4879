//! Damage of any kind is an error that names the file: never a panic, a crash or a hang.
#![allow(clippy::disallowed_methods, clippy::expect_used, clippy::unwrap_used, missing_docs)]

mod common;

use common::{features, packed, scratch, shard, statistics};
use equipoise_base::rng::Key;
use equipoise_base::{Error, ExitCode};
use equipoise_shards::{
    Codec, Depth, Expect, Features, GUARD_LEN, ImageShard, Packed, ShardReader, Spread, Statistics, verify,
};
use equipoise_testkit::figure;
use std::path::Path;

/// Everything that can open a file, none of which may crash; the deep verdict is returned.
fn try_all(path: &Path) -> Result<(), Error> {
    let _ = verify(path, Depth::Shallow, &Expect::default());
    if let Ok(reader) = ShardReader::open(path) {
        let _ = reader.rows(0..reader.len());
    }
    if let Ok(reader) = equipoise_shards::PackedReader::open(path) {
        let _ = reader.images(0..reader.len());
    }
    let _ = ImageShard::read(path);
    let _ = Packed::read(path);
    let _ = Features::read(path);
    let _ = Statistics::read(path);
    verify(path, Depth::Deep, &Expect::default()).map(drop)
}

/// Flipped bits for each of the five files.
const FLIPS: u64 = 200;

fn assert_names(error: &Error, path: &Path) {
    assert_eq!(error.code(), ExitCode::BadData, "{error}");
    assert!(error.to_string().starts_with(&path.display().to_string()), "{error}");
}

fn files() -> Vec<Vec<u8>> {
    vec![
        shard(Codec::Raw).write().unwrap().to_vec(),
        shard(Codec::Png).write().unwrap().to_vec(),
        packed(Codec::Source).write().unwrap().to_vec(),
        features("float32").write().unwrap().to_vec(),
        statistics(Spread::Covariance(vec![1.0; 4])).write().unwrap().to_vec(),
    ]
}

#[test]
fn every_truncation_is_found() {
    let (_guard, path) = scratch("t.h5");
    let mut cuts = 0;
    for bytes in files() {
        let ends = (0..bytes.len()).step_by(4096).chain([1, 9, 511, 512, 513, 600, bytes.len() - 1]);
        for end in ends {
            std::fs::write(&path, &bytes[..end]).unwrap();
            assert_names(&try_all(&path).unwrap_err(), &path);
            assert!(ImageShard::from_bytes("memory", &bytes[..end]).is_err());
            cuts += 1;
        }
        std::fs::write(&path, [&bytes[..], b"x"].concat()).unwrap();
        assert_names(&try_all(&path).unwrap_err(), &path);
    }
    figure("F9", "truncations found", cuts);
}

#[test]
fn every_flipped_bit_is_found() {
    let (_guard, path) = scratch("f.h5");
    for (number, bytes) in files().into_iter().enumerate() {
        let mut stream = Key::new(9, "flips").index(number as u64).stream();
        for _ in 0..FLIPS {
            let bit = stream.below(bytes.len() as u64 * 8) as usize;
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &damaged).unwrap();
            let error = try_all(&path).expect_err(&format!("bit {bit} of file {number}"));
            assert_names(&error, &path);
        }
    }
    figure("F9", "flipped bits found", format!("{} of {}", 5 * FLIPS, 5 * FLIPS));
}

/// As above with a guard that vouches for the damage, so that HDF5 and the structure checks are on their own.
#[test]
fn damage_behind_a_forged_guard_never_crashes() {
    let (_guard, path) = scratch("g.h5");
    for (number, bytes) in files().into_iter().enumerate() {
        let mut stream = Key::new(9, "forged").index(number as u64).stream();
        for _ in 0..150 {
            let mut damaged = bytes.clone();
            for _ in 0..=stream.below(3) {
                let bit = GUARD_LEN * 8 + stream.below((bytes.len() - GUARD_LEN) as u64 * 8) as usize;
                damaged[bit / 8] ^= 1 << (bit % 8);
            }
            reseal(&mut damaged);
            std::fs::write(&path, &damaged).unwrap();
            if let Err(error) = try_all(&path) {
                assert_names(&error, &path);
            }
        }
    }
    figure("F9", "forged files without a crash", 5 * 150);
}

/// Without any guard's help, a flip in a stored image is found by its own checksum.
#[test]
fn a_changed_pixel_is_found_by_the_image_checksum() {
    let (_guard, path) = scratch("p.h5");
    for codec in [Codec::Raw, Codec::Png] {
        let shard = shard(codec);
        let mut bytes = shard.write().unwrap().to_vec();
        let stored = shard.images().stored(4);
        let at = bytes.windows(stored.len()).position(|window| window == stored).unwrap();
        bytes[at + stored.len() / 2] ^= 4;
        reseal(&mut bytes);
        std::fs::write(&path, &bytes).unwrap();
        let reader = ShardReader::open(&path).unwrap();
        reader.rows(0..4).unwrap();
        let error = reader.rows(3..6).unwrap_err();
        assert!(error.to_string().ends_with("p.h5: image 20 is damaged (checksum)"), "{error}");
        assert!(verify(&path, Depth::Deep, &Expect::default()).is_err());
    }
}

#[test]
fn files_that_are_something_else_are_refused() {
    let (_guard, path) = scratch("e.h5");
    let noise: Vec<u8> = (0..5000).map(|i| (i * 31 % 251) as u8).collect();
    let mut guarded_noise = [&shard(Codec::Raw).write().unwrap()[..GUARD_LEN], &noise].concat();
    reseal(&mut guarded_noise);
    for bytes in [&b""[..], b"not HDF5", b"\x89HDF\r\n\x1a\n", &noise, &guarded_noise] {
        std::fs::write(&path, bytes).unwrap();
        assert_names(&try_all(&path).unwrap_err(), &path);
    }
}

/// Recomputes the length and checksum in the guard, as an attacker or a careless tool would.
fn reseal(bytes: &mut [u8]) {
    let text = String::from_utf8(bytes[..GUARD_LEN].to_vec()).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_string).collect();
    lines[4] = format!("bytes {}", bytes.len());
    lines[5] = format!("xxh3 {:016x}", equipoise_base::hash::xxh3(&bytes[GUARD_LEN..]));
    let mut block = (lines[..6].join("\n") + "\n").into_bytes();
    block.resize(GUARD_LEN - 1, b' ');
    block.push(b'\n');
    bytes[..GUARD_LEN].copy_from_slice(&block);
}
