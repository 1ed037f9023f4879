//! Files open in plain h5py, with the names and types that `shards/README.md` promises.
#![allow(clippy::disallowed_methods, clippy::expect_used, clippy::unwrap_used, missing_docs)]

mod common;

use common::{features, packed, shard, statistics};
use equipoise_shards::{Codec, Spread};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A Python with h5py: the one named by the environment, the repository's own, or the system's.
fn python() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.venv/bin/python3");
    let named = std::env::var_os("EQUIPOISE_PYTHON").map(PathBuf::from);
    let has_h5py = |python: &PathBuf| {
        Command::new(python).args(["-c", "import h5py"]).output().is_ok_and(|output| output.status.success())
    };
    [named, Some(own), Some("python3".into())]
        .into_iter()
        .flatten()
        .find(has_h5py)
        .expect("no Python with h5py: `cargo xtask setup` installs one in .venv (or set EQUIPOISE_PYTHON)")
}

/// Writes the files of the shared test content into a directory and runs a script there.
fn run(script: &str) {
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes) in [
        ("raw.h5", shard(Codec::Raw).write()),
        ("png.h5", shard(Codec::Png).write()),
        ("features16.h5", features("float16").write()),
        ("features.h5", features("float32").write()),
        ("packed.h5", packed(Codec::Source).write()),
        ("statistics.h5", statistics(Spread::Precision { inverse: vec![2.0; 4], logdet: vec![0.5] }).write()),
    ] {
        std::fs::write(directory.path().join(name), bytes.unwrap()).unwrap();
    }
    let output = Command::new(python()).args(["-c", script]).current_dir(directory.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn h5py_reads_image_shards() {
    run(r#"
import h5py, numpy as np
raw, png = h5py.File("raw.h5"), h5py.File("png.h5")
expected = {"format_version": 1, "kind": b"image", "tool_version": b"0.1.0", "prompt": b"", "class": 3,
    "identity": b"0123456789abcdef0123456789abcdef", "class_name": "crème brûlée".encode(), "first": 16,
    "planned": 8, "codec": b"raw", "height": 8, "width": 6, "channels": 3, "resize_filter": b"bicubic",
    "criterion_name": b"entropy", "reproducible": True}
assert dict(raw.attrs) == expected, dict(raw.attrs)
assert dict(png.attrs) == expected | {"codec": b"png"}
indices = [16, 17, 18, 19, 20, 22, 23]
for f in raw, png:
    columns = {"label": ("<i8", [3] * 7), "group": ("<i8", [i % 2 - 1 for i in indices]), "index": ("<u8", indices),
        "seed": ("<u8", [2**64 - 1 - i for i in indices]), "flags": ("<u4", [0, 0, 0x202, 0, 0, 0, 0]),
        "condition": ("<i8", [-1 if i == 17 else 100 + i for i in indices]), "failed": ("<u8", [21]),
        "criterion": ("<f4", [[0.5, i] for i in indices])}
    for name, (dtype, values) in columns.items():
        assert f[name].dtype == dtype and f[name][:].tolist() == values, name
    assert f["xxh3"].dtype == "<u8" and f["xxh3"].shape == (7,)
images = raw["images"]
assert images.dtype == "u1" and images.shape == (7, 8, 6, 3) and images.chunks == (1, 8, 6, 3)
pixels = lambda index: (np.arange(144) * 7 + index * 13).astype("u1").reshape(8, 6, 3)
assert all((images[row] == pixels(index)).all() for row, index in enumerate(indices))
assert set(raw) == set(columns) | {"xxh3", "images"} and set(png) == set(columns) | {"xxh3", "encoded", "offsets"}
offsets = png["offsets"][:]
assert offsets.dtype == "<u8" and offsets.shape == (8,) and offsets[0] == 0 and offsets[-1] == len(png["encoded"])
assert all(png["encoded"][a:a + 4].tobytes() == b"\x89PNG" for a in offsets[:-1].tolist())
"#);
}

#[test]
fn h5py_reads_the_other_kinds() {
    run(r#"
import h5py, numpy as np
for name, dtype in ("features.h5", "float32"), ("features16.h5", "float16"):
    f = h5py.File(name)
    assert f["features"].dtype == dtype and f.attrs["dtype"].decode() == dtype
    assert (f["features"][:] == np.arange(12).reshape(4, 3) / 4 - 1).all()
    assert f["label"][:].tolist() == [0, 1, 1, 2] and f["label"].dtype == "<i8"
    assert f["group"][:].tolist() == [-1, 0, 1, 0] and f["group"].dtype == "<i8"
    assert f["index"][:].tolist() == [5, 6, 9, 40] and f["index"].dtype == "<u8"
    assert f["source_xxh3"][:].tolist() == [1, 2**64 - 1, 3, 4] and f["source_xxh3"].dtype == "<u8"
    attrs = {name: f.attrs[name].decode() for name in
        ("kind", "identity", "extractor", "weight_hash", "layer", "preprocessing", "split", "tool_version")}
    assert attrs == {"kind": "features", "identity": "fedcba9876543210" * 2, "extractor": "resnet10",
        "weight_hash": "00ff" * 8, "layer": "pool", "preprocessing": "resize 8 bicubic, normalize 0.5 0.5",
        "split": "train", "tool_version": "0.1.0"}, attrs
p = h5py.File("packed.h5")
assert p["class_names"].asstr()[:].tolist() == ["coat", "shirt", "bag"] and p["counts"][:].tolist() == [1, 0, 3]
assert p["bad_images"].asstr()[1] == "a/ü.png: 16-bit" and p["group_names"].shape == (0,)
assert p["label"][:].tolist() == [2, 0, 2, 2] and p["index"][:].tolist() == [0, 10, 20, 30]
assert p.attrs["codec"] == b"source" and p.attrs["parts"] == 1 and p.attrs["height"] == 0
s = h5py.File("statistics.h5")
assert s["class"][:].tolist() == [0, 1, 4] and s["count"][:].tolist() == [10, 5, 1]
assert s["mean"][:].tolist() == [[0, 1], [2, 3], [4, 5]] and s.attrs["eps"] == 1e-3
assert s["cov_inv"].shape == (1, 2, 2) and s["logdet"][:].tolist() == [0.5] and "cov" not in s
"#);
}

/// The data set class printed in `shards/README.md`, run as printed over a fake `torch`.
#[test]
fn the_dataset_of_the_readme_works() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shards/README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let code = readme
        .split("```python\n")
        .filter_map(|block| block.split("```").next())
        .find(|code| code.contains("class Shards"))
        .unwrap();
    let fake = r#"
import sys, types
torch = types.ModuleType("torch")
torch.from_numpy = lambda array: array
data = types.ModuleType("torch.utils.data")
data.Dataset = object
sys.modules |= {"torch": torch, "torch.utils": types.ModuleType("torch.utils"), "torch.utils.data": data}
"#;
    let check = r#"
s = Shards("raw.h5", "raw.h5")
assert len(s) == 14
image, label = s[13]
assert image.shape == (3, 8, 6) and label == 3
assert image[1, 2, 5] == ((2 * 18 + 5 * 3 + 1) * 7 + 23 * 13) % 256
assert (s[6][0] == image).all() and (s[0][0] != image).any()
"#;
    run(&format!("{fake}\n{code}\n{check}"));
}
