//! Small models for tests, whose numbers can be worked out by hand.

use std::convert::Infallible;

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};

use crate::config::{
    AttentionBias, AttentionKind, ExpertActivation, ExpertsConfig, LatentConfig, LayerConfig,
    ModelConfig, MoeConfig, Multipliers, QkNorm, RouterConfig, VisionConfig,
};
use crate::language_model::LanguageModel;
use crate::parameters::{Initializer, MapParameter, ParameterSource, ParameterSpec, map};
use crate::vision::Picture;

/// A model of two layers with eight experts, top-2. Its random weights are wide, so that what the experts say
/// matters.
pub fn tiny() -> ModelConfig {
    ModelConfig {
        vocab_size: 37,
        d_model: 24,
        heads: 4,
        kv_heads: 2,
        head_dim: 6,
        rotary_dim: 6,
        context_length: 32,
        rope_theta: 10_000.0,
        rope_scaling: None,
        norm_epsilon: 1e-5,
        tied_embeddings: false,
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
                count: 8,
                top_k: 2,
                d_ff: 20,
                activation: ExpertActivation::Swiglu,
                biases: false,
                shared_d_ff: 0,
                shared_gate: false,
            },
            router: RouterConfig {
                balance_coefficient: 0.05,
                z_coefficient: 0.01,
                ..RouterConfig::DEFAULT
            },
        }),
    }
}

/// The mixture of a configuration, to be changed.
pub fn moe(config: &mut ModelConfig) -> &mut MoeConfig {
    config.moe.as_mut().expect("a model with a mixture")
}

/// [`tiny`] with some experts.
pub fn with_experts(count: usize, top_k: usize) -> ModelConfig {
    let mut config = tiny();
    let experts = &mut moe(&mut config).experts;
    (experts.count, experts.top_k) = (count, top_k);
    config
}

/// [`tiny`] with a window before a dense feed-forward, then the whole context before a mixture; with sinks, biases, and
/// rotary positions of a part of each head.
pub fn windowed() -> ModelConfig {
    ModelConfig {
        rotary_dim: 4,
        attention_bias: AttentionBias::All,
        sinks: true,
        layers: vec![
            LayerConfig {
                attention: AttentionKind::Window(5),
                ..LayerConfig::dense(30)
            },
            LayerConfig::MOE,
        ],
        ..tiny()
    }
}

/// [`tiny`] with what gpt-oss has besides: windows in every other layer, sinks, biases everywhere, and clamped experts.
pub fn clamped() -> ModelConfig {
    let mut config = tiny();
    config.attention_bias = AttentionBias::All;
    config.sinks = true;
    config.layers[0].attention = AttentionKind::Window(5);
    let MoeConfig { experts, router } = moe(&mut config);
    experts.biases = true;
    experts.activation = ExpertActivation::ClampedSwiglu {
        alpha: 1.702,
        limit: 0.5,
    };
    router.logit_bias = true;
    config
}

/// [`tiny`] with latent attention, whose values are narrower than keys, and whose latents are of odd widths.
pub fn latent() -> ModelConfig {
    ModelConfig {
        kv_heads: 4,
        head_dim: 10,
        rotary_dim: 4,
        attention_bias: AttentionBias::All,
        latent: Some(LatentConfig {
            rank: 7,
            query_rank: Some(9),
            value_dim: 5,
            interleaved: true,
        }),
        ..tiny()
    }
}

/// [`latent`] with values that are wider than keys, queries of the residual stream, and constant factors everywhere.
pub fn latent_multiplied() -> ModelConfig {
    ModelConfig {
        attention_bias: AttentionBias::None,
        multipliers: Multipliers {
            embedding: 3.0,
            residual: 0.7,
            attention: Some(0.4),
            logits_divisor: 1.5,
        },
        latent: Some(LatentConfig {
            rank: 8,
            query_rank: None,
            value_dim: 13,
            interleaved: false,
        }),
        ..latent()
    }
}

/// [`tiny`] without rotary positions in the first layer.
pub fn without_positions() -> ModelConfig {
    let mut config = tiny();
    config.layers[0].attention = AttentionKind::Nope;
    config
}

