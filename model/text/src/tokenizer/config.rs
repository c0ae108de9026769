//! What stands beside a `tokenizer.json`: the texts of special tokens, and how chats are written.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::folder::{CONFIG, SPECIAL_TOKENS, TEMPLATE, token_text};
use super::{Tokenizer, TokenizerError};

/// A chat template in an object.
const TEMPLATE_OBJECT: &str = "chat_template.json";
/// Where objects have it.
const TEMPLATE_KEY: &str = "chat_template";

/// The special tokens that `transformers` gives names.
const NAMES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// What the files beside a `tokenizer.json` say.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenizerConfig {
    /// The object of `tokenizer_config.json`; the one that [`Tokenizer::save_to`] would write, if there is none.
    pub fields: Map<String, Value>,
    /// Texts of special tokens by name, such as `bos_token`. `eos_token` is always there.
    pub special_tokens: BTreeMap<&'static str, String>,
    /// The Jinja template that writes a chat as text.
    pub chat_template: Option<String>,
}

impl Tokenizer {
    /// What the files beside the `tokenizer.json` say, for a model with a context of `context` tokens.
    ///
    /// # Errors
    ///
    /// When one of them is not what its name says.
    pub fn config(&self, context: usize) -> Result<TokenizerConfig, TokenizerError> {
        let fields = match self.object(CONFIG)? {
            Some(fields) => fields,
            None => parse(CONFIG, self.config_json(context).as_bytes())?,
        };
        let others = self.object(SPECIAL_TOKENS)?.unwrap_or_default();
        let named = |name| {
            let mut objects = [&fields, &others].into_iter();
            objects.find_map(|object| token_text(object.get(name)?))
        };
        let mut special_tokens: BTreeMap<&'static str, String> = NAMES
            .into_iter()
            .filter_map(|name| Some((name, named(name)?)))
            .collect();
        special_tokens
            .entry("eos_token")
            .or_insert_with(|| self.eos_token());
        Ok(TokenizerConfig {
            chat_template: self.chat_template(&fields)?,
            special_tokens,
            fields,
        })
    }

    /// The template, where `transformers` looks for it: in a file of its own, then in the configuration, which may have
    /// several with names.
    fn chat_template(&self, fields: &Map<String, Value>) -> Result<Option<String>, TokenizerError> {
        if let Some(bytes) = self.companions.get(TEMPLATE) {
            let text = std::str::from_utf8(bytes).map_err(wrong(TEMPLATE))?;
            return Ok(Some(text.to_owned()));
        }
        let default = |templates: &Value| {
            let mut templates = templates.as_array()?.iter();
            let default = templates.find(|template| template["name"] == "default")?;
            default["template"].as_str().map(str::to_owned)
        };
        let in_object = |object: &Map<String, Value>| {
            let template = object.get(TEMPLATE_KEY)?;
            let text = template.as_str().map(str::to_owned);
            text.or_else(|| default(template))
        };
        Ok(match in_object(fields) {
            None => self.object(TEMPLATE_OBJECT)?.as_ref().and_then(in_object),
            template => template,
        })
    }

    fn object(&self, file: &'static str) -> Result<Option<Map<String, Value>>, TokenizerError> {
        let bytes = self.companions.get(file);
        bytes.map(|bytes| parse(file, bytes)).transpose()
    }
}

fn parse(file: &'static str, bytes: &[u8]) -> Result<Map<String, Value>, TokenizerError> {
    serde_json::from_slice(bytes).map_err(wrong(file))
}

fn wrong<E: ToString>(file: &'static str) -> impl Fn(E) -> TokenizerError {
    move |error| TokenizerError::Companion {
        file,
        message: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::super::TOKENIZER_FILE;
    use super::*;

    /// The configuration of the byte tokenizer among these files.
    fn config_among(files: &[(&str, &str)]) -> Result<TokenizerConfig, TokenizerError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(TOKENIZER_FILE);
        fs::write(&path, Tokenizer::bytes().to_json()).unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content).unwrap();
        }
        Tokenizer::load(&path, &[256]).unwrap().config(64)
    }

    #[test]
    fn without_files_it_is_what_would_be_written() {
        let config = config_among(&[]).unwrap();
        assert_eq!(config.fields["model_max_length"], 64);
        assert_eq!(
            config.special_tokens,
            [("eos_token", "<|endoftext|>".to_owned())].into()
        );
        assert_eq!(config.chat_template, None);
    }

    #[test]
    fn special_tokens_are_texts_or_objects_in_either_file() {
        let fields = r#"{"bos_token": {"content": "<s>"}, "pad_token": null, "eos_token": "</s>"}"#;
        let map = r#"{"bos_token": "other", "pad_token": "<pad>"}"#;
        let config = config_among(&[(CONFIG, fields), (SPECIAL_TOKENS, map)]).unwrap();
        let expected = [
            ("bos_token", "<s>"),
            ("eos_token", "</s>"),
            ("pad_token", "<pad>"),
        ];
        assert_eq!(
            config.special_tokens,
            expected.map(|(name, text)| (name, text.to_owned())).into()
        );
    }

    #[test]
    fn a_template_is_found_where_transformers_looks() {
        let one = json!({ "chat_template": "one" }).to_string();
        let many = json!({ "chat_template": [
            { "name": "tool_use", "template": "tools" }, { "name": "default", "template": "many" },
        ] });
        let many = many.to_string();
        let object = (TEMPLATE_OBJECT, r#"{"chat_template": "object"}"#);
        for (files, expected) in [
            (&[(CONFIG, &*one), object, (TEMPLATE, "file")][..], "file"),
            (&[(CONFIG, &*one), object], "one"),
            (&[(CONFIG, &*many), object], "many"),
            (&[object], "object"),
        ] {
            let config = config_among(files).unwrap();
            assert_eq!(config.chat_template.as_deref(), Some(expected));
        }
    }

    #[test]
    fn a_file_that_is_no_object_is_named() {
        let error = config_among(&[(CONFIG, "[1]")]).unwrap_err();
        assert!(
            error.to_string().starts_with("tokenizer_config.json: "),
            "{error}"
        );
    }
}
