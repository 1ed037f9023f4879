//! What is written is what is read, whoever reads it and whenever it is written.
#![allow(clippy::disallowed_methods, clippy::expect_used, clippy::unwrap_used, missing_docs)]

mod common;

use common::{features, image, packed, scratch, shard, shard_of, statistics};
use equipoise_base::ExitCode;
use equipoise_shards::{
    Codec, Depth, Expect, Features, Flags, ImageShard, Kind, Packed, ShardReader, Spread, Statistics, verify,
};

const CODECS: [Codec; 3] = [Codec::Raw, Codec::Png, Codec::Jpeg(90)];

#[test]
fn image_shards_round_trip_through_bytes_and_files() {
    for codec in CODECS {
        let shard = shard(codec);
        let bytes = shard.write().unwrap();
        assert_eq!(ImageShard::from_bytes("memory", &bytes).unwrap(), shard);
        let (_guard, path) = scratch("s.h5");
        std::fs::write(&path, &bytes).unwrap();
        let read = ImageShard::read(&path).unwrap();
        assert_eq!(read, shard);
        assert_eq!((read.len(), read.failed(), read.next_index()), (7, &[21][..], 24));
        assert!(read.is_finished());
        assert_eq!(read.rows()[2].flags, Flags::BLACK.with_sub_seed(2));
        assert_eq!(read.rows()[1].condition, None);
        assert_eq!(read.criterion(2), [0.5, 18.0]);
        if codec != Codec::Jpeg(90) {
            assert_eq!(read.images().decode(6).unwrap(), image(23));
        }
    }
}

#[test]
fn rows_are_read_by_range() {
    for codec in CODECS {
        let shard = shard(codec);
        let (_guard, path) = scratch("s.h5");
        std::fs::write(&path, shard.write().unwrap()).unwrap();
        let reader = ShardReader::open(&path).unwrap();
        let some = reader.rows(2..5).unwrap();
        assert_eq!(some.rows(), &shard.rows()[2..5]);
        assert_eq!(some.images().stored(1), shard.images().stored(3));
        assert_eq!(some.criterion(2), shard.criterion(4));
        assert!(reader.rows(7..7).unwrap().is_empty());
        let error = reader.rows(5..8).unwrap_err();
        assert!(error.to_string().contains("s.h5: has 7 rows, not 5..8"), "{error}");
    }
}

#[test]
fn a_part_and_the_rest_make_the_shard() {
    let part = shard_of(Codec::Raw, 16..19);
    let bytes = part.write().unwrap();
    let part = ImageShard::from_bytes("part", &bytes).unwrap();
    assert_eq!(part.next_index(), 19);
    assert!(!part.is_finished());
    let rest = shard_of(Codec::Raw, 19..24);
    assert!(rest.write().is_err(), "the rest alone is no prefix");
    let whole = ImageShard::concat([part.clone(), rest.clone()]).unwrap();
    assert_eq!(whole.write().unwrap(), shard(Codec::Raw).write().unwrap());

    assert!(ImageShard::concat([rest.clone(), part.clone()]).is_err(), "out of order");
    assert!(ImageShard::concat([part.clone(), part.clone()]).is_err(), "overlap");
    assert!(ImageShard::concat([part, shard_of(Codec::Png, 19..24)]).is_err(), "different codecs");
    assert!(ImageShard::concat([]).is_err());
}

#[test]
fn shards_without_rows_or_guidance_are_files_too() {
    for codec in CODECS {
        let empty = shard_of(codec, 16..16);
        assert_eq!(ImageShard::from_bytes("empty", &empty.write().unwrap()).unwrap(), empty);
        let mut meta = common::meta(codec);
        meta.guided_steps = 0;
        let mut unguided = ImageShard::new(meta).unwrap();
        let row = shard(codec).rows()[0];
        unguided.push(row, &codec.encode(&image(16)).unwrap(), &[]).unwrap();
        assert_eq!(ImageShard::from_bytes("unguided", &unguided.write().unwrap()).unwrap(), unguided);
    }
}

