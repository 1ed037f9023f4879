//! What Python users load: the code of docs/pytorch.md, run as it is printed, and every image compared by checksum.

use crate::run::{Run, stderr};
use crate::shards;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The test's own Python, as that of `crates/shards/tests/h5py.rs`.
fn python() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.venv/bin/python3");
    let named = std::env::var_os("EQUIPOISE_PYTHON").map(PathBuf::from);
    named.into_iter().chain([own]).find(|python| has(python, "h5py, PIL, webdataset")).unwrap_or_else(|| {
        panic!("no Python with h5py, PIL and webdataset: `cargo xtask setup` installs them in .venv")
    })
}

fn has(python: &Path, modules: &str) -> bool {
    let import = format!("import {modules}");
    Command::new(python).args(["-c", &import]).output().is_ok_and(|output| output.status.success())
}

/// The block of docs/pytorch.md that holds `word`.
fn printed(word: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/pytorch.md");
    let page = std::fs::read_to_string(page).unwrap();
    let mut blocks = page.split("```python\n").skip(1).filter_map(|block| block.split("```").next());
    blocks.find(|block| block.contains(word)).unwrap().to_string()
}

/// Runs `script` in `folder` after `sums`, the checksum of every image by class and index, straight from the shards.
fn check(folder: &Path, python: &Path, script: &str) {
    let sums = r#"
import glob, h5py, hashlib
digest = lambda pixels: hashlib.sha256(pixels).hexdigest()
sums = {}
for path in sorted(glob.glob("sets/plain.k0/*/*.h5")):
    with h5py.File(path, "r") as shard:
        for row, index in enumerate(shard["index"][:].tolist()):
            sums[int(shard["label"][row]), index] = digest(shard["images"][row].tobytes())
assert len(sums) == 8
"#;
    let script = format!("{sums}\n{script}");
    let output = Command::new(python).args(["-c", &script]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{script}\n{}", stderr(&output));
}

fn export(run: &Run, layout: &str) {
    let output = shards(&["export", layout, run.path(), run.join("out").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn an_image_folder_loads_with_equal_checksums() {
    let (run, python) = (Run::new(), python());
    export(&run, "imagefolder");
    let folder = run.join("");
    check(
        &folder,
        &python,
        r#"
import json, pathlib
from PIL import Image
labels = json.load(open("out/classes.json"))
found = {}
for path in pathlib.Path("out").glob("*/*.png"):
    found[labels[path.parent.name], int(path.stem)] = digest(Image.open(path).tobytes())
assert found == sums, (found, sums)
"#,
    );
    if !has(&python, "torchvision") {
        eprintln!("not run: torchvision is not installed (EQUIPOISE_PYTHON names a Python that has it)");
        return;
    }
    let script = r#"
import json
labels = json.load(open("out/classes.json"))
found = {}
for number, (path, label) in enumerate(images.samples):
    image, _ = images[number]
    found[labels[images.classes[label]], int(path.rsplit("/", 1)[1][:-4])] = digest(image.convert("L").tobytes())
assert found == sums, (found, sums)
"#;
    check(&folder, &python, &(printed("ImageFolder") + script));
}

#[test]
fn archives_load_with_webdataset_with_equal_checksums() {
    let (run, python) = (Run::new(), python());
    export(&run, "webdataset");
    let script = r#"
found = sorted((int(label), digest(image.convert("L").tobytes())) for image, label in samples)
assert found == sorted((label, sum) for (label, _), sum in sums.items()), found
"#;
    check(&run.join(""), &python, &(printed("webdataset") + script));
}

#[test]
fn the_data_set_of_the_page_is_that_of_the_specification_and_loads_in_workers() {
    let code = printed("class Shards");
    let specification = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shards/README.md");
    assert!(std::fs::read_to_string(specification).unwrap().contains(&code), "two versions of one class");
    let (run, python) = (Run::new(), python());
    if !has(&python, "torch") {
        eprintln!(
            "not run: torch is not installed (crates/shards/tests/h5py.rs runs the class over a stand-in)"
        );
        return;
    }
    let script = r#"
paths = sorted(glob.glob("sets/plain.k0/*/*.h5"))
loader = torch.utils.data.DataLoader(Shards(*paths), batch_size=3, num_workers=2)
found = [(int(label), digest(image.permute(1, 2, 0).contiguous().numpy().tobytes()))
         for images, labels in loader for image, label in zip(images, labels)]
assert sorted(found) == sorted((label, sum) for (label, _), sum in sums.items())
"#;
    check(&run.join(""), &python, &(code + script));
}
