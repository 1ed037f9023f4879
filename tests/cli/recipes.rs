//! The recipes of seed 002 at full size, planned over stand-ins with the published numbers of images: nothing is decoded.

use crate::util::{Dir, REPOSITORY};
use serde_json::Value;

/// Images per class of ImageNet-LT, as committed.
fn imagenet_lt() -> Vec<u64> {
    let file = format!("{REPOSITORY}/configs/classes/imagenet-lt-counts.txt");
    let text = std::fs::read_to_string(file).unwrap();
    text.lines().filter(|line| !line.starts_with('#')).map(|line| line.parse().unwrap()).collect()
}

/// Training images per group of NICO++: 62,657 in 360 groups, 811 at most, none in ten. The paper prints no more.
fn nico() -> Vec<u64> {
    let mut counts = vec![177; 360];
    (0..360).step_by(36).for_each(|empty| counts[empty] = 0);
    counts[7] = 811;
    let mut left = 62_657 - counts.iter().sum::<u64>();
    for count in counts.iter_mut().skip(8).filter(|count| **count > 0) {
        let more = left.min(1);
        (*count, left) = (*count + more, left - more);
    }
    assert_eq!((counts.iter().sum::<u64>(), counts.iter().max(), left), (62_657, Some(&811), 0));
    counts
}

/// Writes what a recipe names: lists and weights that nothing looks into.
fn stand_ins(dir: &Dir) {
    dir.write("weights/stable-diffusion-2-1-unclip/model_index.json", "{}");
    dir.write("weights/resnet50-imagenet.safetensors", "");
}

fn imagenet_lists(dir: &Dir) {
    let counts = imagenet_lt();
    let list = |folder: &str, counts: &[u64]| {
        let of_class = |(class, &count): (usize, &u64)| {
            (0..count).map(move |image| format!("n{class:08}/{image}.JPEG {class}")).collect::<Vec<_>>()
        };
        let lines: Vec<String> = counts.iter().enumerate().flat_map(of_class).collect();
        lines.iter().map(|line| format!("{folder}/{line}\n")).collect::<String>()
    };
    dir.write("imagenet-lt/ImageNet_LT_train.txt", &list("train", &counts));
    dir.write("imagenet-lt/ImageNet_LT_val.txt", &list("train", &[20; 1000]));
    dir.write("imagenet-lt/ImageNet_LT_test.txt", &list("val", &[50; 1000]));
    let name =
        |class| if class == 46 { "African chameleon\n".to_string() } else { format!("class {class}\n") };
    dir.write("imagenet-lt/classnames.txt", &(0..1000).map(name).collect::<String>());
}

fn nico_metadata(dir: &Dir) {
    let mut text = String::from("filename,y,a,split\n");
    let mut rows = |split: u32, counts: &[u64]| {
        for (group, &count) in counts.iter().enumerate() {
            let (class, context) = (group / 6, group % 6);
            (0..count).for_each(|image| {
                text += &format!(
                    "public_dg_0416/train/{context}/{class}/{split}_{image}.jpg,{class},{context},{split}\n"
                );
            });
        }
    };
    let spread =
        |total: u64| (0..360).map(|group| total / 360 + u64::from(group < total % 360)).collect::<Vec<u64>>();
    rows(0, &nico());
    rows(1, &spread(8_726));
    rows(2, &spread(17_483));
    dir.write("nico/metadata.csv", &text);
    dir.write("nico/classes.txt", &(0..60).map(|class| format!("class {class}\n")).collect::<String>());
}

/// The plan of a recipe as a user gets it; this machine need not have the space.
fn plan(dir: &Dir, recipe: &str) -> Value {
    dir.write("my.toml", &dir.equipoise(&["init", recipe]).ok());
    let ran = dir.equipoise(&["plan", "my.toml", "--output", "json"]);
    assert!(
        ran.code == 0 || (ran.code == 73 && ran.err.contains("the plan needs")),
        "{}: {}",
        ran.code,
        ran.err
    );
    serde_json::from_str(&ran.out).unwrap()
}

