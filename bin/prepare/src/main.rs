//! Step binary `equipoise-prepare`: a short main over `stages`.

fn main() -> std::process::ExitCode {
    equipoise_stages::main(equipoise_stages::programs::run)
}
