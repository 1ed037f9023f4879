//! `equipoise config`: what a configuration comes to, whether it is valid, and what is allowed.

use super::RecipeArgs;
use crate::output::{self, Format};
use clap::Subcommand;
use equipoise_base::{ExitCode, Result};
use equipoise_config::{Resolved, SCHEMA, render};
use serde_json::{Value, json};

/// Show, check or describe configurations.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    equipoise config show my.toml --origin            which layer and line set each value\n  \
    equipoise config show my.toml --set run.seed=1\n  \
    equipoise config check my.toml                    every problem at once; exit 78 if there is one\n  \
    equipoise config schema > equipoise.schema.json   for editors")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print the resolved configuration.
    Show {
        #[command(flatten)]
        recipe: RecipeArgs,
        /// Say where each value was set.
        #[arg(long)]
        origin: bool,
        /// How to print.
        #[arg(long, value_enum, default_value_t)]
        output: Format,
    },
    /// Find everything that is wrong.
    Check {
        #[command(flatten)]
        recipe: RecipeArgs,
        /// How to print.
        #[arg(long, value_enum, default_value_t)]
        output: Format,
    },
    /// Print the JSON schema of recipes.
    Schema,
}

/// Shows, checks or describes.
pub fn run(args: &Args) -> Result<ExitCode> {
    match &args.what {
        What::Show { recipe, origin, output } => show(&recipe.resolve()?, *origin, *output),
        What::Check { recipe, output } => check(recipe.resolve(), *output),
        What::Schema => {
            output::line(SCHEMA.trim_end());
            Ok(ExitCode::Done)
        }
    }
}

fn show(resolved: &Resolved, origin: bool, format: Format) -> Result<ExitCode> {
    match (format, origin) {
        (Format::Text, origin) => output::line(render::to_toml(resolved.merged(), origin).trim()),
        (Format::Json, false) => output::json(&resolved.merged().to_value()),
        (Format::Json, true) => {
            let rows = render::leaves(resolved.merged()).into_iter().map(|(key, node)| {
                let origin = &node.origin;
                json!({
                    "key": key, "value": node.to_value(), "layer": origin.source.layer.name(),
                    "file": origin.source.name, "line": origin.line, "column": origin.column,
                })
            });
            output::json(&rows.collect::<Vec<Value>>());
        }
    }
    Ok(ExitCode::Done)
}

fn check(resolved: Result<Resolved>, format: Format) -> Result<ExitCode> {
    match (format, resolved) {
        (Format::Text, resolved) => {
            let resolved = resolved?;
            let stages = equipoise_config::stages(&resolved)?.len();
            output::line(format!("valid: {stages} stages, identity {}", resolved.identity()));
            Ok(ExitCode::Done)
        }
        (Format::Json, Ok(resolved)) => {
            output::json(&json!({ "valid": true, "identity": resolved.identity(), "problems": [] }));
            Ok(ExitCode::Done)
        }
        (Format::Json, Err(error)) => {
            let problems: Vec<&str> = error.message().lines().collect();
            output::json(&json!({ "valid": false, "problems": problems }));
            Ok(error.code())
        }
    }
}
