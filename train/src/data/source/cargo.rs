//! The sources of packages that Cargo has put on this machine: real Rust and Markdown without a
//! download.
//!
//! What is read is chosen for variety within a small `max_bytes`, and for little repetition:
//! - packages come in the order of a hash of their name, files within a package by path;
//! - of several versions of a package, only the newest on this machine, which keeps near-copies of
//!   the training text out of the validation text;
//! - at most [`PACKAGE_BYTES`] of a package;
//! - no file above [`FILE_BYTES`], none that says at its start that it was generated, and no
//!   content twice.
//!
//! The same Cargo.lock gives the same documents wherever Cargo has fetched the same packages. A
//! build fetches those of its own platform and features; `cargo fetch` gets them all.

use std::collections::{BTreeMap, HashSet};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use walkdir::{DirEntry, WalkDir};

use super::super::error::DataError;
use super::super::hash::{Hash, hash};

/// Larger files are mostly bindings and tables.
const FILE_BYTES: u64 = 256 << 10;

/// Most bytes of one package.
const PACKAGE_BYTES: u64 = 256 << 10;

/// Where a generated file says so, in bytes from its start.
const HEADER_BYTES: usize = 512;

/// The files of all packages of the nearest Cargo.lock with one of these extensions. [`Distinct`]
/// decides which of them are read as documents.
pub(super) fn files(
    source_name: &str,
    extensions: &[String],
) -> Result<impl Iterator<Item = PathBuf> + use<>, DataError> {
    let lock = nearest_lock();
    let packages = registry_packages(&lock)?;
    let registry = registry_folder();
    let folders = newest_folders(&packages, &registry)?;
    if folders.is_empty() {
        let packages = packages.len();
        return Err(DataError::NoPackages {
            source_name: source_name.to_owned(),
            packages,
            lock,
            registry,
        });
    }
    tracing::debug!(
        "source {source_name:?}: {} packages of {}",
        folders.len(),
        lock.display()
    );
    let extensions = extensions.to_vec();
    Ok(folders
        .into_iter()
        .flat_map(move |folder| package_files(&folder, &extensions)))
}

/// The folder of one package, in the version of the nearest Cargo.lock, or else of Firebox's own.
pub(super) fn package_folder(source_name: &str, package: &str) -> Result<PathBuf, DataError> {
    let registry = registry_folder();
    let locks = [nearest_lock(), own_lock()];
    for lock in locks.iter().filter(|lock| lock.is_file()) {
        let mut packages = registry_packages(lock)?;
        packages.retain(|found| found.name == package);
        if let Some(folder) = newest_folders(&packages, &registry)?.pop() {
            return Ok(folder);
        }
    }
    Err(DataError::NoPackage {
        source_name: source_name.to_owned(),
        package: package.to_owned(),
        registry,
    })
}

/// Filters out copies and generated files.
#[derive(Debug, Default)]
pub(super) struct Distinct {
    seen: HashSet<Hash>,
}

impl Distinct {
    /// Whether `text` is neither generated nor equal to an earlier one.
    pub fn is_new(&mut self, text: &str) -> bool {
        !is_generated(text) && self.seen.insert(hash(text.as_bytes()))
    }
}

/// Cargo.lock in the working directory or above; otherwise that of Firebox itself.
fn nearest_lock() -> PathBuf {
    let here = env::current_dir().unwrap_or_default();
    here.ancestors()
        .map(|folder| folder.join("Cargo.lock"))
        .find(|lock| lock.is_file())
        .unwrap_or_else(own_lock)
}

/// Cargo.lock of Firebox, where it was built.
fn own_lock() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("Cargo.lock")
}

/// `$CARGO_HOME/registry/src`, with a folder for each registry.
fn registry_folder() -> PathBuf {
    let home = env::var_os("CARGO_HOME")
        .filter(|home| !home.is_empty())
        .map(PathBuf::from);
    let home = home.or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    home.unwrap_or_default().join("registry").join("src")
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Package {
    name: String,
    version: String,
    /// Absent for members of the workspace.
    source: Option<String>,
}

/// The packages that come from a registry.
fn registry_packages(lock: &Path) -> Result<Vec<Package>, DataError> {
    #[derive(Deserialize)]
    struct Lock {
        #[serde(default)]
        package: Vec<Package>,
    }
    let text = fs::read_to_string(lock).map_err(DataError::io("read", lock))?;
    let parsed: Lock = toml::from_str(&text).map_err(|error| DataError::CargoLock {
        path: lock.to_owned(),
        message: error.message().to_owned(),
    })?;
    let is_remote = |package: &Package| {
        let source = package.source.as_deref().unwrap_or_default();
        source.starts_with("registry+") || source.starts_with("sparse+")
    };
    Ok(parsed.package.into_iter().filter(is_remote).collect())
}

/// Folders of the newest version on this machine of each package, by a hash of the package's name.
fn newest_folders(packages: &[Package], registry: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut registries: Vec<PathBuf> = match fs::read_dir(registry) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(DataError::io("read", registry)(error)),
    };
    registries.sort();
    let mut newest: BTreeMap<&str, (&str, PathBuf)> = BTreeMap::new();
    for Package { name, version, .. } in packages {
        let folders = registries
            .iter()
            .map(|registry| registry.join(format!("{name}-{version}")));
        let Some(folder) = folders.into_iter().find(|folder| folder.is_dir()) else {
            continue;
        };
        match newest.get(name.as_str()) {
            Some((other, _)) if precedence(other) >= precedence(version) => {}
            _ => _ = newest.insert(name, (version, folder)),
        }
    }
    let mut folders: Vec<_> = newest.into_iter().collect();
    folders.sort_by_key(|(name, _)| hash(name.as_bytes()));
    Ok(folders.into_iter().map(|(_, (_, folder))| folder).collect())
}

