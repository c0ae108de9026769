//! An opened checkpoint: the model on its device, and its tokenizer.

use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::Device;
use firebox_checkpoint::{Accept, Checkpoint, Notes, checkpoint_place, load, read_config};
use firebox_kernels::Precision;
use firebox_kernels::dtype::WeightFormat;
use firebox_model::accounting::Parameters;
use firebox_model::language_model::LanguageModel;
use firebox_model::network::{Local, Network};
use firebox_model::parallel::{Driver, Ranks};
use firebox_runtime::device;
use firebox_text::Tokenizer;

use crate::InferError;
use crate::gguf::open_tokenizer;
use crate::ranks::{Part, RankOptions};
use crate::timeline;

/// A model on a device, and the tokenizer that it was trained with.
#[derive(Debug)]
pub struct Engine {
    /// The network, without gradients; the first rank's part of it where there are several.
    pub model: LanguageModel,
    /// The ranks that hold the network together; `None` if there is one alone.
    pub ranks: Option<Ranks>,
    /// Text to token ids and back.
    pub tokenizer: Tokenizer,
    /// The checkpoint's folder, or its GGUF file.
    pub folder: PathBuf,
    /// The device's name, such as `flex` or `wgpu:1`.
    pub device: String,
    /// How weights are held.
    pub dtype: WeightFormat,
    /// The token that ends a document, if the model was trained to see each document by itself; see
    /// [`Notes::document_mask`](firebox_checkpoint::Notes::document_mask).
    pub document_end: Option<u32>,
    /// Where it is written when each pipeline stage computed; `None` if that is not recorded.
    timeline: Option<PathBuf>,
}

impl Engine {
    /// Opens a checkpoint, or the newest one of a run (see [`checkpoint_place`]), on a device of
    /// [`device::select`], with its weights held as `dtype` says (see [`load`]). The fields `accept` of its config.json are accepted
    /// although Firebox does not know them.
    ///
    /// # Errors
    ///
    /// When the device is not available, the path does not lead to a checkpoint, or the checkpoint cannot be read.
    pub fn open(
        checkpoint: &Path,
        accept: &[String],
        device: &str,
        dtype: impl Into<WeightFormat>,
    ) -> Result<Self, InferError> {
        let started = Instant::now();
        let dtype = dtype.into();
        let selected = device::select(device)?;
        let (folder, opened) = open_model(checkpoint, accept, &selected, dtype)?;
        let Checkpoint {
            model,
            eos_ids,
            notes,
            ..
        } = opened;
        let engine = Self::new(folder, model, &eos_ids, &notes, device, dtype)?;
        tracing::info!(
            "loaded {} ({} parameters) on {device} in {:.2} s",
            engine.folder.display(),
            Parameters::of(engine.model.config()).total(),
            started.elapsed().as_secs_f64(),
        );
        Ok(engine)
    }

