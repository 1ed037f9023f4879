//! Compiles the C++ shim against the libtorch that `LIBTORCH` names, and puts its folder into the run path of this
//! package's tests (`rpath.rs` does the latter alone for the packages above).
//!
//! Only torch_cpu and c10 are linked: naming `-ltorch` would pull in CUDA libraries that a CPU installation lacks.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=csrc");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let Some(libtorch) = std::env::var_os("LIBTORCH").map(PathBuf::from) else {
        panic!("LIBTORCH is not set: run `cargo xtask setup`, or point it at a libtorch 2.11 folder");
    };
    let (include, lib) = (libtorch.join("include"), libtorch.join("lib"));
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .file("csrc/shim.cpp")
        .include(include.join("torch/csrc/api/include"))
        .include(include)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .flag("-w") // libtorch's own headers warn
        .compile("equipoise_shim");
    println!("cargo:rustc-link-search=native={}", lib.display());
    println!("cargo:rustc-link-lib=dylib=torch_cpu");
    println!("cargo:rustc-link-lib=dylib=c10");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
}
