//! Prints the schema of the structure alone, every method accepting anything. The whole one, methods included, is
//! printed by a step binary: `cargo xtask schema`.

fn main() -> equipoise_base::Result<()> {
    println!("{:#}", equipoise_config::schema_for_recipe(&[])?);
    Ok(())
}