    /// The first rank's engine, given its part of the model.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn on_ranks(options: &RankOptions, part: Part) -> Result<Self, InferError> {
        let folder = checkpoint_place(&options.checkpoint)?;
        let config = read_config(&folder, Accept::Flag(&options.accept))?;
        warn_of_accepted(&folder, &config.notes);
        let (eos_ids, notes) = (&config.eos_ids, &config.notes);
        let device = &options.device;
        let (model, ranks) = (part.model, part.ranks);
        let mut engine = Self::new(folder, model, eos_ids, notes, device, options.dtype)?;
        tracing::info!(
            "loaded {} ({} parameters) on {} ranks of {device}: {}",
            engine.folder.display(),
            Parameters::of(engine.model.config()).total(),
            ranks.layout().ranks(),
            ranks.layout(),
        );
        engine.ranks = Some(ranks);
        Ok(engine)
    }

    fn new(
        folder: PathBuf,
        model: LanguageModel,
        eos_ids: &[u32],
        notes: &Notes,
        device: &str,
        dtype: WeightFormat,
    ) -> Result<Self, InferError> {
        let Some(tokenizer) = open_tokenizer(&folder, eos_ids)? else {
            return Err(InferError::NoTokenizer { folder });
        };
        let engine = Self {
            document_end: notes.document_mask().then(|| tokenizer.eos_id()),
            timeline: None,
            tokenizer,
            model,
            ranks: None,
            folder,
            device: device.to_owned(),
            dtype,
        };
        let empty: Vec<u32> = engine.tokenizer.document(&[]).collect();
        engine.check(&empty)?;
        Ok(engine)
    }

    /// What computes: this process, or all ranks.
    pub fn network(&self) -> Box<dyn Network + '_> {
        let mut network: Box<dyn Network + '_> = match &self.ranks {
            None => Box::new(Local::new(&self.model)),
            Some(ranks) => Box::new(Driver::new(&self.model, ranks)),
        };
        if self.timeline.is_some() {
            network.record();
        }
        network
    }

    /// The same engine; with a path, [`finish`](Self::finish) writes there when each pipeline stage computed.
    #[must_use]
    pub fn with_timeline(mut self, path: Option<PathBuf>) -> Self {
        self.timeline = path;
        self
    }

    /// Writes what its [`network`](Self::network) has recorded, if it has.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn finish(&self, network: &mut (impl Network + ?Sized)) -> Result<(), InferError> {
        match &self.timeline {
            Some(path) => timeline::write(path, &network.spans()),
            None => Ok(()),
        }
    }

    /// The same engine; with `special_tokens`, text that spells a special token becomes that token.
    #[must_use]
    pub fn reading_special_tokens(mut self, special_tokens: bool) -> Self {
        if special_tokens {
            self.tokenizer = self.tokenizer.with_special_tokens();
        }
        self
    }

    /// The same engine with matrix products of this precision; see [`LanguageModel::at_precision`].
    ///
    /// # Errors
    ///
    /// When the device does not compute such products.
    pub fn at_precision(mut self, precision: Precision) -> Result<Self, InferError> {
        check_precision(precision, &self.device)?;
        self.model = self.model.at_precision(precision);
        Ok(self)
    }

    /// Token ids of a text to continue (see [`Tokenizer::prompt`]), all within the model's vocabulary.
    ///
    /// # Errors
    ///
    /// When the tokenizer cannot encode the text, or gives an id beyond the model's vocabulary.
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>, InferError> {
        warn_of_special_places(&self.tokenizer, self.tokenizer.special_places(text));
        let ids = self.tokenizer.prompt(text)?;
        self.check(&ids)?;
        Ok(ids)
    }

    /// The same of a text that sees so many pictures, at least one: it has an image token for each of them, or else they stand
    /// before it. An empty text begins with the first token behind its picture, as captions do in training.
    ///
    /// # Errors
    ///
    /// As there, and when the text has another number of image tokens.
    ///
    /// # Panics
    ///
    /// When the model sees no pictures.
    pub fn prompt_seeing(&self, text: &str, pictures: usize) -> Result<Vec<u32>, InferError> {
        let image = self.model.config().image_token();
        let image = image.expect("a model that sees pictures");
        let mut ids = self.tokenizer.bos_ids().to_vec();
        ids.extend(self.tokenizer.encode(text)?);
        let tokens = ids.iter().filter(|&&id| id == image).count();
        let others: Vec<u32> = ids.iter().copied().filter(|&id| id != image).collect();
        self.check(&others)?;
        match tokens {
            0 => Ok([vec![image; pictures], ids].concat()),
            tokens if tokens == pictures => Ok(ids),
            tokens => Err(InferError::ImageTokens { tokens, pictures }),
        }
    }

    /// Checks token ids against the model's vocabulary. A tokenizer may have more ids than the model, as long as none of
    /// those occurs.
    ///
    /// # Errors
    ///
    /// The first id that is not in the model's vocabulary.
    pub fn check(&self, ids: &[u32]) -> Result<(), InferError> {
        let model = self.model.config().vocab_size;
        match ids.iter().find(|&&id| id as usize >= model) {
            Some(&id) => Err(InferError::Vocabulary {
                id,
                tokenizer: self.tokenizer.vocab_size(),
                model,
            }),
            None => Ok(()),
        }
    }
}

/// Reads a checkpoint as [`Engine::open`] does, warns of the fields of its config.json that are accepted, and returns its
/// folder (or GGUF file) too. No tokenizer is needed.
///
/// # Errors
///
/// When the path does not lead to a checkpoint, or the checkpoint cannot be read.
pub fn open_model(
    path: &Path,
    accept: &[String],
    device: &Device,
    dtype: impl Into<WeightFormat>,
) -> Result<(PathBuf, Checkpoint), InferError> {
    let folder = checkpoint_place(path)?;
    let checkpoint = load(&folder, Accept::Flag(accept), device, dtype)?;
    warn_of_accepted(&folder, &checkpoint.notes);
    Ok((folder, checkpoint))
}

/// Checks that a device computes products of a precision.
///
/// # Errors
///
/// When it does not, or is not available.
pub(crate) fn check_precision(precision: Precision, device: &str) -> Result<(), InferError> {
    match precision.runs_on(&device::select(device)?) {
        true => Ok(()),
        false => Err(InferError::Precision {
            precision,
            device: device.to_owned(),
        }),
    }
}

/// Warns of places of a text that spell special tokens and do not become them.
pub(crate) fn warn_of_special_places(tokenizer: &Tokenizer, places: u64) {
    if places > 0 && !tokenizer.takes_special_tokens() {
        tracing::warn!(
            "{places} place(s) of the text spell special tokens of the tokenizer, and are ordinary characters; \
             --special-tokens makes them special tokens"
        );
    }
}

