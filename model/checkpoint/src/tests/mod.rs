//! config.json in both directions. Weights are tested with real checkpoints, in the crate `firebox-tests`.

mod absent;
mod accept;
mod fields;
mod notes;
mod published;
mod vision;

use std::fs;

use serde_json::{Map, Value};

use crate::dtype::StoredDtype as _;
use crate::families::{
    DEEPSEEK_V3, DOTS1, FIREBOX, FIREBOX_VISION, Family, GLM4_MOE, GPT_OSS, GRANITE_MOE, LLAMA,
    MISTRAL, MIXTRAL, MLLAMA, OLMOE, QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE, SMOLLM3,
};
use crate::{Accept, CONFIG_FILE, CheckpointConfig, Notes, config_json, read_config};
use firebox_kernels::dtype::WeightDtype;
use firebox_model::config::{
    AttentionBias, AttentionKind, BalanceKind, ExpertActivation, ExpertsConfig, FeedForwardKind,
    LatentConfig, LayerConfig, ModelConfig, MoeConfig, Multipliers, QkNorm, RopeScaling,
    RouterConfig, Scores, VisionConfig,
};

/// An MoE model in Mixtral's family, with a distinct value in every field.
fn moe() -> ModelConfig {
    ModelConfig {
        vocab_size: 61,
        d_model: 32,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        rotary_dim: 8,
        context_length: 64,
        rope_theta: 50_000.0,
        rope_scaling: None,
        norm_epsilon: 1e-6,
        tied_embeddings: true,
        initializer_range: 0.03,
        multipliers: Multipliers::NONE,
        latent: None,
        qk_norm: QkNorm::None,
        attention_bias: AttentionBias::None,
        sinks: false,
        vision: None,
        layers: vec![LayerConfig::MOE; 4],
        moe: Some(MoeConfig {
            experts: ExpertsConfig {
                count: 6,
                top_k: 3,
                d_ff: 20,
                activation: ExpertActivation::Swiglu,
                biases: false,
                shared_d_ff: 0,
                shared_gate: false,
            },
            router: RouterConfig {
                balance: BalanceKind::Pooled,
                balance_coefficient: 0.007,
                z_coefficient: 0.0,
                ..RouterConfig::DEFAULT
            },
        }),
    }
}

fn dense(qk_norm: QkNorm) -> ModelConfig {
    ModelConfig {
        qk_norm,
        layers: vec![LayerConfig::dense(60); 4],
        moe: None,
        ..moe()
    }
}

/// A mixture with other routing.
fn routed(change: impl FnOnce(&mut RouterConfig)) -> ModelConfig {
    let mut model = moe();
    change(&mut mixture(&mut model).router);
    model
}

fn mixture(model: &mut ModelConfig) -> &mut MoeConfig {
    model.moe.as_mut().expect("a model with a mixture")
}

/// The model with some layers dense.
fn with_dense(mut model: ModelConfig, layers: &[usize]) -> ModelConfig {
    for &layer in layers {
        model.layers[layer].feed_forward = FeedForwardKind::Dense { d_ff: 44 };
    }
    model
}

/// The model with the attention of its layers repeated from these.
fn attending(mut model: ModelConfig, kinds: &[AttentionKind]) -> ModelConfig {
    for (layer, kind) in model.layers.iter_mut().zip(kinds.iter().cycle()) {
        layer.attention = *kind;
    }
    model
}

fn biased_attention(mut model: ModelConfig, bias: AttentionBias) -> ModelConfig {
    model.attention_bias = bias;
    model
}

/// A model of the family of dots.llm1, with a distinct value in every field.
fn dots() -> ModelConfig {
    let mut model = with_dense(moe(), &[0, 1]);
    model.qk_norm = QkNorm::Head;
    let MoeConfig { experts, router } = mixture(&mut model);
    experts.shared_d_ff = 40;
    *router = RouterConfig {
        scores: Scores::Sigmoid,
        normalize: false,
        scaling: 2.5,
        groups: 3,
        top_groups: 2,
        // The family has none.
        balance_coefficient: 0.0,
        ..*router
    };
    model
}

