//! A checkpoint small enough for a test.

use std::path::Path;

use firebox_checkpoint::{Notes, SaveOptions, save};
use firebox_model::config::{
    AttentionBias, ExpertActivation, ExpertsConfig, LayerConfig, ModelConfig, MoeConfig, QkNorm,
    RouterConfig,
};
use firebox_model::language_model::LanguageModel;
use firebox_runtime::device;
use firebox_text::Tokenizer;
use tempfile::TempDir;

/// Two layers of four experts, for the byte tokenizer.
pub fn tiny_config() -> ModelConfig {
    ModelConfig {
        vocab_size: 257,
        d_model: 16,
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        rotary_dim: 8,
        context_length: 32,
        rope_theta: 10_000.0,
        rope_scaling: None,
        norm_epsilon: 1e-5,
        tied_embeddings: false,
        // Large enough for the outputs of a fresh model to be far from uniform.
        initializer_range: 0.3,
        qk_norm: QkNorm::None,
        attention_bias: AttentionBias::None,
        sinks: false,
        layers: vec![LayerConfig::MOE; 2],
        moe: Some(MoeConfig {
            experts: ExpertsConfig {
                count: 4,
                top_k: 2,
                d_ff: 16,
                activation: ExpertActivation::Swiglu,
                biases: false,
                shared_d_ff: 0,
            },
            router: RouterConfig {
                balance_coefficient: 0.0,
                z_coefficient: 0.0,
                ..RouterConfig::DEFAULT
            },
        }),
    }
}

/// A fresh model with the byte tokenizer, in a temporary folder that is removed on drop.
pub struct TinyCheckpoint(TempDir);

impl TinyCheckpoint {
    pub fn new(config: &ModelConfig, seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let device = device::select(device::default_name()).unwrap();
        let tokenizer = Tokenizer::bytes();
        let model = LanguageModel::random(config, seed, &device);
        let options = SaveOptions {
            notes: Notes::of_tokens(tokenizer.eos_ids(), tokenizer.bos_ids().first().copied()),
            ..SaveOptions::default()
        };
        save(&model, folder.path(), &options, |_| ()).unwrap();
        tokenizer
            .save_to(folder.path(), config.context_length)
            .unwrap();
        Self(folder)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}