/// [`tiny`] with a tower, and with layers that attend to pictures behind both of its layers.
pub fn seeing() -> ModelConfig {
    let vision = VisionConfig {
        width: 12,
        d_ff: 20,
        heads: 2,
        layers: 2,
        global_layers: 1,
        tile_size: 9,
        patch_size: 4,
        max_tiles: 2,
        aspect_ratios: vec![[1, 1], [1, 2], [2, 1]],
        intermediate_layers: vec![1, 0],
        norm_epsilon: 1e-5,
        initializer_range: 0.3,
    };
    let seeing = tiny().with_vision(vision, &[1, 3], 28);
    seeing.expect("a valid configuration")
}

/// A picture for [`seeing`], with pixels that a number decides; of one tile, or of two.
pub fn picture(number: usize, tiles: usize) -> Picture {
    let pixel = |place: usize| match place < tiles * 243 {
        true => ((place * 7 + number * 31) % 17) as f32 / 8.0 - 1.0,
        false => 0.0,
    };
    Picture {
        arrangement: tiles,
        used: vec![true, tiles == 2],
        pixels: (0..2 * 243).map(pixel).collect(),
    }
}

/// The model with every gate open, of a configuration like [`seeing`].
pub fn with_open_gates(model: LanguageModel) -> LanguageModel {
    struct Open;
    impl MapParameter for Open {
        fn map<const D: usize>(&mut self, path: &str, value: Tensor<D>) -> Tensor<D> {
            let is_gate = path.contains("gates.") || path.ends_with("_gate");
            match is_gate {
                true => value.zeros_like().add_scalar(0.7),
                false => value,
            }
        }
    }
    map(model, &mut Open)
}

/// One layer of one head, d_model 2, a vocabulary of 4, two experts of d_ff 1, top-1. A norm's epsilon of 12.5
/// makes `[3, 4]` into `[0.6, 0.8]`: the mean of 9 and 16 is 12.5, and √25 = 5.
pub fn smallest() -> ModelConfig {
    let mut config = with_experts(2, 1);
    moe(&mut config).experts.d_ff = 1;
    ModelConfig {
        vocab_size: 4,
        d_model: 2,
        heads: 1,
        kv_heads: 1,
        head_dim: 2,
        rotary_dim: 2,
        context_length: 8,
        norm_epsilon: 12.5,
        layers: vec![LayerConfig::MOE],
        ..config
    }
}

/// Parameters by hand: the values of those that are named, in row-major order, under the end of their path. All
/// others are zeros, but the gains of norms, which are ones.
#[derive(Debug)]
pub struct ByHand<'a> {
    /// Where the tensors are created.
    pub device: &'a Device,
    /// The end of a path, and the values.
    pub values: &'a [(&'a str, &'a [f32])],
}

impl ParameterSource for ByHand<'_> {
    type Error = Infallible;

    fn parameter<const D: usize>(
        &mut self,
        ParameterSpec {
            path,
            shape,
            initializer,
            ..
        }: ParameterSpec<D>,
    ) -> Result<Param<Tensor<D>>, Infallible> {
        let named = self.values.iter().find(|(name, _)| path.ends_with(name));
        let value = match (named, initializer) {
            (Some((_, values)), _) => {
                Tensor::from_data(TensorData::new(values.to_vec(), shape), self.device)
            }
            (None, Initializer::Ones) => Tensor::ones(shape, self.device),
            (None, Initializer::Zeros | Initializer::Normal(_) | Initializer::Output(_)) => {
                Tensor::zeros(shape, self.device)
            }
        };
        Ok(Param::from_tensor(value))
    }
}

/// A tensor of these rows, `[rows, N]`.
pub fn rows<const N: usize>(rows: &[[f32; N]], device: &Device) -> Tensor<2> {
    let values: Vec<f32> = rows.iter().flatten().copied().collect();
    Tensor::from_data(TensorData::new(values, [rows.len(), N]), device)
}

/// Arbitrary tokens of a vocabulary: `rows` of `length`.
pub fn text(rows: usize, length: usize, vocab_size: usize) -> Vec<Vec<u32>> {
    let token =
        |row: usize, place: usize| ((row * 17 + place * place * 5 + place * 3) % vocab_size) as u32;
    (0..rows)
        .map(|row| (0..length).map(|place| token(row, place)).collect())
        .collect()
}
