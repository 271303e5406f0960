//! The committed code is that generated from the `.proto` files.

use std::path::Path;

const SOURCES: [&str; 3] =
    ["swarmline/v1/types.proto", "swarmline/v1/stage.proto", "swarmline/v1/coordinator.proto"];
const GENERATED: &str = "swarmline.v1.rs";
/// The folder of this package, where cargo starts tests. The folder known at compile time is no use: checkouts that
/// share a target folder share test binaries.
const PACKAGE: &str = ".";
/// Environment variable; 1 makes the test write the committed file instead of comparing with it.
const WRITE: &str = "SWARMLINE_WRITE_GENERATED";

#[test]
fn committed_code_matches_the_proto_files() {
    let fresh = generate();
    let committed = Path::new(PACKAGE).join("src/gen").join(GENERATED);
    if std::env::var_os(WRITE).is_some_and(|value| value == "1") {
        std::fs::write(&committed, fresh).unwrap();
        return;
    }
    assert!(
        std::fs::read_to_string(&committed).unwrap() == fresh,
        "{} is out of date; run: {WRITE}=1 cargo test -p swarmline-proto --test generated",
        committed.display(),
    );
}

/// The code without transport, which would offer an unencrypted connection.
fn generate() -> String {
    let descriptors = protox::compile(SOURCES, [PACKAGE]).expect("the proto files are valid");
    let out = tempfile::tempdir().expect("a temporary directory can be made");
    let generator = tonic_prost_build::configure().build_transport(false).out_dir(out.path());
    generator.compile_fds(descriptors).expect("code can be generated");
    std::fs::read_to_string(out.path().join(GENERATED)).expect("code was generated")
}
