//! Configurations: messages that say what to type instead, layers, and the way from `init` to `check`.

use crate::util::{Dir, RECIPE, images};
use serde_json::Value;

#[test]
fn a_typo_is_named_with_its_place_and_the_nearest_key() {
    let dir = Dir::new();
    dir.write("my.toml", &RECIPE.replace("[arms.ce]", "[arms.ce]\nglobl_batch = 64"));
    for command in [&["run"][..], &["plan"], &["config", "check"], &["config", "show"]] {
        let message = dir.equipoise(&[command, &["my.toml"]].concat()).fails(78);
        let expected =
            "error: my.toml:21:1: unknown key 'globl_batch' in [arms.ce]; did you mean 'global_batch'?";
        assert!(message.starts_with(expected), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
    assert!(!dir.path().join("runs").exists(), "nothing may be created");
}

#[test]
fn method_parameters_are_checked_too() {
    let dir = Dir::new();
    for (table, expected) in [
        (
            "loss = { kind = 'focl', gamma = 1.0 }",
            "my.toml:21:17: arms.ce.loss.kind cannot be 'focl'; did you mean 'focal'?",
        ),
        ("loss = { kind = 'focal' }", "my.toml:21:8: key 'gamma' is missing in [arms.ce.loss]"),
        ("arch.dept = 8", "my.toml:21:6: unknown key 'dept' in [arms.ce.arch]; did you mean 'depth'?"),
        ("optimizer.lr = 'fast'", "my.toml:21:16: arms.ce.optimizer.lr must be a number, not a string"),
        ("augment = [{ op = 'hflip', q = 1 }]", "my.toml:21:28: unknown key 'q' in [arms.ce.augment[0]]"),
    ] {
        dir.write("my.toml", &RECIPE.replace("[arms.ce]", &format!("[arms.ce]\n{table}")));
        let message = dir.equipoise(&["config", "check", "my.toml"]).fails(78);
        assert!(message.contains(expected), "{table}: expected {expected:?} in\n{message}");
    }
}

#[test]
fn all_faults_of_a_configuration_are_named_before_anything_is_made() {
    let dir = Dir::new();
    dir.write("my.toml", "[run]\nname = 3\nseed = -1\n[arsm.ce]\n");
    let message = dir.equipoise(&["run", "my.toml"]).fails(78);
    assert!(message.lines().count() >= 3, "{message}");
    assert!(!dir.path().join("runs").exists());
}

#[test]
fn a_missing_recipe_and_broken_text_are_bad_configurations() {
    let dir = Dir::new();
    assert!(dir.equipoise(&["run", "no.toml"]).fails(78).contains("no.toml: No such file"));
    dir.write("my.toml", "[run\n");
    assert!(dir.equipoise(&["run", "my.toml"]).fails(78).starts_with("error: my.toml:1:"));
}

#[test]
fn origins_name_layer_file_and_line() {
    let dir = Dir::new();
    dir.write(".config/equipoise/config.toml", "[run]\nroot = 'mine'\nranks = 3\n");
    dir.write("my.toml", RECIPE);
    let text = dir.equipoise(&["config", "show", "my.toml", "--origin", "--set", "run.seed=7"]).ok();
    let line =
        |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_string();
    assert!(line("name = \"small\"").ends_with("# recipe my.toml:3:8"), "{text}");
    assert!(
        line("ranks = 3").contains("# user ") && line("ranks = 3").ends_with("config.toml:3:9"),
        "{text}"
    );
    assert!(line("seed = 7").ends_with("# --set run.seed=7"), "{text}");
    assert!(line("threads = 1").contains("# default default.toml:"), "{text}");
    let root = dir.path().join(".config/equipoise/mine");
    assert!(
        line("root = ").contains(&format!("\"{}\"", root.display())),
        "paths start at the file that sets them"
    );

    let json = dir.equipoise(&["config", "show", "my.toml", "--origin", "--output", "json"]).ok();
    let rows: Vec<Value> = serde_json::from_str(&json).unwrap();
    let name = rows.iter().find(|row| row["key"] == "run.name").unwrap();
    assert_eq!(
        (&name["value"], &name["layer"], &name["line"]),
        (&"small".into(), &"recipe".into(), &3.into())
    );
}

#[test]
fn what_show_prints_can_be_used_again() {
    let dir = Dir::new();
    images(&dir);
    dir.write("my.toml", RECIPE);
    dir.write("other/shown.toml", &dir.equipoise(&["config", "show", "my.toml"]).ok());
    let identity = |file: &str| dir.equipoise(&["config", "check", file]).ok();
    assert_eq!(identity("my.toml"), identity("other/shown.toml"));
}

#[test]
fn recipes_from_init_are_valid() {
    let dir = Dir::new();
    let recipes: Vec<Value> =
        serde_json::from_str(&dir.equipoise(&["init", "--output", "json"]).ok()).unwrap();
    assert!(recipes.len() >= 4);
    for recipe in recipes {
        let name = recipe["name"].as_str().unwrap();
        dir.write("my.toml", &dir.equipoise(&["init", name]).ok());
        dir.equipoise(&["config", "show", "my.toml"]).ok();
    }
    let message = dir.equipoise(&["init", "quickstrat"]).fails(64);
    assert!(message.contains("there is no recipe 'quickstrat'; did you mean 'quickstart'?"), "{message}");
}

#[test]
fn problems_come_as_json_too() {
    let dir = Dir::new();
    dir.write("my.toml", &RECIPE.replace("seed", "sed").replace("name = \"small\"", "nmae = \"small\""));
    let ran = dir.equipoise(&["config", "check", "my.toml", "--output", "json"]);
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((ran.code, &report["valid"]), (78, &false.into()));
    assert!(
        report["problems"]
            .as_array()
            .unwrap()
            .iter()
            .any(|line| line.as_str().unwrap().starts_with("my.toml:3:1: "))
    );
}

#[test]
fn the_schema_is_json_schema() {
    let schema: Value = serde_json::from_str(&Dir::new().equipoise(&["config", "schema"]).ok()).unwrap();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert!(schema["properties"]["arms"].is_object());
}
