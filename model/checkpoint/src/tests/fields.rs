//! How families use fields: every one is read, passed over or refused.

use firebox_model::config::{AttentionBias, AttentionKind, ModelConfig, QkNorm};
use serde_json::{Value, json};

use super::{
    attending, biased_attention, changed, deepseek, dense, dots, family, glm, gpt_oss, granite,
    moe, qwen2_moe, read, seeing, with_dense,
};
use crate::families::{Family, Field, Usage};

#[test]
fn unsupported_fields_are_rejected_by_name() {
    let cases = [
        json!({ "model_type": "mamba" }),
        json!({ "hidden_act": "gelu" }),
        json!({ "sliding_window": 0 }),
        json!({ "attention_bias": true }),
        json!({ "clip_qkv": 8.0 }),
        json!({ "rope_scaling": { "type": "longrope", "factor": 2.0 } }),
        json!({ "rope_parameters": { "rope_type": "dynamic", "factor": 4.0 } }),
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
fn models() -> [ModelConfig; 17] {
    let normed = |qk_norm| ModelConfig { qk_norm, ..moe() };
    let models = [
        dense(QkNorm::None),
        attending(dense(QkNorm::None), &[AttentionKind::Window(8)]),
        biased_attention(dense(QkNorm::None), AttentionBias::Qkv),
        dense(QkNorm::Head),
        attending(dense(QkNorm::None), &[AttentionKind::Nope]),
        moe(),
        normed(QkNorm::Projection),
        with_dense(normed(QkNorm::Head), &[0]),
        qwen2_moe(),
        granite(),
        dots(),
        glm(),
        deepseek(),
        gpt_oss(),
        seeing(dense(QkNorm::None)),
        seeing(moe()),
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
    let dense: Vec<usize> = found.model.dense_layers().map(|(layer, _)| layer).collect();
    assert_eq!(dense, [0, 2]);
}

/// Mixtral has no switch for its window, so that the switch of another family does not turn it off.
#[test]
fn a_window_is_not_turned_off_by_the_switch_of_another_family() {
    let window = json!({ "sliding_window": 8, "use_sliding_window": false });
    let found = read(&changed(&moe(), &window)).unwrap();
    assert_eq!(found.model, attending(moe(), &[AttentionKind::Window(8)]));
}

#[test]
fn a_part_of_a_head_that_cannot_be_rotated_is_named_as_the_file_has_it() {
    for factor in [0.4, -0.5, 1.5] {
        let changes = json!({ "partial_rotary_factor": factor });
        let error = read(&changed(&glm(), &changes)).unwrap_err();
        let expected = format!("partial_rotary_factor = {factor}");
        assert!(error.contains(&expected), "{error}");
    }
}

/// `transformers` computes nothing of a window in these families, or has no mask for it.
#[test]
fn a_window_that_is_not_computed_is_refused() {
    let listed = json!([
        "full_attention",
        "full_attention",
        "full_attention",
        "sliding_attention"
    ]);
    for (model, changes, field) in [
        (
            dense(QkNorm::None),
            json!({ "sliding_window": 8 }),
            "sliding_window = 8",
        ),
        (
            moe(),
            json!({ "layer_types": listed, "sliding_window": 8 }),
            "sliding_attention",
        ),
        (
            dense(QkNorm::Head),
            json!({ "layer_types": listed, "sliding_window": 8 }),
            "sliding_attention",
        ),
        (
            dense(QkNorm::Head),
            json!({ "layer_types": ["full_attention"] }),
            "layer_types",
        ),
    ] {
        let error = read(&changed(&model, &changes)).unwrap_err();
        assert!(error.contains(field), "{error}");
    }
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