/// [`dots`] with the attention of DeepSeek-V3.
fn deepseek() -> ModelConfig {
    ModelConfig {
        kv_heads: 4,
        head_dim: 18,
        rotary_dim: 8,
        qk_norm: QkNorm::None,
        latent: Some(LatentConfig {
            rank: 16,
            query_rank: Some(20),
            value_dim: 6,
            interleaved: false,
        }),
        rope_scaling: Some(RopeScaling::Yarn {
            factor: 40.0,
            original_context: 16,
            beta_fast: 30.0,
            beta_slow: 2.0,
            attention_factor: Some(1.25),
            truncate: true,
            mscale_all_dim: 0.7,
        }),
        ..dots()
    }
}

/// [`dots`] as a model of the family of GLM-4-MoE.
fn glm() -> ModelConfig {
    ModelConfig {
        rotary_dim: 4,
        attention_bias: AttentionBias::Qkv,
        qk_norm: QkNorm::None,
        ..dots()
    }
}

/// A model of the family of Granite-MoE, with a distinct value in every field.
fn granite() -> ModelConfig {
    let multipliers = Multipliers {
        embedding: 12.0,
        residual: 0.22,
        attention: Some(0.015_625),
        logits_divisor: 6.0,
    };
    ModelConfig {
        multipliers,
        ..moe()
    }
}

/// A model of the family of Qwen2-MoE, with a distinct value in every field.
fn qwen2_moe() -> ModelConfig {
    let mut model = with_dense(moe(), &[1, 2]);
    model.attention_bias = AttentionBias::Qkv;
    let MoeConfig { experts, router } = mixture(&mut model);
    (experts.shared_d_ff, experts.shared_gate) = (28, true);
    router.normalize = false;
    model
}

/// A model of the family of gpt-oss, with a distinct value in every field.
fn gpt_oss() -> ModelConfig {
    let kinds = [AttentionKind::Window(8), AttentionKind::Full];
    let mut model = biased_attention(attending(moe(), &kinds), AttentionBias::All);
    model.sinks = true;
    let MoeConfig { experts, router } = mixture(&mut model);
    experts.activation = ExpertActivation::ClampedSwiglu {
        alpha: 1.5,
        limit: 3.0,
    };
    (experts.biases, router.logit_bias) = (true, true);
    model
}

/// This model of text with a tower that has a distinct value in every field.
fn seeing(text: ModelConfig) -> ModelConfig {
    let text = ModelConfig {
        d_model: text.heads * text.head_dim,
        tied_embeddings: false,
        ..text
    };
    let vision = VisionConfig {
        width: 20,
        d_ff: 36,
        heads: 3,
        layers: 5,
        global_layers: 1,
        tile_size: 29,
        patch_size: 7,
        max_tiles: 2,
        aspect_ratios: vec![[1, 1], [2, 1]],
        intermediate_layers: vec![4, 0, 4],
        norm_epsilon: 2e-5,
        initializer_range: 0.06,
    };
    let d_ff = text.dense_d_ff(0).unwrap_or(44);
    text.with_vision(vision, &[2], d_ff).unwrap()
}

/// The same with one thing that the family does not compute.
fn gpt_oss_without(change: impl FnOnce(&mut ModelConfig)) -> ModelConfig {
    let mut model = gpt_oss();
    change(&mut model);
    model
}

/// The same with one thing that the family does not compute.
fn dots_without(change: impl FnOnce(&mut ModelConfig)) -> ModelConfig {
    let mut model = dots();
    change(&mut model);
    model
}

/// The configuration read from a text, or the error message.
fn read(text: &str) -> Result<CheckpointConfig, String> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(CONFIG_FILE), text).unwrap();
    read_config(folder.path(), Accept::Nothing).map_err(|error| error.to_string())
}

fn family(model: &ModelConfig) -> Family {
    Family::of(model, false)
}

fn written(model: &ModelConfig, dtype: WeightDtype) -> String {
    config_json(
        model,
        &family(model),
        &Notes::of_tokens(&[3, 5], Some(1)),
        dtype,
    )
}

#[test]
fn a_checkpoint_says_how_documents_were_seen() {
    for model in [moe(), dense(QkNorm::None)] {
        let mut notes = Notes::of_tokens(&[3], None);
        for masked in [true, false] {
            notes.set_document_mask(masked);
            let text = config_json(&model, &family(&model), &notes, WeightDtype::F32);
            assert_eq!(
                text.contains("\"firebox_document_mask\": true"),
                masked,
                "{text}"
            );
            assert_eq!(read(&text).unwrap().notes.document_mask(), masked);
        }
    }
    let text =
        written(&moe(), WeightDtype::F32).replacen('{', "{ \"firebox_document_mask\": 1,", 1);
    let error = read(&text).unwrap_err();
    assert!(error.contains("firebox_document_mask"), "{error}");
}