/// Warns of the fields of a checkpoint's config.json that are accepted although Firebox does not know them.
pub(crate) fn warn_of_accepted(folder: &Path, notes: &Notes) {
    for warning in notes.warnings(folder) {
        tracing::warn!("{warning}");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use firebox_kernels::dtype::WeightDtype;
    use firebox_text::TOKENIZER_FILE;

    use super::*;
    use crate::eval::Text;
    use crate::testing::{TinyCheckpoint, tiny_config};

    #[test]
    fn an_id_beyond_the_vocabulary_is_an_error_with_both_sizes() {
        let mut config = tiny_config();
        config.vocab_size = 200;
        let tiny = TinyCheckpoint::new(&config, 1);
        let error =
            Engine::open(tiny.path(), &[], device::default_name(), WeightDtype::F32).unwrap_err();
        assert_eq!(
            error.to_string(),
            "token id 256 is not in the model's vocabulary: tokenizer.json has 257 ids, config.json 200"
        );
    }

    /// Adds `<s>` with id 257 as the BOS token of the checkpoint's tokenizer.
    fn add_bos(checkpoint: &Path) {
        let path = checkpoint.join(TOKENIZER_FILE);
        let text = fs::read_to_string(&path).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let added = json["added_tokens"].as_array_mut().unwrap();
        added.push(added[0].clone());
        added[1]["id"] = 257.into();
        added[1]["content"] = "<s>".into();
        json["post_processor"] = serde_json::json!({
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [257], "tokens": ["<s>"] } },
        });
        fs::write(path, json.to_string()).unwrap();
    }

    #[test]
    fn prompts_and_evaluated_text_begin_with_the_bos_token() {
        let mut config = tiny_config();
        config.vocab_size = 258;
        let tiny = TinyCheckpoint::new(&config, 1);
        add_bos(tiny.path());
        let engine =
            Engine::open(tiny.path(), &[], device::default_name(), WeightDtype::F32).unwrap();
        assert_eq!(engine.prompt("ab").unwrap(), [257, 97, 98]);
        assert_eq!(engine.prompt("").unwrap(), [257]);
        let path = tiny.path().join("text.jsonl");
        fs::write(&path, "{\"text\": \"ab\"}\n{\"text\": \"c\"}\n").unwrap();
        let text = Text {
            files: vec![path],
            field: None,
            max_tokens: None,
        };
        let packed = text.pack(&engine).unwrap();
        assert_eq!(packed.tokens(), [257, 97, 98, 256, 257, 99, 256]);
        assert_eq!((packed.targets(), packed.bytes()), (6, 3));

        // The same tokenizer with a model whose vocabulary lacks the id.
        let small = TinyCheckpoint::new(&tiny_config(), 1);
        add_bos(small.path());
        let error =
            Engine::open(small.path(), &[], device::default_name(), WeightDtype::F32).unwrap_err();
        assert!(error.to_string().contains("token id 257"), "{error}");
    }

    #[test]
    fn products_in_bf16_are_near_those_in_f32() {
        let tiny = TinyCheckpoint::new(&tiny_config(), 1);
        let loss = |precision| {
            let opened = Engine::open(tiny.path(), &[], "flex", WeightDtype::F32);
            let engine = opened.unwrap().at_precision(precision).unwrap();
            let ids = firebox_model::language_model::token_tensor(
                // More rows than the kernels for a few take.
                [(1..21).collect::<Vec<u32>>().as_slice()].into_iter(),
                &device::select("flex").unwrap(),
            );
            firebox_runtime::testing::values(engine.model.forward(ids).logits)
        };
        let [exact, rounded] = Precision::ALL.map(loss);
        assert_ne!(exact, rounded);
        firebox_runtime::testing::assert_close("logits", &rounded, &exact, 0.02).unwrap();
    }

    #[cfg(feature = "ndarray")]
    #[test]
    fn a_device_without_products_in_bf16_is_refused() {
        let tiny = TinyCheckpoint::new(&tiny_config(), 1);
        let engine = Engine::open(tiny.path(), &[], "ndarray", WeightDtype::F32).unwrap();
        let error = engine.at_precision(Precision::Bf16).unwrap_err();
        assert_eq!(
            error.to_string(),
            "--precision bf16: the device ndarray does not compute products in bf16"
        );
    }

    #[test]
    fn an_error_names_the_checkpoint_without_a_tokenizer() {
        let tiny = TinyCheckpoint::new(&tiny_config(), 1);
        fs::remove_file(tiny.path().join(TOKENIZER_FILE)).unwrap();
        let error =
            Engine::open(tiny.path(), &[], device::default_name(), WeightDtype::F32).unwrap_err();
        assert!(
            error.to_string().contains("has no tokenizer.json"),
            "{error}"
        );
    }
}
