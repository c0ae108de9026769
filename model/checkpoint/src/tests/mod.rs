//! config.json in both directions. Weights are tested with real checkpoints, in the crate `firebox-tests`.

mod published;

use std::fs;

use serde_json::{Map, Value, json};

use crate::dtype::StoredDtype as _;
use crate::families::{
    DOTS1, FIREBOX, Family, Field, LLAMA, MIXTRAL, OLMOE, QWEN3, QWEN3_MOE, Usage,
};
use crate::{CONFIG_FILE, CheckpointConfig, GENERATION_FILE, Notes, config_json, read_config};
use firebox_kernels::dtype::WeightDtype;
use firebox_model::config::{
    BalanceKind, DenseConfig, ExpertsConfig, FeedForwardKind, ModelConfig, QkNorm, RouterConfig,
    Scores,
};

/// An MoE model in Mixtral's family, with a distinct value in every field.
fn moe() -> ModelConfig {
    ModelConfig {
        vocab_size: 61,
        layers: 4,
        d_model: 32,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        context_length: 64,
        rope_theta: 50_000.0,
        norm_epsilon: 1e-6,
        tied_embeddings: true,
        initializer_range: 0.03,
        qk_norm: QkNorm::None,
        feed_forward: FeedForwardKind::Moe,
        dense: None,
        experts: ExpertsConfig {
            count: 6,
            top_k: 3,
            d_ff: 20,
            shared_d_ff: 0,
        },
        router: RouterConfig {
            scores: Scores::Softmax,
            normalize: true,
            scaling: 1.0,
            groups: 1,
            top_groups: 1,
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
            top_k: 1,
            d_ff: 60,
            shared_d_ff: 0,
        },
        router: RouterConfig {
            balance_coefficient: 0.0,
            ..moe().router
        },
        ..moe()
    }
}

/// A model of the family of dots.llm1, with a distinct value in every field.
fn dots() -> ModelConfig {
    ModelConfig {
        qk_norm: QkNorm::Head,
        dense: Some(DenseConfig {
            layers: vec![0, 1],
            d_ff: 44,
        }),
        experts: ExpertsConfig {
            shared_d_ff: 40,
            ..moe().experts
        },
        router: RouterConfig {
            scores: Scores::Sigmoid,
            normalize: false,
            scaling: 2.5,
            groups: 3,
            top_groups: 2,
            // The family has none.
            balance_coefficient: 0.0,
            ..moe().router
        },
        ..moe()
    }
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
    read_config(folder.path()).map_err(|error| error.to_string())
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
        (dots(), DOTS1),
        (dots_without(|model| model.experts.shared_d_ff = 0), FIREBOX),
        (
            dots_without(|model| model.experts.shared_d_ff = 50),
            FIREBOX,
        ),
        (
            dots_without(|model| model.router.scores = Scores::Softmax),
            FIREBOX,
        ),
        (dots_without(|model| model.qk_norm = QkNorm::None), FIREBOX),
        (
            dots_without(|model| {
                model.dense = Some(DenseConfig {
                    layers: vec![1],
                    d_ff: 44,
                });
            }),
            FIREBOX,
        ),
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
    let mut model = moe();
    model.router.balance = BalanceKind::PerLayer;
    let read = read(&written(&model, WeightDtype::F32)).unwrap();
    assert_eq!(read.model.router.balance, BalanceKind::Pooled);
    // When balanced, one is 1 and the other is k.
    assert_eq!(read.model.router.balance_coefficient, 0.007 / 3.0);
}

