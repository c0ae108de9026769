//! config.json in both directions. Weights are tested with real checkpoints, in the crate `firebox-tests`.

use std::fs;

use serde_json::{Map, Value, json};

use super::dtype::StoredDtype as _;
use super::family::{FIREBOX, Family, LLAMA, MIXTRAL, OLMOE, QWEN3, QWEN3_MOE};
use super::{CONFIG_FILE, CheckpointConfig, read_config};
use firebox_kernels::dtype::WeightDtype;
use firebox_model::config::{
    BalanceKind, DenseConfig, ExpertsConfig, FeedForwardKind, ModelConfig, QkNorm, RouterConfig,
};

/// An MoE model in Mixtral's family, with a distinct value in every field.
fn moe() -> ModelConfig {
    ModelConfig {
        vocabulary: 61,
        layers: 4,
        d_model: 32,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        context: 64,
        rope_theta: 50_000.0,
        norm_epsilon: 1e-6,
        tied_embeddings: true,
        initializer_range: 0.03,
        qk_norm: QkNorm::None,
        feed_forward: FeedForwardKind::Moe,
        dense: None,
        experts: ExpertsConfig {
            count: 6,
            per_token: 3,
            d_ff: 20,
        },
        router: RouterConfig {
            normalize: true,
            balance: BalanceKind::Pooled,
            balance_coefficient: 0.007,
            z_coefficient: 0.0,
            bias_update_rate: 0.0,
        },
    }
}

fn dense(qk_norm: QkNorm) -> ModelConfig {
    ModelConfig {
        qk_norm,
        feed_forward: FeedForwardKind::Dense,
        experts: ExpertsConfig {
            count: 1,
            per_token: 1,
            d_ff: 60,
        },
        router: RouterConfig {
            balance_coefficient: 0.0,
            ..moe().router
        },
        ..moe()
    }
}

/// The configuration read from a text, or the error message.
fn read(text: &str) -> Result<CheckpointConfig, String> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(CONFIG_FILE), text).unwrap();
    read_config(folder.path()).map_err(|error| error.to_string())
}

fn written(model: &ModelConfig) -> CheckpointConfig {
    CheckpointConfig {
        family: Family::of(model, false),
        model: model.clone(),
        end_of_text: vec![3, 5],
        beginning_of_text: Some(1),
    }
}

#[test]
fn every_family_reads_what_it_writes() {
    let normed = |qk_norm, normalize| ModelConfig {
        qk_norm,
        router: RouterConfig {
            normalize,
            ..moe().router
        },
        ..moe()
    };
    let some_dense = ModelConfig {
        dense: Some(DenseConfig {
            layers: vec![0, 3],
            d_ff: 44,
        }),
        ..normed(QkNorm::Head, false)
    };
    let biased = ModelConfig {
        router: RouterConfig {
            bias_update_rate: 0.001,
            balance: BalanceKind::PerLayer,
            z_coefficient: 0.5,
            ..moe().router
        },
        ..moe()
    };
    let cases = [
        (dense(QkNorm::None), LLAMA),
        (dense(QkNorm::Head), QWEN3),
        (dense(QkNorm::Projection), FIREBOX),
        (moe(), MIXTRAL),
        (normed(QkNorm::None, false), FIREBOX),
        (normed(QkNorm::Projection, true), OLMOE),
        (normed(QkNorm::Projection, false), OLMOE),
        (normed(QkNorm::Head, true), QWEN3_MOE),
        (some_dense, QWEN3_MOE),
        (biased, FIREBOX),
    ];
    for (model, family) in cases {
        let config = written(&model);
        assert_eq!(config.family, family);
        for dtype in WeightDtype::ALL {
            let text = config.to_json(dtype);
            assert_eq!(read(&text).unwrap(), config, "{text}");
            assert!(text.contains(&format!("\"torch_dtype\": \"{}\"", dtype.torch_name())));
        }
    }
}

#[test]
fn the_per_layer_loss_is_written_as_an_equivalent_pooled_loss() {
    let mut model = moe();
    model.router.balance = BalanceKind::PerLayer;
    let read = read(&written(&model).to_json(WeightDtype::F32)).unwrap();
    assert_eq!(read.model.router.balance, BalanceKind::Pooled);
    // When balanced, one is 1 and the other is k.
    assert_eq!(read.model.router.balance_coefficient, 0.007 / 3.0);
}

/// The file of a model with some fields changed; null removes a field.
fn changed(model: &ModelConfig, changes: &Value) -> String {
    let text = written(model).to_json(WeightDtype::F32);
    let mut fields: Map<String, Value> = serde_json::from_str(&text).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => fields.remove(key),
            value => fields.insert(key.clone(), value.clone()),
        };
    }
    serde_json::to_string(&fields).unwrap()
}