/// Orders versions: numbers first, a release after its pre-releases, which go by their text.
fn precedence(version: &str) -> (Vec<u64>, bool, &str) {
    let version = version.split('+').next().unwrap_or_default();
    let (release, pre_release) = version.split_once('-').unwrap_or((version, ""));
    let numbers = release
        .split('.')
        .map(|number| number.parse().unwrap_or(0))
        .collect();
    (numbers, pre_release.is_empty(), pre_release)
}

/// Files of a package by path, no more than [`PACKAGE_BYTES`] together.
fn package_files(folder: &Path, extensions: &[String]) -> impl Iterator<Item = PathBuf> + use<> {
    let wanted: Vec<String> = extensions.to_vec();
    let has_extension = move |entry: &DirEntry| {
        let own = entry
            .path()
            .extension()
            .and_then(|extension| extension.to_str());
        own.is_some_and(|own| wanted.iter().any(|extension| extension == own))
    };
    let mut total = 0;
    WalkDir::new(folder)
        .sort_by_file_name()
        .into_iter()
        .flatten()
        .filter(move |entry| entry.file_type().is_file() && has_extension(entry))
        .filter_map(|entry| {
            let bytes = entry.metadata().ok()?.len();
            (bytes <= FILE_BYTES).then(|| (entry.into_path(), bytes))
        })
        .take_while(move |(_, bytes)| {
            total += bytes;
            total <= PACKAGE_BYTES
        })
        .map(|(path, _)| path)
}

fn is_generated(text: &str) -> bool {
    let header = text[..text.floor_char_boundary(HEADER_BYTES)].to_ascii_lowercase();
    ["@generated", "automatically generated", "generated by"]
        .iter()
        .any(|mark| header.contains(mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_is_taken_and_absent_packages_are_left_out() {
        let registry = tempfile::tempdir().unwrap();
        let index = registry.path().join("index-1");
        for package in ["a-1.9.0", "a-1.10.0", "a-1.10.0-rc.1", "b-0.1.0"] {
            fs::create_dir_all(index.join(package)).unwrap();
        }
        let package = |name: &str, version: &str| Package {
            name: name.to_owned(),
            version: version.to_owned(),
            source: None,
        };
        let packages = [
            package("a", "1.10.0"),
            package("a", "1.9.0"),
            package("a", "1.10.0-rc.1"),
            package("a", "2.0.0"),
            package("b", "0.1.0"),
            package("c", "0.1.0"),
        ];
        let mut folders = newest_folders(&packages, registry.path()).unwrap();
        folders.sort();
        assert_eq!(folders, [index.join("a-1.10.0"), index.join("b-0.1.0")]);
        assert!(
            newest_folders(&packages, &index.join("none"))
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn only_packages_of_registries_count() {
        let folder = tempfile::tempdir().unwrap();
        let lock = folder.path().join("Cargo.lock");
        let text = "version = 4\n[[package]]\nname = \"own\"\nversion = \"0.1.0\"\n\n[[package]]\nname = \"far\"\n\
                    version = \"1.0.0\"\nsource = \"registry+https://example.org/index\"\nchecksum = \"0\"\n";
        fs::write(&lock, text).unwrap();
        let packages = registry_packages(&lock).unwrap();
        assert_eq!(
            packages
                .iter()
                .map(|package| package.name.as_str())
                .collect::<Vec<_>>(),
            ["far"]
        );
        fs::write(&lock, "package = 3").unwrap();
        assert!(matches!(
            registry_packages(&lock),
            Err(DataError::CargoLock { .. })
        ));
    }

    #[test]
    fn a_package_gives_small_files_of_the_extension_by_path_up_to_its_limit() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: u64| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![b' '; bytes as usize]).unwrap();
        };
        write("src/b.rs", 100 << 10);
        write("src/a.rs", 100 << 10);
        write("src/bindings.rs", FILE_BYTES + 1);
        write("src/c.rs", 100 << 10);
        write("build.rs", 1);
        write("README.md", 1);
        let names: Vec<String> = package_files(folder.path(), &["rs".to_owned()])
            .map(|path| {
                path.strip_prefix(folder.path())
                    .unwrap()
                    .display()
                    .to_string()
            })
            .collect();
        assert_eq!(names, ["build.rs", "src/a.rs", "src/b.rs"]);
    }

    #[test]
    fn generated_files_say_so() {
        assert!(is_generated(
            "/* automatically generated by rust-bindgen */"
        ));
        assert!(is_generated("// This file is @generated"));
        assert!(!is_generated("pub fn generate() {}"));
        assert!(!is_generated(&format!("{}@generated", "é".repeat(300))));
    }
}
