use crate::run::{BAG, Run, stderr};
use crate::shards;
use equipoise_shards::{Codec, codec};

#[test]
fn a_sheet_has_one_row_per_class() {
    let run = Run::with(&[0], Codec::Raw);
    let show = |args: &[&str]| {
        let output = shards(&[&["show", run.path(), "--scale", "8"], args].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        codec::decode(&output.stdout).unwrap()
    };
    let all = show(&[]);
    // Two rows of 6 * 8 pixels, gutters of 2 around them.
    assert_eq!((all.height, all.channels), (2 * 48 + 3 * 2, 1));
    let [coats, by_number] = [show(&["--class", "coat"]), show(&["--class", "4", "--set", "plain.k0"])];
    assert_eq!(coats.height, 48 + 2 * 2);
    assert_eq!(coats, by_number);
    // One column less is one image less: 5 * 8 pixels and a gutter. Four coats are there, in two shards.
    assert_eq!(coats.width - show(&["--class", "coat", "--columns", "3"]).width, 42);
}

#[test]
fn a_file_is_written_whole_and_small_images_are_enlarged() {
    let run = Run::new();
    let file = run.join("sheet.png");
    let output = shards(&["show", run.path(), "-o", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(output.stdout.is_empty());
    let sheet = codec::decode(&std::fs::read(file).unwrap()).unwrap();
    assert!(sheet.height > 2 * 50, "{}", sheet.height);
}

#[test]
fn what_is_not_there_is_named() {
    let run = Run::new();
    run.add_set("other.k0", &[], Codec::Raw);
    for (args, code, words) in [
        (&["--set", "plain.k0", "--class", "boot"][..], 64, "no images of a class 'boot'"),
        (&[], 64, "--set NAME.kSEED is needed; there are: other.k0, plain.k0"),
        (&["--set", "none.k0"], 64, "there is no set 'none.k0'"),
        (&["--set", "plain.k0", "-o", "/no/such/folder/x.png"], 74, "/no/such/folder"),
    ] {
        let output = shards(&[&["show", run.path()], args].concat());
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
        assert_eq!(stderr(&output).lines().count(), 1);
    }
    run.change(&run.shard(BAG), |bytes| bytes.truncate(700));
    let output = shards(&["show", run.path(), "--set", "plain.k0"]);
    assert_eq!(output.status.code(), Some(65), "{}", stderr(&output));
    assert!(stderr(&output).contains(BAG), "{}", stderr(&output));
}