fn sets(plan: &Value) -> Vec<(&str, u64)> {
    plan["sets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|set| (set["name"].as_str().unwrap(), set["images"].as_u64().unwrap()))
        .collect()
}

/// Real and synthetic images of each row of a set's plan.
fn rows(set: &Value) -> Vec<(u64, u64)> {
    let number = |row: &Value, key: &str| row[key].as_u64().unwrap();
    set["classes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (number(row, "real"), number(row, "synthetic")))
        .collect()
}

fn stages(plan: &Value) -> Vec<&str> {
    plan["stages"].as_array().unwrap().iter().map(|stage| stage["name"].as_str().unwrap()).collect()
}

#[test]
fn imagenet_lt_takes_1_184_154_images() {
    let dir = Dir::new();
    stand_ins(&dir);
    imagenet_lists(&dir);
    let main = plan(&dir, "fg-imagenet-lt");
    assert_eq!(sets(&main), [("entropy", 1_184_154)]);
    let rows_of_entropy = rows(&main["sets"][0]);
    assert_eq!(rows_of_entropy.len(), 1000);
    assert!(rows_of_entropy.iter().all(|(real, synthetic)| real + synthetic == 1300));
    assert!(main["sets"][0]["files"].as_u64().unwrap() < 20_000, "{}", main["sets"][0]["files"]);
    let images = |name: &str| {
        let splits = main["splits"].as_array().unwrap();
        splits.iter().find(|split| split["name"] == name).unwrap()["images"].as_u64().unwrap()
    };
    assert_eq!(["train", "val", "test"].map(images), [115_846, 20_000, 50_000]);

    let others = plan(&dir, "fg-imagenet-lt-rows");
    let six = ["txt", "txt-img", "dropout", "loss", "hardness", "entropy"];
    assert_eq!(sets(&others), six.map(|name| (name, 1_184_154)));
    let names = stages(&others);
    let arms = six.iter().chain(&["alpha-0", "alpha-25", "alpha-50", "alpha-75", "images-100", "images-900"]);
    arms.for_each(|arm| assert!(names.contains(&format!("train.{arm}.k0.s0").as_str()), "{arm}: {names:?}"));
    assert!(names.contains(&"statistics-pooled.g"), "{names:?}");

    let quality = plan(&dir, "fg-imagenet-lt-quality");
    assert_eq!(sets(&quality)[..6], six.map(|name| (name, 20_000)));
    assert_eq!((sets(&quality).len(), stages(&quality).contains(&"grid")), (9, true));
    let unknown = dir.equipoise(&["plan", "my.toml", "--set", "grid.classes=['African camelion']"]).fails(78);
    assert!(unknown.contains("grid.classes") && unknown.contains("African chameleon"), "{unknown}");
}

#[test]
fn nico_takes_229_303_images_of_360_groups() {
    let dir = Dir::new();
    stand_ins(&dir);
    nico_metadata(&dir);
    let plan = plan(&dir, "fg-nico");
    assert_eq!(sets(&plan), ["ldm", "loss", "hardness", "entropy"].map(|name| (name, 229_303)));
    for set in plan["sets"].as_array().unwrap() {
        let rows = rows(set);
        assert_eq!(rows.iter().map(|row| row.0).collect::<Vec<u64>>(), nico());
        assert!(rows.iter().all(|(real, synthetic)| real + synthetic == 811));
        assert_eq!(rows[36], (0, 811));
        assert_eq!(set["classes"][8]["class"], "class 1/grass");
    }
    let names = stages(&plan);
    assert!(names.contains(&"train.erm.s4") && names.contains(&"train.entropy.k0.s4"), "{names:?}");
}

/// Whoever begins without the data is told what to get, one path at a time.
#[test]
fn what_is_missing_is_named() {
    let dir = Dir::new();
    for (recipe, list) in
        [("fg-imagenet-lt", "imagenet-lt/ImageNet_LT_train.txt"), ("fg-nico", "nico/metadata.csv")]
    {
        dir.write("my.toml", &dir.equipoise(&["init", recipe]).ok());
        let names = if recipe == "fg-nico" { "nico/classes.txt" } else { "imagenet-lt/classnames.txt" };
        let missing = |path: &str, code: i32| {
            let message = dir.equipoise(&["plan", "my.toml"]).fails(code);
            assert!(message.contains(path), "{path}: {message}");
        };
        missing(names, 78);
        dir.write(names, "a\nb\n");
        missing("weights/", 78);
        stand_ins(&dir);
        missing(list, 74);
        std::fs::remove_dir_all(dir.path().join("weights")).unwrap();
    }
}

#[test]
fn recipes_are_listed_with_what_they_do() {
    let dir = Dir::new();
    let listed = dir.equipoise(&["init"]).ok();
    for recipe in ["fg-imagenet-lt", "fg-imagenet-lt-rows", "fg-imagenet-lt-quality", "fg-nico"] {
        let line = listed.lines().find(|line| line.split_whitespace().next() == Some(recipe));
        assert!(line.is_some_and(|line| line.contains("seed 002")), "{recipe}: {listed}");
    }
}
