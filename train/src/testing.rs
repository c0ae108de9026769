//! A run that takes milliseconds.

use std::fs;
use std::path::PathBuf;

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use firebox_model::language_model::LanguageModel;
use firebox_model::parameters::{VisitParameter, visit};
use firebox_runtime::device::{default_name, select};

use crate::config::{RunConfig, load};

const CONFIG: &str = r#"
[model]
layers = 1
d_model = 8
heads = 2
context_length = 8
[model.experts]
count = 2
top_k = 1
d_ff = 8
[tokenizer]
kind = "bytes"
[data]
cache = 'FOLDER/cache'
[data.validation]
fraction = 0.25
[[data.source]]
name = "text"
files = ['FOLDER/*.txt']
epochs = 10
[train]
steps = 4
[optimizer]
learning_rate = 0.01
[schedule]
warmup_steps = 2
batch_tokens = 24
"#;

/// The same of a model that sees pictures: some emoji.
const SEEING: &str = include_str!("testing/seeing.toml");

/// A folder with a text and a configuration.
pub struct SmallRun(tempfile::TempDir);

impl SmallRun {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..8 {
            let text = format!("{number} bottles hang upon the wall, and one of them may fall.\n");
            fs::write(folder.path().join(format!("{number}.txt")), text.repeat(3)).unwrap();
        }
        Self(folder).configured(CONFIG)
    }

    pub fn seeing() -> Self {
        Self(tempfile::tempdir().unwrap()).configured(SEEING)
    }

    fn configured(self, config: &str) -> Self {
        let text = config.replace("FOLDER", &self.0.path().display().to_string());
        fs::write(self.path("run.toml"), text).unwrap();
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn config(&self, set: &[&str]) -> RunConfig {
        let set: Vec<String> = set.iter().map(|&set| set.to_owned()).collect();
        load(&self.path("run.toml"), &set).unwrap()
    }
}

pub fn default_device() -> Device {
    select(default_name()).unwrap()
}

/// Path and bits of every parameter.
pub fn bits(model: &LanguageModel) -> Vec<(String, Vec<u32>)> {
    struct Bits(Vec<(String, Vec<u32>)>);
    impl VisitParameter for Bits {
        fn visit<const D: usize>(&mut self, path: &str, parameter: &Param<Tensor<D>>) {
            let data = parameter.val().into_data();
            let bits = data.iter::<f32>().map(f32::to_bits).collect();
            self.0.push((path.to_owned(), bits));
        }
    }
    let mut bits = Bits(Vec::new());
    visit(model, &mut bits);
    bits.0
}
