//! The files of a tokenizer in a checkpoint folder.
//!
//! `tokenizer.json` alone is not enough for `transformers.AutoTokenizer`: without a
//! `tokenizer_config.json` it takes the class from the model's type, which may split text in another way
//! (Qwen3's and OLMoE's do), and it does not know the EOS token.

use std::path::Path;
use std::sync::Arc;

use firebox_console::durable;
use serde_json::{Value, json};

use super::TOKENIZER_FILE;
use super::{Tokenizer, TokenizerError, read};

/// Names the tokenizer's class and its special tokens.
pub(super) const CONFIG: &str = "tokenizer_config.json";
/// Names the special tokens alone.
pub(super) const SPECIAL_TOKENS: &str = "special_tokens_map.json";
/// A chat template alone.
pub(super) const TEMPLATE: &str = "chat_template.jinja";

/// The files that Hugging Face stores next to a `tokenizer.json`.
const COMPANIONS: [&str; 9] = [
    CONFIG,
    SPECIAL_TOKENS,
    "added_tokens.json",
    "generation_config.json",
    TEMPLATE,
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
];

/// The companion files of a `tokenizer.json`, by name.
///
/// Kept in memory, since the folder may have been deleted by the time a checkpoint is written.
#[derive(Debug, Clone, Default)]
pub(super) struct Companions(Arc<[(&'static str, Vec<u8>)]>);

impl Companions {
    /// The content of a file, if it is there.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let (_, content) = self.0.iter().find(|(own, _)| *own == name)?;
        Some(content)
    }

    /// The token that ends a text, as tokenizer_config.json or special_tokens_map.json name it; either spells a token as
    /// its text or as an object with its text.
    pub fn eos_token(&self) -> Option<String> {
        [CONFIG, SPECIAL_TOKENS].into_iter().find_map(|file| {
            let value: Value = serde_json::from_slice(self.get(file)?).ok()?;
            token_text(&value["eos_token"])
        })
    }

    /// A chat template and nothing else.
    pub fn of_template(template: &str) -> Self {
        Self([(TEMPLATE, template.as_bytes().to_vec())].into())
    }

    /// Reads the companion files of a `tokenizer.json`.
    pub fn beside(path: &Path) -> Result<Self, TokenizerError> {
        let file = |name| (name, path.with_file_name(name));
        let files = COMPANIONS
            .into_iter()
            .map(file)
            .filter(|(_, path)| path.is_file())
            .map(|(name, path)| Ok((name, read(&path)?)));
        Ok(Self(files.collect::<Result<_, TokenizerError>>()?))
    }
}

/// The text of a token, which is spelled as that or as an object with it.
pub(super) fn token_text(token: &Value) -> Option<String> {
    let text = token.as_str().or_else(|| token["content"].as_str());
    text.map(str::to_owned)
}

impl Tokenizer {
    /// Writes the tokenizer into a checkpoint folder, in a form that `transformers.AutoTokenizer`
    /// opens, and waits until it is on disk: `tokenizer.json` and its companion files, unchanged. If there
    /// is no `tokenizer_config.json`, one is generated, for a model with a context of `context`
    /// tokens.
    ///
    /// # Errors
    ///
    /// When a file cannot be written.
    pub fn save_to(&self, folder: &Path, context: usize) -> Result<(), TokenizerError> {
        let write = |name: &str, content: &[u8]| {
            durable::write(&folder.join(name), content).map_err(TokenizerError::Write)
        };
        self.save(&folder.join(TOKENIZER_FILE))?;
        for (name, content) in &*self.companions.0 {
            write(name, content)?;
        }
        if self.companions.get(CONFIG).is_none() {
            write(CONFIG, self.config_json(context).as_bytes())?;
        }
        Ok(())
    }

    /// A `tokenizer_config.json` that names the BOS and EOS tokens and leaves everything else to
    /// `tokenizer.json`.
    pub(super) fn config_json(&self, context: usize) -> String {
        let token = |id| self.inner.id_to_token(id);
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": token(self.eos_id()),
            "model_max_length": context,
            "clean_up_tokenization_spaces": false,
        });
        // The configuration names a single token; tokenizer.json adds them all in any case.
        if let [bos_id] = self.bos_ids[..] {
            config["bos_token"] = token(bos_id).into();
        }
        serde_json::to_string_pretty(&config).expect("integers and strings can be written as JSON")
            + "\n"
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::super::tests::{TEMPLATE_BEGIN, json_with};
    use super::*;

    fn saved(tokenizer: &Tokenizer) -> (tempfile::TempDir, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        tokenizer.save_to(folder.path(), 64).unwrap();
        let mut names: Vec<String> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        (folder, names)
    }

    fn config(folder: &tempfile::TempDir) -> Value {
        serde_json::from_slice(&fs::read(folder.path().join(CONFIG)).unwrap()).unwrap()
    }

    #[test]
    fn a_missing_configuration_is_generated() {
        let (folder, names) = saved(&Tokenizer::bytes());
        assert_eq!(names, [TOKENIZER_FILE, CONFIG]);
        let expected = json!({
            "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>",
            "model_max_length": 64, "clean_up_tokenization_spaces": false,
        });
        assert_eq!(config(&folder), expected);

        let template: Value = serde_json::from_str(TEMPLATE_BEGIN).unwrap();
        let json = json_with(&["<s>"], &template);
        let tokenizer = Tokenizer::from_bytes(json.as_bytes(), "<|endoftext|>").unwrap();
        assert_eq!(config(&saved(&tokenizer).0)["bos_token"], "<s>");
    }

    #[test]
    fn companions_are_written_unchanged() {
        let source = tempfile::tempdir().unwrap();
        let path: PathBuf = source.path().join(TOKENIZER_FILE);
        fs::write(&path, Tokenizer::bytes().to_json()).unwrap();
        fs::write(source.path().join("merges.txt"), "#version: 0.2\r\n").unwrap();
        fs::write(source.path().join("tokenizer.model"), [0, 255, 10]).unwrap();
        fs::write(source.path().join("README.md"), "unrelated").unwrap();
        fs::create_dir(source.path().join("vocab.json")).unwrap();
        let (folder, names) = saved(&Tokenizer::load(&path, &[]).unwrap());
        assert_eq!(
            names,
            ["merges.txt", TOKENIZER_FILE, "tokenizer.model", CONFIG]
        );
        assert_eq!(config(&folder)["eos_token"], "<|endoftext|>");

        fs::write(source.path().join(CONFIG), "{ \"eos_token\": \"theirs\"}").unwrap();
        let tokenizer = Tokenizer::from_file(&path, "<|endoftext|>").unwrap();
        // The source folder is no longer needed.
        let there = source
            .path()
            .read_dir()
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let content: Vec<_> = there
            .filter_map(|path| Some((path.file_name()?.to_owned(), fs::read(&path).ok()?)))
            .filter(|(name, _)| name != "README.md")
            .collect();
        source.close().unwrap();
        let (folder, names) = saved(&tokenizer);
        assert_eq!(names.len(), content.len());
        for (name, content) in content {
            assert_eq!(fs::read(folder.path().join(name)).unwrap(), content);
        }
    }

    #[test]
    fn the_eos_token_is_found_in_the_files_beside() {
        let source = tempfile::tempdir().unwrap();
        let path = source.path().join(TOKENIZER_FILE);
        fs::write(&path, json_with(&["<|end|>", "<eos>"], &Value::Null)).unwrap();
        let load = || Tokenizer::load(&path, &[]).unwrap().eos_token();
        assert_eq!(load(), "<|endoftext|>");
        let map = source.path().join(SPECIAL_TOKENS);
        fs::write(
            &map,
            r#"{"eos_token": {"content": "<eos>", "lstrip": false}}"#,
        )
        .unwrap();
        assert_eq!(load(), "<eos>");
        let config = source.path().join(CONFIG);
        fs::write(&config, r#"{"eos_token": "<|end|>"}"#).unwrap();
        assert_eq!(load(), "<|end|>");
        // A token that the tokenizer lacks, and none.
        for unknown in [r#"{"eos_token": "<other>"}"#, r#"{"eos_token": null}"#] {
            fs::remove_file(&map).unwrap_or(());
            fs::write(&config, unknown).unwrap();
            assert_eq!(load(), "<|endoftext|>");
        }
        // config.json decides.
        let tokenizer = Tokenizer::load(&path, &[258]).unwrap();
        assert_eq!(tokenizer.eos_token(), "<eos>");
    }

    #[test]
    fn an_error_names_the_missing_folder() {
        let folder = tempfile::tempdir().unwrap();
        let error = Tokenizer::bytes()
            .save_to(&folder.path().join("absent"), 64)
            .unwrap_err();
        assert!(
            error.to_string().contains("absent/tokenizer.json"),
            "{error}"
        );
    }
}
