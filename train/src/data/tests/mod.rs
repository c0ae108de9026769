//! A run's data as a whole, from files to tokens.

mod held_out;
mod pictures;
mod sources;
mod token_files;
mod tokens;
mod unchanged;

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::config::{RunConfig, load};

/// A folder with texts, a cache and a configuration that names them; and when it was made.
struct Workplace(tempfile::TempDir, SystemTime);

impl Workplace {
    fn new(documents: &[&str]) -> Self {
        let workplace = Self(tempfile::tempdir().unwrap(), SystemTime::now());
        for (index, text) in documents.iter().enumerate() {
            workplace.write(&format!("{index:03}.txt"), text);
        }
        workplace
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path().join(name), text).unwrap();
    }

    /// Sets when a text was last changed, in seconds before now.
    fn age(&self, name: &str, seconds: u64) {
        let file = fs::File::options().write(true).open(self.path().join(name));
        let time = self.1 - Duration::from_secs(seconds);
        file.unwrap().set_modified(time).unwrap();
    }

    fn config(&self, set: &[&str]) -> RunConfig {
        let folder = self.path().display();
        self.write(
            "run.toml",
            &format!(
                "[model]\nlayers = 1\nd_model = 8\nheads = 2\ncontext_length = 8\n\
                 [model.experts]\ncount = 2\ntop_k = 1\nd_ff = 8\n\
                 [tokenizer]\nkind = \"bytes\"\n\
                 [data]\ncache = '{folder}/cache'\n\
                 [data.validation]\nfraction = 0.25\n\
                 [[data.source]]\nname = \"texts\"\nfiles = ['{folder}/*.txt']\n\
                 [train]\nsteps = 1\n[optimizer]\nlearning_rate = 0.001\n[schedule]\nbatch_tokens = 8\n"
            ),
        );
        let set: Vec<String> = set.iter().map(|&set| set.to_owned()).collect();
        load(&self.path().join("run.toml"), &set).unwrap()
    }
}

const TEXTS: [&str; 8] = [
    "To be, or not to be",
    "that is the question:",
    "Whether 'tis nobler in the mind",
    "to suffer",
    "the slings and arrows",
    "of outrageous fortune,",
    "ørgreb våben mod et hav af plager",
    "and by opposing end them.",
];
