use crate::run::{BAG, COAT, Run, SHAPE, pixels, stderr, stdout};
use crate::shards;
use equipoise_shards::{Codec, codec};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn export(run: &Run, layout: &str, out: &Path, args: &[&str]) -> Output {
    shards(&[&["export", layout, run.path(), out.to_str().unwrap()], args].concat())
}

/// Files below a folder by relative path.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        match path.is_dir() {
            true => found
                .extend(files(&path).into_iter().map(|(below, bytes)| (format!("{name}/{below}"), bytes))),
            false => drop(found.insert(name, std::fs::read(&path).unwrap())),
        }
    }
    found
}

fn assert_checksums(out: &Path) {
    let listed = std::fs::read_to_string(out.join("checksums.sha256")).unwrap().lines().count();
    assert_eq!(listed + 1, files(out).len(), "every file but the list itself");
    let mut check = Command::new("sha256sum");
    let output = check.args(["--strict", "--check", "checksums.sha256"]).current_dir(out).output().unwrap();
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
}

/// Nothing hidden is left beside the destination.
fn assert_no_leftovers(run: &Run) {
    let hidden = files(Path::new(run.path())).into_keys().filter(|name| name.starts_with('.'));
    assert_eq!(hidden.collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn an_image_folder_holds_every_image() {
    for codec_of_set in [Codec::Raw, Codec::Png] {
        let run = Run::with(&[3], codec_of_set);
        let out = run.join("new/images");
        let output = export(&run, "imagefolder", &out, &[]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_eq!(stdout(&output), format!("7 images (1 could not be made): {}\n", out.display()));
        let files = files(&out);
        for (class, name, index) in [(4, "coat", 0), (4, "coat", 4), (8, "bag", 2)] {
            let image = codec::decode(&files[&format!("{name}/{index:08}.png")]).unwrap();
            assert_eq!((image.shape(), image.pixels), (SHAPE, pixels(class, index)));
        }
        assert!(!files.contains_key("coat/00000003.png"));
        assert_eq!(files.keys().filter(|name| name.ends_with(".png")).count(), 7);
        let classes: Value = serde_json::from_slice(&files["classes.json"]).unwrap();
        assert_eq!(classes, json!({"bag": 8, "coat": 4}));
        assert_checksums(&out);
        assert_no_leftovers(&run);
    }
}

/// Names and contents of an archive, in order, as tar reads them.
fn unpacked(archive: &Path) -> Vec<(String, Vec<u8>)> {
    let list = Command::new("tar").arg("-tf").arg(archive).output().unwrap();
    assert!(list.status.success(), "{}", stderr(&list));
    let content =
        |name: &str| Command::new("tar").arg("-xOf").arg(archive).arg(name).output().unwrap().stdout;
    stdout(&list).lines().map(|name| (name.to_string(), content(name))).collect()
}

#[test]
fn archives_hold_every_image_once_in_mixed_order() {
    let run = Run::new();
    let out = run.join("wds");
    let output = export(&run, "webdataset", &out, &["--set", "plain.k0", "--images-per-tar", "3"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_checksums(&out);
    let archives: Vec<PathBuf> = (0..3).map(|number| out.join(format!("plain.k0-{number:06}.tar"))).collect();
    assert_eq!(files(&out).len(), archives.len() + 2);
    let members: Vec<(String, Vec<u8>)> = archives.iter().flat_map(|archive| unpacked(archive)).collect();
    let mut order = Vec::new();
    for image in members.chunks(3) {
        let [(png_name, png), (cls_name, cls), (json_name, about)] = image else {
            panic!("{} files", image.len())
        };
        let key = png_name.strip_suffix(".png").unwrap();
        assert_eq!((cls_name, json_name), (&format!("{key}.cls"), &format!("{key}.json")));
        let about: Value = serde_json::from_slice(about).unwrap();
        let (label, index) = (about["label"].as_u64().unwrap(), about["index"].as_u64().unwrap());
        assert_eq!(key, format!("{label:05}-{index:08}"));
        assert_eq!(cls, label.to_string().as_bytes());
        assert_eq!(codec::decode(png).unwrap().pixels, pixels(label as u32, index));
        assert_eq!(about["seed"], format!("{:016x}", index << 60 | 1));
        assert_eq!(about["criterion"], json!([0.5, index as f32]));
        order.push((label, index));
    }
    let all: BTreeSet<(u64, u64)> =
        (0..5).map(|index| (4, index)).chain((0..3).map(|index| (8, index))).collect();
    assert_eq!((order.len(), order.iter().copied().collect::<BTreeSet<_>>()), (8, all.clone()));
    assert_ne!(order, all.into_iter().collect::<Vec<_>>(), "classes are mixed");
    assert_no_leftovers(&run);
    let again = run.join("again");
    export(&run, "webdataset", &again, &["--images-per-tar", "3"]);
    assert_eq!(files(&out), files(&again));
}

#[test]
fn nothing_is_overwritten() {
    let run = Run::new();
    let out = run.join("out");
    std::fs::create_dir(&out).unwrap();
    assert_eq!(export(&run, "imagefolder", &out, &[]).status.code(), Some(0), "an empty folder will do");
    for layout in ["imagefolder", "webdataset"] {
        let before = files(&out);
        let output = export(&run, layout, &out, &[]);
        assert_eq!(output.status.code(), Some(64), "{}", stderr(&output));
        assert!(stderr(&output).contains("nothing is overwritten"), "{}", stderr(&output));
        assert_eq!(files(&out), before);
    }
    std::fs::write(run.join("file"), "precious").unwrap();
    assert_eq!(export(&run, "imagefolder", &run.join("file"), &[]).status.code(), Some(64));
    assert_eq!(std::fs::read(run.join("file")).unwrap(), b"precious");
}

#[test]
fn damage_leaves_nothing_behind() {
    type Damage = fn(&Run);
    let damages: [(Damage, &str); 3] = [
        (|run| run.change(&run.shard(COAT[1]), |bytes| bytes[700] ^= 1), COAT[1]),
        (|run| std::fs::remove_file(run.shard(BAG)).unwrap(), BAG),
        (
            |run| {
                run.change(&run.shard(COAT[1]), |bytes| *bytes = std::fs::read(run.shard(COAT[0])).unwrap())
            },
            COAT[1],
        ),
    ];
    for (damage, named) in damages {
        let run = Run::new();
        damage(&run);
        for layout in ["imagefolder", "webdataset"] {
            let output = export(&run, layout, &run.join("out"), &[]);
            assert_eq!(output.status.code(), Some(65), "{}", stderr(&output));
            assert!(
                stderr(&output).contains(named) && stderr(&output).lines().count() == 1,
                "{}",
                stderr(&output)
            );
            assert!(!run.join("out").exists());
            assert_no_leftovers(&run);
        }
    }
}

#[test]
fn what_cannot_fit_is_not_begun() {
    let run = Run::new();
    run.change_index(|index| index["shards"][2]["images"] = json!(1u64 << 50));
    for layout in ["imagefolder", "webdataset"] {
        let output = export(&run, layout, &run.join("out"), &[]);
        assert_eq!(output.status.code(), Some(73), "{}", stderr(&output));
        assert!(!run.join("out").exists());
    }
}

/// What was exported comes back through the sources of a recipe, pixel for pixel.
#[test]
fn exports_are_read_back_as_sources() {
    use equipoise_catalog::Source;
    use equipoise_data::{ReadConfig, read};
    let run = Run::new();
    // Images of 6 x 5 pixels become the 5 x 5 in their middle, which begin with the first row.
    let config = ReadConfig { size: 5, channels: 1, ..ReadConfig::default() };
    for layout in ["imagefolder", "webdataset"] {
        let out = run.join(layout);
        assert_eq!(export(&run, layout, &out, &[]).status.code(), Some(0));
        let (source, classes) = match layout {
            // Folders are numbered by name: bag, coat.
            "imagefolder" => (Source::Folder { path: out }, [8, 4]),
            _ => (Source::Webdataset { path: out }, [0; 2]),
        };
        let split = read(&source, &config, 9).unwrap();
        let class = |label: u32| if layout == "imagefolder" { classes[label as usize] } else { label };
        let found: BTreeSet<(u32, Vec<u8>)> = split
            .images
            .labels
            .iter()
            .zip(split.images.pixels.chunks_exact(25))
            .map(|(&label, pixels)| (class(label), pixels.to_vec()))
            .collect();
        let all = (0..5).map(|index| (4, index)).chain((0..3).map(|index| (8, index)));
        let expected = all.map(|(class, index)| (class, pixels(class, index)[..25].to_vec())).collect();
        assert_eq!(found, expected, "{layout}");
    }
}
