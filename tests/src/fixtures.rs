//! Reference checkpoints; see `fixtures/README.md`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The folder of one of them.
pub fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(case)
}

/// All of them: name and folder.
///
/// # Panics
///
/// When they are not there.
pub fn cases() -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(folder("")).expect("fixtures");
    let folders = entries.map(|entry| entry.expect("an entry").path());
    let mut cases: Vec<(String, PathBuf)> = folders
        .filter(|path| {
            ["config.json", "expected.safetensors"].map(|name| path.join(name).exists())
                == [true; 2]
        })
        .filter_map(|path| Some((path.file_name()?.to_str()?.to_owned(), path)))
        .collect();
    cases.sort();
    assert!(cases.len() >= 7, "fixtures are missing: {cases:?}");
    cases
}

/// Those of models that see pictures: name and folder.
pub fn seeing() -> [(String, PathBuf); 2] {
    ["vision/mllama", "vision/mllama-moe"].map(|name| (name.to_owned(), folder(name)))
}

/// Name and content of every file of a folder.
///
/// # Panics
///
/// When one cannot be read.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry"));
    let named = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().expect("a name");
        (name, fs::read(entry.path()).expect("a file"))
    };
    entries.map(named).collect()
}
