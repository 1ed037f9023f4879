//! `equipoise init`: a recipe to start from.

use crate::output::{self, Format};
use equipoise_base::{Error, ExitCode, Result};
use equipoise_config::examples::EXAMPLES;
use equipoise_config::nearest::hint;
use serde_json::json;

/// Print a commented recipe to start from, or list them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  equipoise init\n  equipoise init quickstart > my.toml\n  \
    equipoise init default > reference.toml   every key, explained")]
pub struct Args {
    /// Recipe; all are listed if left out.
    name: Option<String>,
    /// How to print the list.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

/// Prints or lists.
pub fn run(args: &Args) -> Result<ExitCode> {
    match (&args.name, args.output) {
        (Some(name), _) => output::line(text(name)?.trim_end()),
        (None, Format::Json) => {
            let recipes =
                EXAMPLES.iter().map(|recipe| json!({ "name": recipe.name, "summary": recipe.summary() }));
            output::json(&recipes.collect::<Vec<_>>());
        }
        (None, Format::Text) => {
            let row = |name: &str, summary: &str| vec![name.to_string(), summary.to_string()];
            let mut rows: Vec<_> = EXAMPLES.iter().map(|recipe| row(recipe.name, recipe.summary())).collect();
            rows.push(row("default", "Every key with its default, explained."));
            output::table(&["recipe", "what it does"], &rows, &[]);
        }
    }
    Ok(ExitCode::Done)
}

fn text(name: &str) -> Result<&'static str> {
    if name == "default" {
        return Ok(equipoise_config::DEFAULT);
    }
    let names: Vec<&str> = EXAMPLES.iter().map(|recipe| recipe.name).collect();
    let unknown =
        || Error::new(ExitCode::Usage, format!("there is no recipe '{name}'{}", hint(name, &names)));
    EXAMPLES.iter().find(|recipe| recipe.name == name).map(|recipe| recipe.text).ok_or_else(unknown)
}
