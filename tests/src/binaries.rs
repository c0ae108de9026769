//! The real binaries, as a user runs them.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// `firebox-train` with these arguments, in the workspace's folder.
pub fn train(arguments: &[&str]) -> Command {
    command("firebox-train", arguments)
}

/// `firebox-infer` with these arguments, in the workspace's folder.
pub fn infer(arguments: &[&str]) -> Command {
    command("firebox-infer", arguments)
}

fn command(binary: &str, arguments: &[&str]) -> Command {
    let mut command =
        Command::new(folder().join(format!("{binary}{}", std::env::consts::EXE_SUFFIX)));
    command
        .args(arguments)
        .current_dir(workspace())
        .env_remove("RUST_LOG");
    command
}

/// The workspace's folder.
pub fn workspace() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Where the binaries are: beside the folder of the test that runs. Cargo builds no other package's
/// binaries for a test, so this does, in the same profile and with the same features.
fn folder() -> &'static PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let test = std::env::current_exe().expect("a test has a path");
        let folder = test
            .ancestors()
            .nth(2)
            .expect("target/profile/deps/test")
            .to_owned();
        let profile = match folder.file_name().and_then(|name| name.to_str()) {
            Some("debug") => "dev",
            Some(profile) => profile,
            None => panic!("{} is in no profile's folder", test.display()),
        };
        // A backend's name is its feature's. The default ones stay so, that what the test was built with serves the
        // binaries too, and these are not built anew for the tests that come after.
        let backends = firebox_runtime::device::backends().into_iter();
        let mut features: Vec<&str> = backends
            .filter_map(|backend| backend.compiled.then_some(backend.name))
            .collect();
        features.extend(cfg!(feature = "mpi").then_some("mpi"));
        let default = ["flex", "ndarray"]
            .iter()
            .all(|name| features.contains(name));
        let mut build = Command::new(env!("CARGO"));
        // Of this test, and no part of the binaries: build scripts that look at them would run again each time.
        let own = std::env::vars_os().map(|(name, _)| name).filter(|name| {
            let name = name.to_string_lossy();
            name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
        });
        own.for_each(|name| {
            build.env_remove(name);
        });
        let status = build
            .args(["build", "--workspace", "--bins", "--profile", profile])
            .args(["--features", &features.join(",")])
            .args((!default).then_some("--no-default-features"))
            .arg("--target-dir")
            .arg(folder.parent().expect("target/profile"))
            .current_dir(workspace())
            .status()
            .expect("cargo runs");
        assert!(status.success(), "the binaries do not build");
        folder
    })
}