#[test]
fn pushes_that_do_not_fit_are_errors() {
    let mut shard = shard_of(Codec::Raw, 16..18);
    let row = |index| equipoise_shards::Row { index, ..shard_of(Codec::Raw, 16..17).rows()[0] };
    let pixels = image(18).pixels;
    assert!(shard.push(row(17), &pixels, &[0.0; 2]).is_err(), "repeated");
    assert!(shard.push(row(24), &pixels, &[0.0; 2]).is_err(), "beyond the plan");
    assert!(shard.push(row(18), &pixels[1..], &[0.0; 2]).is_err(), "too few samples");
    assert!(shard.push(row(18), &pixels, &[0.0; 3]).is_err(), "criterion");
    shard.push(row(19), &pixels, &[0.0; 2]).unwrap();
    let error = shard.write().unwrap_err();
    assert!(error.to_string().contains("not a prefix"), "{error}");
}

#[test]
fn packed_splits_round_trip() {
    for codec in [Codec::Raw, Codec::Png, Codec::Source] {
        let packed = packed(codec);
        let bytes = packed.write().unwrap();
        let read = Packed::from_bytes("memory", &bytes).unwrap();
        assert_eq!(read, packed);
        assert_eq!(read.counts(), [1, 0, 3]);
        let (_guard, path) = scratch("train.h5");
        std::fs::write(&path, &bytes).unwrap();
        let reader = equipoise_shards::PackedReader::open(&path).unwrap();
        assert_eq!(reader.rows(), packed.rows());
        let images = reader.images(1..3).unwrap();
        assert_eq!(images.decode(1).unwrap(), packed.images().decode(2).unwrap());
        assert!(reader.images(3..5).is_err());
        assert_eq!(Packed::read(&path).unwrap(), packed);
    }
    let mut strange = packed(Codec::Raw);
    let row = equipoise_shards::PackedRow { label: 3, ..strange.rows()[0] };
    assert!(strange.push(row, &[0; 4]).is_err(), "a label without a name");
}

#[test]
fn features_round_trip_in_three_precisions() {
    for precision in ["float16", "float32", "float64"] {
        let features = features(precision);
        let read = Features::from_bytes("memory", &features.write().unwrap()).unwrap();
        assert_eq!(read, features);
        assert_eq!(read.features.dtype(), precision);
        assert_eq!(read.features.to_f64()[..2], [-1.0, -0.75]);
        assert_eq!(read.features.to_f32()[..2], [-1.0, -0.75]);
    }
    let mut ragged = features("float32");
    ragged.group.pop();
    assert_eq!(ragged.write().unwrap_err().code(), ExitCode::BadData);
}

#[test]
fn statistics_round_trip_pooled_and_per_class() {
    let spreads = [
        Spread::None,
        Spread::Covariance(vec![1.0, 0.5, 0.5, 2.0]),
        Spread::Covariance((0..12).map(f64::from).collect()),
        Spread::Precision { inverse: vec![1.0; 4], logdet: vec![0.25] },
        Spread::Precision { inverse: vec![1.0; 12], logdet: vec![0.25; 3] },
    ];
    for spread in spreads {
        let statistics = statistics(spread);
        let bytes = statistics.write().unwrap();
        assert_eq!(Statistics::from_bytes("memory", &bytes).unwrap(), statistics);
    }
    assert!(statistics(Spread::Covariance(vec![0.0; 5])).write().is_err());
    assert!(statistics(Spread::Precision { inverse: vec![0.0; 4], logdet: vec![] }).write().is_err());
}