#[test]
fn equivalent_spellings_give_the_same_configuration() {
    let mut qwen = moe();
    qwen.qk_norm = QkNorm::Head;
    qwen.dense = Some(DenseConfig {
        layers: vec![0, 1, 2],
        d_ff: 44,
    });
    let llama = dense(QkNorm::None);
    let cases = [
        (moe(), json!({ "rope_theta": null })),
        (
            moe(),
            json!({ "rope_parameters": null, "rope_scaling": null }),
        ),
        (moe(), json!({ "head_dim": null })),
        (moe(), json!({ "sliding_window": 64 })),
        (moe(), json!({ "rope_scaling": { "type": "default" } })),
        (
            moe(),
            json!({ "transformers_version": "4.40.0", "_name_or_path": "there", "new_option": false }),
        ),
        (qwen.clone(), json!({ "num_experts": null })),
        (qwen.clone(), json!({ "num_local_experts": null })),
        (
            qwen.clone(),
            json!({ "use_sliding_window": false, "sliding_window": 8, "max_window_layers": 2 }),
        ),
        // Every other layer is MoE, and one of those is dense.
        (
            qwen,
            json!({ "decoder_sparse_step": 2, "mlp_only_layers": [1] }),
        ),
        (
            llama.clone(),
            json!({ "pretraining_tp": 2, "mlp_bias": false }),
        ),
        (llama, json!({ "layer_types": ["full_attention"] })),
    ];
    for (model, changes) in cases {
        let found = read(&changed(&model, &changes)).unwrap();
        assert_eq!(found.model, model, "{changes}");
    }
}

#[test]
fn absent_fields_have_the_defaults_of_transformers() {
    let bare = json!({ "rope_theta": null, "rope_parameters": null, "num_key_value_heads": null, "eos_token_id": 9, "tie_word_embeddings": null });
    let found = read(&changed(&dense(QkNorm::None), &bare)).unwrap();
    assert_eq!(
        (found.model.rope_theta, found.model.kv_heads),
        (10_000.0, 4)
    );
    assert_eq!(
        (found.end_of_text, found.model.tied_embeddings),
        (vec![9], false)
    );
    let found = read(&changed(
        &moe(),
        &json!({ "rope_theta": null, "rope_parameters": null }),
    ))
    .unwrap();
    assert_eq!(found.model.rope_theta, 1e6);
    let mut olmoe = moe();
    olmoe.qk_norm = QkNorm::Projection;
    let found = read(&changed(&olmoe, &json!({ "norm_topk_prob": null }))).unwrap();
    assert!(!found.model.router.normalize);
}

#[test]
fn unsupported_fields_are_rejected_by_name() {
    let cases = [
        json!({ "model_type": "mamba" }),
        json!({ "hidden_act": "gelu" }),
        json!({ "sliding_window": 63 }),
        json!({ "attention_bias": true }),
        json!({ "attention_dropout": 0.1 }),
        json!({ "router_jitter_noise": 0.01 }),
        json!({ "clip_qkv": 8.0 }),
        json!({ "rope_scaling": { "type": "linear", "factor": 2.0 } }),
        json!({ "rope_parameters": { "rope_type": "yarn", "factor": 4.0 } }),
        json!({ "rope_theta": 7.0 }),
        json!({ "layer_types": ["full_attention", "sliding_attention"] }),
        json!({ "quantization_config": { "bits": 4 } }),
        json!({ "attn_logit_softcapping": 50.0 }),
        json!({ "norm_topk_prob": false }),
        json!({ "vocab_size": "61" }),
        json!({ "num_hidden_layers": null }),
        json!({ "num_attention_heads": 0 }),
        json!({ "num_experts_per_tok": 7 }),
        json!({ "eos_token_id": [1, "</s>"] }),
        json!({ "tie_word_embeddings": "yes" }),
        json!({ "hidden_size": 1e30 }),
    ];
    for changes in cases {
        let error = read(&changed(&moe(), &changes)).unwrap_err();
        let key = changes.as_object().unwrap().keys().next().unwrap();
        let ours = ["heads", "experts.per_token"]
            .iter()
            .any(|key| error.contains(key));
        assert!(error.contains(key.as_str()) || ours, "{changes}: {error}");
    }
    let mut qwen = moe();
    qwen.qk_norm = QkNorm::Head;
    let error = read(&changed(&qwen, &json!({ "num_local_experts": 5 }))).unwrap_err();
    assert!(error.contains("must be num_experts = 6"), "{error}");
}
