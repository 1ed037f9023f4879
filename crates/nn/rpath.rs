//! Build script shared by every package whose binaries or tests load libtorch.
//!
//! cargo's `[env]` does not reach the programs it builds, so the library's folder goes into their run path;
//! `LD_LIBRARY_PATH` still wins over it on a cluster.

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if let Ok(libtorch) = std::env::var("LIBTORCH") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{libtorch}/lib");
    }
}
