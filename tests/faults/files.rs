//! Faults of files and file systems through the public commands: damaged shards, images that are none, no locks, too
//! little space (F8, F9, F23, F31).

use crate::support::{PATIENCE, assert_same, copy_without, equipoise, finish, results, run};
use equipoise_testkit::{Process, TempRun, figure};
use std::path::{Path, PathBuf};
use std::process::Command;

fn shards(run: &Path) -> Vec<PathBuf> {
    let output = Command::new("find").arg(run.join("sets")).args(["-name", "*-of-*.h5"]).output().unwrap();
    let mut paths: Vec<PathBuf> =
        String::from_utf8(output.stdout).unwrap().lines().map(PathBuf::from).collect();
    paths.sort();
    paths
}

/// Exit code and output of a command.
fn outcome(command: Command) -> (Option<i32>, String) {
    let mut process = Process::spawn(command);
    let status = process.wait(PATIENCE);
    (status.code(), process.output())
}

/// F9: whatever is wrong with a shard, `verify` finds it, training refuses it with 65, and generation makes it again.
#[test]
fn a_damaged_shard_is_found_refused_and_made_again() {
    let finished = TempRun::default();
    finish(run(&finished.join("run"), 2, &[]));
    let expected = results(&finished.join("run"));
    type Damage = (&'static str, fn(&Path));
    let damages: [Damage; 4] = [
        ("a flipped bit", |path| change(path, |bytes| bytes[5000] ^= 16)),
        ("cut off", |path| change(path, |bytes| bytes.truncate(4096))),
        ("empty", |path| change(path, Vec::clear)),
        ("gone", |path| std::fs::remove_file(path).unwrap()),
    ];
    for (what, damage) in damages {
        let copy = copy_without(&finished, |name| name.starts_with("train.feedback"));
        let path = copy.join("run");
        let shard =
            shards(&path).into_iter().find(|shard| shard.to_string_lossy().contains("feedback.k0")).unwrap();
        damage(&shard);
        let name = shard.file_name().unwrap().to_str().unwrap();
        let (code, output) = outcome(equipoise(&["shards", "verify", path.to_str().unwrap()]));
        assert_eq!(code, Some(1), "{what}: {output}");
        assert!(output.contains(name), "{what}: {output}");
        let (code, output) = outcome(equipoise(&["resume", path.to_str().unwrap()]));
        assert!(matches!(code, Some(65 | 74)), "{what}: {code:?} {output}");
        assert!(output.contains(name), "{what}: {output}");
        // A shard is its own checkpoint: the stage, opened again, makes what is missing or invalid.
        std::fs::remove_file(path.join("stages/generate.feedback.k0/outcome.json")).unwrap();
        finish(equipoise(&["resume", path.to_str().unwrap()]));
        assert_same(&expected, &results(&path), what);
    }
    figure("F9", "damaged shards refused and made again", damages.len());
}

/// F9 for what other stages have made: what is gone or cut is noticed before anything starts and made again; what is
/// damaged is refused by its reader, which says what to do.
#[test]
fn lost_and_damaged_files_of_stages_are_made_again() {
    let finished = TempRun::default();
    finish(run(&finished.join("run"), 1, &[]));
    let expected = results(&finished.join("run"));
    for (name, reader) in [
        ("stages/prepare.train/split.h5", "train.ce"),
        ("stages/train.g/model.safetensors", "generate.feedback"),
        ("stages/diffusion/model.safetensors", "generate.feedback"),
        ("features/judge/test.h5", ""),
        ("stages/evaluate/results.json", ""),
    ] {
        let copy = copy_without(&finished, |stage| !reader.is_empty() && stage.starts_with(reader));
        let (path, file) = (copy.join("run"), copy.join("run").join(name));
        if !reader.is_empty() {
            change(&file, |bytes| *bytes.last_mut().unwrap() ^= 16);
            let (code, output) = outcome(equipoise(&["resume", path.to_str().unwrap()]));
            assert_eq!(code, Some(65), "{name}: {output}");
            assert!(output.contains(&format!("{name}: damaged")), "{output}");
            assert!(output.contains("remove it, and equipoise resume"), "{output}");
            std::fs::remove_file(&file).unwrap();
        } else {
            change(&file, |bytes| bytes.truncate(bytes.len() / 2));
        }
        let (code, output) = outcome(equipoise(&["resume", path.to_str().unwrap()]));
        assert_eq!(code, Some(0), "{name}: {output}");
        assert!(output.contains(&format!("{name} is gone or of another size")), "{output}");
        assert_same(&expected, &results(&path), name);
    }
}

fn change(path: &Path, with: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    with(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

/// F8: a plan that does not fit is refused before anything is made, saying what it needs and what there is.
#[test]
fn a_run_that_does_not_fit_is_refused_before_its_first_stage() {
    let folder = TempRun::default();
    let path = folder.join("run");
    let (code, output) = outcome(run(&path, 1, &["generate.plan.n=1_000_000_000_000"]));
    assert_eq!(code, Some(73), "{output}");
    let line = output.lines().find(|line| line.contains("needs")).unwrap_or_default();
    assert!(line.contains("free"), "required and free must be told: {output}");
    assert!(!path.join("stages").exists(), "nothing may be begun");
    figure("F8", "stages begun of a plan that does not fit", 0);
}

/// F23: a folder of photos with everything in it that people's folders hold.
#[test]
fn a_folder_with_bad_images_is_prepared_without_them_or_refused() {
    let folder = TempRun::default();
    photos(&folder);
    let recipe = |max_bad: &str| {
        folder.write("my.toml", RECIPE.replace("MAX_BAD", max_bad));
        let mut command = equipoise(&["run", folder.join("my.toml").to_str().unwrap(), "--run"]);
        command.arg(folder.join(format!("run-{max_bad}")));
        command
    };
    let (code, output) = outcome(recipe("0.001"));
    assert_eq!(code, Some(65), "{output}");
    assert!(output.contains("image files are bad") && output.contains("data.max_bad = 0.001"), "{output}");
    finish(recipe("0.5"));
    let summary = std::fs::read(folder.join("run-0.5/stages/prepare.train/summary.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_slice(&summary).unwrap();
    assert_eq!((&summary["images"], &summary["left_out"]), (&7.into(), &4.into()), "{summary}");
    let log = folder.join("run-0.5/stages/prepare.train/logs/1/rank-0000.log");
    let log = std::fs::read_to_string(log).unwrap();
    for reason in [
        "bomb.png: 30000 x 30000 is more than max_pixels",
        "empty.jpg: the file is empty",
        "text.jpg: neither JPEG nor PNG",
        "torn.png: damaged",
    ] {
        assert!(log.contains(reason), "{reason}:\n{log}");
    }
    figure("F23", "good and odd images taken, bad ones named", "7, 4");
}

const RECIPE: &str = r#"
schema = 1
[run]
name = "photos"
device = "cpu"
[data]
name = "photos"
root = "images"
size = [8, 8]
channels = 3
classes = ["a", "b"]
max_bad = MAX_BAD
[data.splits]
train.source = { format = "folder", path = "." }
test.source = { format = "folder", path = "." }
[classifier]
arch = { kind = "cifar_resnet", depth = 8, width = 4, stem_stride = 1, normalized_head = false }
steps = 1
global_batch = 2
micro_batch = 2
[arms.ce]
[evaluate]
splits = ["test"]
"#;

/// Seven images, some of them odd, and four files that are none.
fn photos(folder: &TempRun) {
    let grey = png(2, 2, 0, 8, &[0, 10, 200, 0, 30, 90]);
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/data/tests/files");
    let cmyk = std::fs::read(fixtures.join("cmyk.jpg")).unwrap();
    folder.write("images/a/plain.png", &grey);
    folder.write("images/a/deep.png", png(1, 1, 0, 16, &[0, 0x80, 0x10]));
    folder.write("images/a/one-pixel.png", png(1, 1, 2, 8, &[0, 255, 0, 0]));
    folder.write("images/a/alpha.png", png(1, 1, 6, 8, &[0, 1, 2, 3, 0]));
    folder.write("images/a/cmyk.jpg", &cmyk);
    folder.write("images/a/turned.jpg", turned(&cmyk));
    folder.write("images/b/plain.png", &grey);
    folder.write("images/b/bomb.png", png(30_000, 30_000, 0, 8, &[0]));
    folder.write("images/b/empty.jpg", "");
    folder.write("images/b/text.jpg", "not an image");
    folder.write("images/b/torn.png", &grey[..grey.len() - 20]);
}

/// A PNG file of these filtered rows, in a stored deflate block.
fn png(width: u32, height: u32, color: u8, depth: u8, rows: &[u8]) -> Vec<u8> {
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    header.extend([depth, color, 0, 0, 0]);
    let length = rows.len() as u16;
    let mut data = vec![0x78, 1, 1];
    data.extend(length.to_le_bytes());
    data.extend((!length).to_le_bytes());
    data.extend_from_slice(rows);
    let (a, b) = rows.iter().fold((1u32, 0u32), |(a, b), &byte| {
        let a = (a + u32::from(byte)) % 65_521;
        (a, (b + a) % 65_521)
    });
    data.extend((b << 16 | a).to_be_bytes());
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, content) in [(b"IHDR", &header[..]), (b"IDAT", &data), (b"IEND", &[])] {
        file.extend((content.len() as u32).to_be_bytes());
        let chunk = [&kind[..], content].concat();
        file.extend_from_slice(&chunk);
        file.extend(crc32(&chunk).to_be_bytes());
    }
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

/// A JPEG with the EXIF mark that it is to be shown turned by a quarter.
fn turned(jpeg: &[u8]) -> Vec<u8> {
    let exif = b"\xff\xe1\0\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    [&jpeg[..2], exif, &jpeg[2..]].concat()
}