#[test]
fn every_family_reads_what_it_writes() {
    let normed = |qk_norm, normalize| ModelConfig {
        qk_norm,
        ..routed(|router| router.normalize = normalize)
    };
    let biased = routed(|router| {
        router.bias_update_rate = 0.001;
        router.balance = BalanceKind::PerLayer;
        router.z_coefficient = 0.5;
    });
    let quantile = |router: &mut RouterConfig| {
        router.balance = BalanceKind::Quantile;
        router.balance_coefficient = 0.0;
    };
    let (full, window) = (AttentionKind::Full, AttentionKind::Window(16));
    let qwen3 = || dense(QkNorm::Head);
    let cases = [
        (dense(QkNorm::None), LLAMA),
        (dense(QkNorm::Head), QWEN3),
        (dense(QkNorm::Projection), FIREBOX),
        (moe(), MIXTRAL),
        (normed(QkNorm::None, false), FIREBOX),
        (normed(QkNorm::Projection, true), OLMOE),
        (normed(QkNorm::Projection, false), OLMOE),
        (normed(QkNorm::Head, true), QWEN3_MOE),
        (with_dense(normed(QkNorm::Head, false), &[0, 3]), QWEN3_MOE),
        (biased, FIREBOX),
        (routed(quantile), FIREBOX),
        (dots(), DOTS1),
        (
            dots_without(|model| mixture(model).experts.shared_d_ff = 0),
            FIREBOX,
        ),
        (
            dots_without(|model| mixture(model).experts.shared_d_ff = 50),
            FIREBOX,
        ),
        (
            dots_without(|model| mixture(model).router.scores = Scores::Softmax),
            FIREBOX,
        ),
        (dots_without(|model| model.qk_norm = QkNorm::None), GLM4_MOE),
        (
            dots_without(|model| model.layers[1].feed_forward = FeedForwardKind::Moe),
            DOTS1,
        ),
        (
            dots_without(|model| model.layers[0].feed_forward = FeedForwardKind::Moe),
            FIREBOX,
        ),
        (attending(dense(QkNorm::None), &[window]), MISTRAL),
        (
            attending(dense(QkNorm::None), &[full, AttentionKind::Nope]),
            SMOLLM3,
        ),
        (
            biased_attention(dense(QkNorm::None), AttentionBias::Qkv),
            QWEN2,
        ),
        (
            biased_attention(dense(QkNorm::None), AttentionBias::All),
            LLAMA,
        ),
        (biased_attention(dots(), AttentionBias::All), DOTS1),
        (biased_attention(dots(), AttentionBias::Qkv), GLM4_MOE),
        (glm(), GLM4_MOE),
        (biased_attention(glm(), AttentionBias::All), FIREBOX),
        (
            ModelConfig {
                rotary_dim: 6,
                ..glm()
            },
            GLM4_MOE,
        ),
        (deepseek(), DEEPSEEK_V3),
        (
            biased_attention(deepseek(), AttentionBias::All),
            DEEPSEEK_V3,
        ),
        (
            {
                let mut model = deepseek();
                model.rope_scaling = None;
                let latent = model.latent.as_mut().unwrap();
                (latent.query_rank, latent.interleaved) = (None, true);
                model
            },
            DEEPSEEK_V3,
        ),
        (
            ModelConfig {
                latent: deepseek().latent,
                kv_heads: 4,
                rotary_dim: 4,
                ..moe()
            },
            FIREBOX,
        ),
        (
            ModelConfig {
                multipliers: granite().multipliers,
                ..deepseek()
            },
            FIREBOX,
        ),
        (granite(), GRANITE_MOE),
        (biased_attention(granite(), AttentionBias::All), GRANITE_MOE),
        (biased_attention(granite(), AttentionBias::Qkv), FIREBOX),
        // The factors of Granite are all 1, but that of the scores, which is the usual one.
        (biased_attention(moe(), AttentionBias::All), GRANITE_MOE),
        (
            ModelConfig {
                multipliers: Multipliers {
                    residual: 0.5,
                    ..Multipliers::NONE
                },
                ..moe()
            },
            GRANITE_MOE,
        ),
        (
            ModelConfig {
                multipliers: granite().multipliers,
                ..dense(QkNorm::None)
            },
            FIREBOX,
        ),
        (qwen2_moe(), QWEN2_MOE),
        (
            biased_attention(qwen2_moe(), AttentionBias::None),
            QWEN2_MOE,
        ),
        (biased_attention(qwen2_moe(), AttentionBias::All), FIREBOX),
        (attending(qwen2_moe(), &[window, full]), QWEN2_MOE),
        (attending(qwen2_moe(), &[full, window, window]), QWEN2_MOE),
        (
            {
                let mut model = qwen2_moe();
                mixture(&mut model).experts.shared_gate = false;
                model
            },
            FIREBOX,
        ),
        (
            ModelConfig {
                sinks: true,
                ..moe()
            },
            FIREBOX,
        ),
        (
            ModelConfig {
                rotary_dim: 4,
                ..moe()
            },
            FIREBOX,
        ),
        (gpt_oss(), GPT_OSS),
        (attending(gpt_oss(), &[full]), GPT_OSS),
        (attending(gpt_oss(), &[full, full, window]), GPT_OSS),
        (biased_attention(gpt_oss(), AttentionBias::None), GPT_OSS),
        (biased_attention(gpt_oss(), AttentionBias::Qkv), FIREBOX),
        (gpt_oss_without(|model| model.sinks = false), FIREBOX),
        (
            gpt_oss_without(|model| mixture(model).experts.biases = false),
            FIREBOX,
        ),
        (
            gpt_oss_without(|model| mixture(model).router.logit_bias = false),
            FIREBOX,
        ),
        (
            gpt_oss_without(|model| {
                mixture(model).experts.activation = ExpertActivation::Swiglu;
            }),
            FIREBOX,
        ),
        (
            gpt_oss_without(|model| mixture(model).router.normalize = false),
            FIREBOX,
        ),
        (
            dots_without(|model| mixture(model).experts.biases = true),
            FIREBOX,
        ),
        (attending(moe(), &[window]), MIXTRAL),
        (attending(moe(), &[window, full]), FIREBOX),
        (attending(moe(), &[AttentionKind::Nope, full]), FIREBOX),
        (attending(normed(QkNorm::Head, true), &[window]), QWEN3_MOE),
        (attending(qwen3(), &[window, full]), QWEN3),
        (attending(dots(), &[window, full]), DOTS1),
        (
            attending(normed(QkNorm::Projection, true), &[window]),
            FIREBOX,
        ),
        (seeing(dense(QkNorm::None)), MLLAMA),
        (seeing(moe()), FIREBOX_VISION),
        // Mllama has no norms of queries and keys in layers that attend to the text.
        (seeing(qwen3()), FIREBOX),
        (seeing(gpt_oss()), FIREBOX),
    ];
    for (model, family) in cases {
        for dtype in WeightDtype::ALL {
            let text = written(&model, dtype);
            let found = read(&text).unwrap();
            assert_eq!((&found.model, found.family), (&model, family), "{text}");
            assert_eq!((found.eos_ids, found.bos_id), (vec![3, 5], Some(1)));
            // What is written from what was read is the same text.
            let again = config_json(&found.model, &found.family, &found.notes, dtype);
            assert_eq!(again, text);
            assert!(text.contains(&format!("\"torch_dtype\": \"{}\"", dtype.torch_name())));
        }
    }
}

#[test]
fn the_per_layer_loss_is_written_as_an_equivalent_pooled_loss() {
    let model = routed(|router| router.balance = BalanceKind::PerLayer);
    let read = read(&written(&model, WeightDtype::F32)).unwrap().model;
    let router = read.moe.unwrap().router;
    assert_eq!(router.balance, BalanceKind::Pooled);
    // When balanced, one is 1 and the other is k.
    assert_eq!(router.balance_coefficient, 0.007 / 3.0);
}

/// The file of a model with some fields changed, those of the text in one that sees pictures; null removes a field.
fn changed(model: &ModelConfig, changes: &Value) -> String {
    let text = written(model, WeightDtype::F32);
    let mut file: Map<String, Value> = serde_json::from_str(&text).unwrap();
    let sees = model.vision.is_some() && family(model).vision;
    let fields = match sees {
        true => file["text_config"].as_object_mut().unwrap(),
        false => &mut file,
    };
    for (key, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => fields.remove(key),
            value => fields.insert(key.clone(), value.clone()),
        };
    }
    serde_json::to_string(&file).unwrap()
}
