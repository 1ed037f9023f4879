use crate::run::{BAG, COAT, Run, stderr, stdout};
use crate::shards;
use equipoise_shards::Codec;
use serde_json::{Value, json};

/// Verifies, expects `problems` lines of which one has all of `words`, and returns what was printed.
fn problems(run: &Run, args: &[&str], problems: usize, words: &[&str]) -> String {
    let output = shards(&[&["verify", run.path()], args].concat());
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(1), "{text}{}", stderr(&output));
    assert_eq!(stderr(&output), "");
    assert_eq!(text.lines().count(), problems + 1, "{text}");
    let named = text.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(named, "{words:?} not in:\n{text}");
    text
}

#[test]
fn an_intact_run_has_no_problems() {
    let run = Run::new();
    run.add_set("other.k1", &[], Codec::Png);
    for args in [&[][..], &["--deep"], &["--sample", "1"], &["--deep", "--sample", "99"]] {
        let output = shards(&[&["verify", run.path()], args].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_eq!(stdout(&output), "6 shards, 16 images ok / 0 problems\n");
    }
    let output = shards(&["verify", run.path(), "--set", "other.k1", "--output", "json"]);
    let found: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let set = json!({"set": "other.k1", "shards": 3, "images": 8, "problems": []});
    assert_eq!(found, json!({"sets": [set], "shards": 3, "images": 8, "problems": 0}));
}

#[test]
fn missing_and_extra_files_are_named() {
    let run = Run::new();
    std::fs::remove_file(run.shard(BAG)).unwrap();
    problems(&run, &[], 1, &[BAG, "missing"]);
    problems(&run, &["--sample", "0"], 1, &[BAG, "missing"]);
    std::fs::write(run.shard("bag/bag-00003-of-00003.h5"), "x").unwrap();
    std::fs::write(run.shard("bag/.bag.h5.00000000-0123456789abcdef.tmp"), "unfinished").unwrap();
    let text = problems(&run, &[], 2, &["bag-00003-of-00003.h5", "not listed in index.json"]);
    assert!(text.ends_with("3 shards, 5 images ok / 2 problems\n"), "{text}");
    let output = shards(&["verify", run.path(), "--output", "json"]);
    let found: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let kinds: Vec<&Value> =
        found["sets"][0]["problems"].as_array().unwrap().iter().map(|problem| &problem["kind"]).collect();
    assert_eq!(kinds, ["missing", "extra"]);
}

#[test]
fn truncation_at_any_length_is_found() {
    let run = Run::new();
    let whole = std::fs::read(run.shard(BAG)).unwrap();
    for length in [0, 600, whole.len() - 1] {
        std::fs::write(run.shard(BAG), &whole[..length]).unwrap();
        problems(&run, &["--deep"], 1, &[BAG, &format!("{length} bytes instead of {}", whole.len())]);
        // With a matching size in the index, it is the file itself that tells.
        run.change_index(|index| index["shards"][2]["bytes"] = json!(length));
        problems(&run, &[], 1, &[BAG]);
        run.change_index(|index| index["shards"][2]["bytes"] = json!(whole.len()));
    }
}

#[test]
fn flipped_bits_anywhere_are_found() {
    let run = Run::new();
    let length = std::fs::metadata(run.shard(COAT[1])).unwrap().len() as usize;
    for (at, depth) in [(0, &[][..]), (100, &[]), (520, &["--deep"]), (length - 1, &[])] {
        let flip = |bytes: &mut Vec<u8>| bytes[at] ^= 4;
        run.change(&run.shard(COAT[1]), flip);
        problems(&run, depth, 1, &[COAT[1]]);
        run.change(&run.shard(COAT[1]), flip);
    }
}

#[test]
fn a_shard_in_the_place_of_another_is_found() {
    let run = Run::new();
    std::fs::copy(run.shard(COAT[0]), run.shard(BAG)).unwrap();
    problems(&run, &[], 1, &[BAG]);
    run.change_index(|index| {
        for key in ["bytes", "xxh3"] {
            index["shards"][2][key] = index["shards"][0][key].clone();
        }
    });
    problems(&run, &[], 1, &[BAG, "holds class 4, not 8"]);
}

#[test]
fn failed_images_are_a_problem_and_not_counted() {
    let run = Run::with(&[1, 3], Codec::Raw);
    let text = problems(&run, &["--deep"], 2, &[COAT[0], "1 image could not be made: 1"]);
    assert!(text.ends_with("3 shards, 6 images ok / 2 problems\n"), "{text}");
    run.change_index(|index| index["shards"][0]["failed"] = json!([2]));
    problems(&run, &[], 3, &[COAT[0], "index.json lists 2 and 1"]);
}

#[test]
fn a_damaged_index_is_a_problem_and_not_a_panic() {
    let run = Run::new();
    let path = run.set().join("index.json");
    let whole = std::fs::read(&path).unwrap();
    for bytes in [&b"[]"[..], b"\xff\xfe", &whole[..whole.len() / 2]] {
        std::fs::write(&path, bytes).unwrap();
        problems(&run, &[], 1, &["index.json"]);
    }
    std::fs::remove_file(&path).unwrap();
    problems(&run, &[], 1, &["plain.k0: the set is not complete"]);
    let change = |key: &str, value: Value, count: usize, words: &[&str]| {
        std::fs::write(&path, &whole).unwrap();
        run.change_index(|index| index["shards"][2][key] = value);
        problems(&run, &["--deep"], count, words);
    };
    change("path", json!("../../config.toml"), 3, &["index.json", "outside the set"]);
    change("path", json!("/etc/passwd"), 3, &["index.json", "outside the set"]);
    change("path", json!(COAT[0]), 4, &["lists", "twice"]);
    change("xxh3", json!("zz"), 1, &[BAG, "no checksum"]);
    change("images", json!(u64::MAX), 2, &[BAG]);
    change("class", json!(9), 1, &[BAG, "holds class 8, not 9"]);
    std::fs::write(&path, &whole).unwrap();
    run.change_index(|index| index["identity"] = json!("0".repeat(32)));
    problems(&run, &[], 3, &[BAG, "made with identity"]);
    std::fs::write(&path, &whole).unwrap();
    run.change_index(|index| drop(index["shards"].as_array_mut().unwrap().remove(1)));
    problems(&run, &[], 2, &["lists 3 of 5 planned images of class coat"]);
}
