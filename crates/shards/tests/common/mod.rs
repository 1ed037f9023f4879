//! Content shared by the tests of the file format.
#![allow(clippy::unwrap_used, dead_code, missing_docs)]

use equipoise_shards::{
    Codec, FeatureMeta, Features, Flags, Image, ImageShard, Matrix, Packed, PackedMeta, PackedRow, Row,
    ShardMeta, Spread, Statistics, StatisticsMeta,
};
use std::path::PathBuf;

pub const SHAPE: [usize; 3] = [8, 6, 3];

pub fn meta(codec: Codec) -> ShardMeta {
    ShardMeta {
        identity: "0123456789abcdef0123456789abcdef".into(),
        class: 3,
        class_name: "crème brûlée".into(),
        prompt: String::new(),
        first: 16,
        planned: 8,
        shape: SHAPE,
        codec,
        resize_filter: "bicubic".into(),
        criterion: "entropy".into(),
        guided_steps: 2,
        reproducible: true,
        tool_version: "0.1.0".into(),
    }
}

/// The image with this index within its class.
pub fn image(index: u64) -> Image {
    let [height, width, channels] = SHAPE;
    let pixels = (0..height * width * channels).map(|i| (i as u64 * 7 + index * 13) as u8).collect();
    Image::new(height, width, channels, pixels).unwrap()
}

/// Seven images of indices 16 to 23; 21 failed.
pub fn shard(codec: Codec) -> ImageShard {
    shard_of(codec, 16..24)
}

/// The images of these indices; 21 failed.
pub fn shard_of(codec: Codec, indices: std::ops::Range<u64>) -> ImageShard {
    let mut shard = ImageShard::new(meta(codec)).unwrap();
    for index in indices {
        if index == 21 {
            shard.push_failed(index).unwrap();
            continue;
        }
        let row = Row {
            index,
            group: index as i64 % 2 - 1,
            seed: u64::MAX - index,
            condition: (index != 17).then_some(100 + index),
            flags: if index == 18 { Flags::BLACK.with_sub_seed(2) } else { Flags::NONE },
        };
        shard.push(row, &codec.encode(&image(index)).unwrap(), &[0.5, index as f32]).unwrap();
    }
    shard
}

pub fn features(precision: &str) -> Features {
    let values: Vec<f32> = (0..12).map(|i| i as f32 / 4.0 - 1.0).collect();
    Features {
        meta: FeatureMeta {
            identity: "fedcba9876543210fedcba9876543210".into(),
            extractor: "resnet10".into(),
            weight_hash: "00ff00ff00ff00ff00ff00ff00ff00ff".into(),
            layer: "pool".into(),
            preprocessing: "resize 8 bicubic, normalize 0.5 0.5".into(),
            split: "train".into(),
            tool_version: "0.1.0".into(),
        },
        features: match precision {
            "float16" => Matrix::F16(values.iter().map(|&value| half::f16::from_f32(value)).collect()),
            "float64" => Matrix::F64(values.iter().map(|&value| value.into()).collect()),
            _ => Matrix::F32(values),
        },
        dim: 3,
        label: vec![0, 1, 1, 2],
        group: vec![-1, 0, 1, 0],
        index: vec![5, 6, 9, 40],
        source_xxh3: vec![1, u64::MAX, 3, 4],
    }
}

pub fn statistics(spread: Spread) -> Statistics {
    Statistics {
        meta: StatisticsMeta {
            identity: "aa".into(),
            source: "features/resnet10/train.h5".into(),
            split: "train".into(),
            eps: 1e-3,
            tool_version: "0.1.0".into(),
        },
        dim: 2,
        class: vec![0, 1, 4],
        count: vec![10, 5, 1],
        mean: vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
        spread,
    }
}

/// Four images in three classes, of one shape if raw, else of different ones.
pub fn packed(codec: Codec) -> Packed {
    let meta = PackedMeta {
        identity: "bb".into(),
        split: "train".into(),
        source: "a folder of photos".into(),
        resize_filter: "none".into(),
        part: 0,
        parts: 1,
        class_names: vec!["coat".into(), "shirt".into(), "bag".into()],
        group_names: vec![],
        bad_images: vec!["a/b.jpg: truncated".into()],
        tool_version: "0.1.0".into(),
    };
    let mut packed = Packed::new(meta, codec, codec.is_raw().then_some([2, 2, 1])).unwrap();
    for (i, label) in [2, 0, 2, 2].into_iter().enumerate() {
        let side = if codec.is_raw() { 2 } else { 2 + i };
        let image = Image::new(side, 2, 1, vec![i as u8 * 50; side * 2]).unwrap();
        let stored = if codec == Codec::Source { Codec::Png } else { codec }.encode(&image).unwrap();
        packed.push(PackedRow { label, group: -1, index: i as u64 * 10 }, &stored).unwrap();
    }
    packed.push_bad_image("a/ü.png: 16-bit");
    packed
}

/// A directory that is removed with the value, and a path in it.
pub fn scratch(name: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    (directory, path)
}
