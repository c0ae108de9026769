//! A checkpoint small enough for a test.

use std::path::Path;

use firebox_checkpoint::{Notes, SaveOptions, save};
use firebox_model::config::{
    AttentionBias, ExpertActivation, ExpertsConfig, LayerConfig, ModelConfig, MoeConfig,
    Multipliers, QkNorm, RouterConfig, VisionConfig,
};
use firebox_model::language_model::LanguageModel;
use firebox_model::testing::with_open_gates;
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
        multipliers: Multipliers::NONE,
        latent: None,
        qk_norm: QkNorm::None,
        attention_bias: AttentionBias::None,
        sinks: false,
        vision: None,
        layers: vec![LayerConfig::MOE; 2],
        moe: Some(MoeConfig {
            experts: ExpertsConfig {
                count: 4,
                top_k: 2,
                d_ff: 16,
                activation: ExpertActivation::Swiglu,
                biases: false,
                shared_d_ff: 0,
                shared_gate: false,
            },
            router: RouterConfig {
                balance_coefficient: 0.0,
                z_coefficient: 0.0,
                ..RouterConfig::DEFAULT
            },
        }),
    }
}

/// [`tiny_config`] with a tower of two tiles of 28 pixels, and two layers that attend to it.
#[allow(dead_code)] // some tests of the binary share this file, and do without
pub fn seeing_config() -> ModelConfig {
    let vision = VisionConfig {
        width: 12,
        d_ff: 20,
        heads: 2,
        layers: 1,
        global_layers: 1,
        tile_size: 28,
        patch_size: 7,
        max_tiles: 2,
        aspect_ratios: vec![[1, 1], [1, 2]],
        intermediate_layers: vec![0],
        norm_epsilon: 1e-5,
        initializer_range: 0.3,
    };
    tiny_config().with_vision(vision, &[1, 3], 24).unwrap()
}

/// A fresh model with the byte tokenizer, whose gates are open where it sees pictures, in a temporary folder that is removed on drop.
pub struct TinyCheckpoint(TempDir);

impl TinyCheckpoint {
    pub fn new(config: &ModelConfig, seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let device = device::select(device::default_name()).unwrap();
        let tokenizer = Tokenizer::bytes();
        let model = with_open_gates(LanguageModel::random(config, seed, &device));
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