/// The file of a model with some fields changed; null removes a field.
fn changed(model: &ModelConfig, changes: &Value) -> String {
    let text = written(model, WeightDtype::F32);
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

/// The numbers of `transformers` 5.24, read off its configuration classes.
#[test]
fn absent_fields_have_the_defaults_of_transformers() {
    let of = |kind: &str| {
        read(&json!({ "model_type": kind }).to_string())
            .unwrap()
            .model
    };
    let sizes = |model: &ModelConfig| {
        [
            model.vocab_size,
            model.d_model,
            model.layers,
            model.heads,
            model.kv_heads,
            model.head_dim,
            model.context_length,
        ]
    };
    let llama = of("llama");
    assert_eq!(sizes(&llama), [32_000, 4096, 32, 32, 32, 128, 2048]);
    assert_eq!((llama.active_d_ff(), llama.norm_epsilon), (11_008, 1e-6));
    assert_eq!((llama.rope_theta, llama.tied_embeddings), (10_000.0, false));
    assert_eq!(llama.initializer_range, 0.02);
    let qwen3 = of("qwen3");
    assert_eq!(sizes(&qwen3), [151_936, 4096, 32, 32, 32, 128, 32_768]);
    assert_eq!((qwen3.active_d_ff(), qwen3.norm_epsilon), (22_016, 1e-6));
    let mixtral = of("mixtral");
    assert_eq!(sizes(&mixtral), [32_000, 4096, 32, 32, 8, 128, 131_072]);
    assert_eq!((mixtral.norm_epsilon, mixtral.rope_theta), (1e-5, 1e6));
    let experts = |model: &ModelConfig| {
        let ExpertsConfig {
            count, top_k, d_ff, ..
        } = model.experts;
        [count, top_k, d_ff]
    };
    assert_eq!(experts(&mixtral), [8, 2, 14_336]);
    let olmoe = of("olmoe");
    assert_eq!(sizes(&olmoe), [50_304, 2048, 16, 16, 16, 128, 4096]);
    assert_eq!((olmoe.norm_epsilon, olmoe.rope_theta), (1e-5, 10_000.0));
    assert_eq!(experts(&olmoe), [64, 8, 2048]);
    let moe = of("qwen3_moe");
    assert_eq!(sizes(&moe), [151_936, 2048, 24, 32, 4, 64, 32_768]);
    assert_eq!(experts(&moe), [128, 8, 768]);
    for (model, coefficient, normalize) in [
        (mixtral, 0.001, true),
        (olmoe, 0.01, false),
        (moe, 0.001, false),
    ] {
        assert_eq!(model.router.balance_coefficient, coefficient);
        assert_eq!(model.router.balance, BalanceKind::Pooled);
        assert_eq!(model.router.normalize, normalize);
    }
    // Null is absent, but for the key/value heads: as many as query heads.
    let null = json!({
        "model_type": "qwen3", "num_key_value_heads": null, "num_attention_heads": 8,
        "rms_norm_eps": null, "vocab_size": null,
    });
    let null = read(&null.to_string()).unwrap().model;
    assert_eq!((null.kv_heads, null.norm_epsilon), (8, 1e-6));
    assert_eq!(null.vocab_size, 151_936);
}

#[test]
fn what_says_nothing_of_the_computation_is_kept_for_writing() {
    let changes = json!({
        "max_position_embeddings": 64, "pad_token_id": 7, "unsloth_version": "2025.3.19",
        "attention_dropout": 0.1, "transformers_version": "4.51.3", "dtype": "bfloat16",
        "eos_token_id": [9, 10],
    });
    let found = read(&changed(&moe(), &changes)).unwrap();
    // A shorter context in training.
    let model = ModelConfig {
        context_length: 16,
        ..found.model
    };
    let text = config_json(&model, &found.family, &found.notes, WeightDtype::F32);
    let written: Map<String, Value> = serde_json::from_str(&text).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        let expected = match key.as_str() {
            "dtype" => &json!("float32"),
            _ => value,
        };
        assert_eq!(&written[key], expected, "{key}");
    }
    let options: Vec<_> = found.notes.training_options(&found.family).collect();
    assert_eq!(options, [("attention_dropout", &json!(0.1))]);
    // Another family has fields of its own.
    let firebox = config_json(&model, &FIREBOX, &found.notes, WeightDtype::F32);
    assert!(!firebox.contains("attention_dropout") && firebox.contains("unsloth"));
}