#[test]
fn verify_knows_every_kind_and_compares_with_the_plan() {
    let (_guard, path) = scratch("file.h5");
    let files = [
        (Kind::Image, shard(Codec::Png).write().unwrap(), 7),
        (Kind::Packed, packed(Codec::Source).write().unwrap(), 4),
        (Kind::Features, features("float16").write().unwrap(), 4),
        (Kind::Statistics, statistics(Spread::None).write().unwrap(), 3),
    ];
    for (kind, bytes, rows) in files {
        std::fs::write(&path, &bytes).unwrap();
        for depth in [Depth::Shallow, Depth::Deep] {
            let expect = Expect { file_xxh3: Some(equipoise_base::hash::xxh3(&bytes)), ..Expect::default() };
            let verified = verify(&path, depth, &expect).unwrap();
            assert_eq!((verified.kind, verified.rows, verified.bytes), (kind, rows, bytes.len() as u64));
            let other = Expect { file_xxh3: Some(1), ..Expect::default() };
            assert!(verify(&path, depth, &other).unwrap_err().to_string().contains("was committed"));
        }
    }

    std::fs::write(&path, shard_of(Codec::Raw, 16..20).write().unwrap()).unwrap();
    let check = |expect: Expect| verify(&path, Depth::Shallow, &expect);
    assert!(check(Expect { class: Some(3), plan: Some((16, 8)), ..Expect::default() }).is_ok());
    for (expect, message) in [
        (Expect { class: Some(4), ..Expect::default() }, "holds class 3, not 4"),
        (
            Expect { plan: Some((0, 8)), ..Expect::default() },
            "planned as 8 images from index 16, not 8 from 0",
        ),
        (Expect { finished: true, ..Expect::default() }, "holds 4 of 8 planned images"),
        (Expect { identity: Some("else".into()), ..Expect::default() }, "not else"),
    ] {
        let error = check(expect).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
}

#[test]
fn a_file_of_another_kind_is_refused_by_name() {
    let (_guard, path) = scratch("file.h5");
    std::fs::write(&path, features("float32").write().unwrap()).unwrap();
    let error = ImageShard::read(&path).unwrap_err();
    assert!(error.to_string().contains("file.h5: is of kind features, not image"), "{error}");
    let error = Features::read(&path.with_file_name("missing.h5")).unwrap_err();
    assert_eq!(error.code(), ExitCode::BadData);
    assert!(error.to_string().contains("missing.h5: no such file"), "{error}");
    let error = Features::read(path.parent().unwrap()).unwrap_err();
    assert!(error.to_string().contains("not a regular file"), "{error}");
}

#[test]
fn threads_may_write_and_read_at_once() {
    let (_guard, path) = scratch("s.h5");
    let expected = shard(Codec::Raw).write().unwrap();
    std::fs::write(&path, &expected).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..10 {
                    assert_eq!(shard(Codec::Raw).write().unwrap(), expected);
                    assert_eq!(ShardReader::open(&path).unwrap().rows(3..4).unwrap().len(), 1);
                    assert!(ImageShard::from_bytes("memory", &expected[..900]).is_err());
                }
            });
        }
    });
}

/// Prints the checksums of all files; a child process runs this test with the variable set.
fn checksums() -> String {
    let files = [
        shard(Codec::Raw).write(),
        shard(Codec::Png).write(),
        shard(Codec::Jpeg(90)).write(),
        packed(Codec::Source).write(),
        features("float16").write(),
        statistics(Spread::Covariance(vec![1.0; 4])).write(),
    ];
    files.map(|bytes| format!("{:016x}", equipoise_base::hash::xxh3(&bytes.unwrap()))).join(" ")
}

#[test]
fn equal_content_gives_equal_bytes_in_any_process() {
    const CHILD: &str = "EQUIPOISE_TEST_CHECKSUMS";
    if std::env::var_os(CHILD).is_some() {
        println!("checksums: {}", checksums());
        return;
    }
    let first = checksums();
    // Memory that is not fresh, and a later second on the clock.
    let dirt: Vec<Vec<u8>> = (1..200).map(|i| vec![0xa5; i * 997]).collect();
    drop(dirt);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(checksums(), first);
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["equal_content_gives_equal_bytes_in_any_process", "--exact", "--nocapture"])
        .env(CHILD, "1")
        .env("MALLOC_PERTURB_", "85")
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(output.contains(&format!("checksums: {first}")), "{output}");
}