#[test]
fn a_text_ends_at_the_ids_of_both_files() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join(CONFIG_FILE),
        written(&moe(), WeightDtype::F32),
    )
    .unwrap();
    let ids = |generation: &str| {
        fs::write(folder.path().join(GENERATION_FILE), generation).unwrap();
        read_config(folder.path()).map(|config| config.eos_ids)
    };
    assert_eq!(ids("{\"eos_token_id\": [9, 5]}").unwrap(), [3, 5, 9]);
    assert_eq!(ids("{\"eos_token_id\": 4}").unwrap(), [3, 5, 4]);
    assert_eq!(ids("{\"temperature\": 0.6}").unwrap(), [3, 5]);
    for bad in ["{\"eos_token_id\": \"end\"}", "{", "[1]"] {
        let error = ids(bad).map_err(|error| error.to_string());
        let expected = bad == "[1]";
        assert_eq!(error.is_ok(), expected, "{error:?}");
        assert!(expected || error.unwrap_err().contains(GENERATION_FILE));
    }
}

#[test]
fn quantized_weights_are_named_as_such() {
    use firebox_console::advice::Advise as _;
    let folder = tempfile::tempdir().unwrap();
    let changes = json!({ "quantization_config": { "quant_method": "gptq", "bits": 4 } });
    fs::write(folder.path().join(CONFIG_FILE), changed(&moe(), &changes)).unwrap();
    let error = read_config(folder.path()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("the weights are quantized (gptq)"), "{text}");
    assert!(error.advice().hint.unwrap().contains("dequantize"));
}

#[test]
fn unsupported_fields_are_rejected_by_name() {
    let cases = [
        json!({ "model_type": "mamba" }),
        json!({ "hidden_act": "gelu" }),
        json!({ "sliding_window": 63 }),
        json!({ "attention_bias": true }),
        json!({ "clip_qkv": 8.0 }),
        json!({ "rope_scaling": { "type": "linear", "factor": 2.0 } }),
        json!({ "rope_parameters": { "rope_type": "yarn", "factor": 4.0 } }),
        json!({ "rope_theta": 7.0 }),
        json!({ "layer_types": ["full_attention", "sliding_attention"] }),
        json!({ "quantization_config": { "bits": 4 } }),
        json!({ "attn_logit_softcapping": 50.0 }),
        json!({ "norm_topk_prob": false }),
        json!({ "vocab_size": "61" }),
        json!({ "num_attention_heads": 0 }),
        json!({ "num_experts_per_tok": 7 }),
        json!({ "eos_token_id": [1, "</s>"] }),
        json!({ "tie_word_embeddings": "yes" }),
        json!({ "hidden_size": 1e30 }),
    ];
    for changes in cases {
        let error = read(&changed(&moe(), &changes)).unwrap_err();
        let key = changes.as_object().unwrap().keys().next().unwrap();
        let ours = ["heads", "experts.top_k"]
            .iter()
            .any(|key| error.contains(key));
        assert!(error.contains(key.as_str()) || ours, "{changes}: {error}");
    }
    let mut qwen = moe();
    qwen.qk_norm = QkNorm::Head;
    let error = read(&changed(&qwen, &json!({ "num_local_experts": 5 }))).unwrap_err();
    assert!(error.contains("must be num_experts = 6"), "{error}");
}

/// A model that each family computes; the mixture of Qwen3-MoE has a dense layer.
fn models() -> [ModelConfig; 7] {
    let normed = |qk_norm| ModelConfig { qk_norm, ..moe() };
    let some_dense = ModelConfig {
        dense: Some(DenseConfig {
            layers: vec![0],
            d_ff: 44,
        }),
        ..normed(QkNorm::Head)
    };
    let models = [
        dense(QkNorm::None),
        dense(QkNorm::Head),
        moe(),
        normed(QkNorm::Projection),
        some_dense,
        dots(),
        dense(QkNorm::Projection),
    ];
    assert_eq!(models.each_ref().map(family), Family::ALL);
    models
}

#[test]
fn a_field_of_another_family_is_refused_unless_it_comes_to_nothing() {
    let mut refused = Vec::new();
    for model in models() {
        let family = family(&model);
        let others = Family::ALL.iter().flat_map(Family::fields);
        let foreign = others.filter(|field| family.usage(field.name).is_none());
        for Field { name, .. } in foreign {
            for value in [
                json!(2),
                json!(true),
                json!("some"),
                json!([0]),
                json!({ "a": 1 }),
            ] {
                let error = read(&changed(&model, &json!({ *name: value }))).unwrap_err();
                let words = format!("{name} = {value}: {} has no such field", family.model_type);
                assert!(error.contains(&words), "no {words:?} in {error}");
            }
            for value in [json!(false), json!(0), json!([]), json!({})] {
                let found = read(&changed(&model, &json!({ *name: value }))).unwrap();
                assert_eq!(found.model, model, "{name} = {value}");
            }
            refused.push((family.model_type, *name));
        }
    }
    for pair in [
        ("mixtral", "mlp_only_layers"),
        ("mixtral", "moe_intermediate_size"),
        ("mixtral", "use_sliding_window"),
        ("llama", "moe_intermediate_size"),
        ("llama", "num_experts_per_tok"),
        ("qwen3", "norm_topk_prob"),
        ("olmoe", "router_jitter_noise"),
        ("qwen3_moe", "clip_qkv"),
        ("firebox", "hidden_size"),
    ] {
        assert!(refused.contains(&pair), "{pair:?}");
    }
}

#[test]
fn every_field_is_used_as_its_family_says() {
    for model in models() {
        let family = family(&model);
        for Field { name, usage } in family.fields().filter(|field| field.name != "model_type") {
            let set = |value: &Value| read(&changed(&model, &json!({ *name: value })));
            let odd = json!({ "odd": true });
            match usage {
                // What is read is looked at: nonsense does not pass.
                Usage::Read => {
                    let error = set(&odd).unwrap_err();
                    assert!(error.contains(name), "{name}: {error}");
                }
                Usage::Neutral | Usage::Training => {
                    assert_eq!(set(&odd).unwrap().model, model, "{name}");
                }
                Usage::Only { values, rule } => {
                    for value in *values {
                        let value: Value = serde_json::from_str(value).unwrap();
                        assert_eq!(set(&value).unwrap().model, model, "{name}");
                    }
                    let error = set(&odd).unwrap_err();
                    assert!(error.contains(name) && error.contains(rule), "{error}");
                }
                Usage::Off { rule } => {
                    for off in [json!(false), json!(0.0)] {
                        assert_eq!(set(&off).unwrap().model, model, "{name}");
                    }
                    let error = set(&json!(0.5)).unwrap_err();
                    assert!(error.contains(name) && error.contains(rule), "{error}");
                }
            }
        }
    }
}

#[test]
fn a_field_has_one_place_in_a_family() {
    for family in Family::ALL {
        let mut names: Vec<&str> = family.fields().map(|field| field.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count, "{}", family.model_type);
    }
}

/// Which layers are mixtures: Qwen3-MoE reads the field, and in Mixtral it can only say what is so anyway.
#[test]
fn a_step_between_mixtures_is_read_or_refused_but_never_passed_over() {
    let step = |step: u64| json!({ "decoder_sparse_step": step });
    assert_eq!(read(&changed(&moe(), &step(1))).unwrap().model, moe());
    let error = read(&changed(&moe(), &step(2))).unwrap_err();
    assert!(error.contains("decoder_sparse_step = 2"), "{error}");
    let mut qwen = moe();
    qwen.qk_norm = QkNorm::Head;
    let found = read(&changed(&qwen, &step(2))).unwrap();
    assert_eq!(found.model.dense.unwrap().layers, [0, 2]);
}

/// Mixtral has no switch for its window, so that the switch of another family does not turn it off.
#[test]
fn a_window_is_not_turned_off_by_the_switch_of_another_family() {
    let window = json!({ "sliding_window": 8, "use_sliding_window": false });
    let error = read(&changed(&moe(), &window)).unwrap_err();
    assert!(error.contains("sliding_window = 8"), "{error}");
}

#[test]
fn either_spelling_of_the_number_of_experts_is_read() {
    let mut olmoe = moe();
    olmoe.qk_norm = QkNorm::Projection;
    for (model, own, other) in [
        (moe(), "num_local_experts", "num_experts"),
        (olmoe, "num_experts", "num_local_experts"),
    ] {
        let renamed = json!({ own: null, other: 6 });
        assert_eq!(read(&changed(&model, &renamed)).unwrap().model, model);
        let error = read(&changed(&model, &json!({ other: 5 }))).unwrap_err();
        assert!(error.contains(&format!("must be {own} = 6")), "{error}");
    }
}
