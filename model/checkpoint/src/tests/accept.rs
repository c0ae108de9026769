//! Unknown fields of a config.json that a user accepts.

use std::fs;

use firebox_console::advice::Advise as _;
use firebox_kernels::dtype::WeightDtype;
use firebox_model::config::QkNorm;
use serde_json::{Map, Value, json};

use super::{changed, dense, family, moe};
use crate::families::{MIXTRAL, QWEN3_MOE};
use crate::{Accept, CONFIG_FILE, CheckpointConfig, CheckpointError, config_json, read_config};

fn names(fields: &[&str]) -> Vec<String> {
    fields.iter().map(|&field| field.to_owned()).collect()
}

fn read(text: &str, accept: Accept) -> Result<CheckpointConfig, CheckpointError> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(CONFIG_FILE), text).unwrap();
    read_config(folder.path(), accept)
}

fn warnings(config: &CheckpointConfig) -> Vec<String> {
    config.notes.warnings("model".as_ref()).collect()
}

#[test]
fn an_accepted_field_is_ignored_warned_of_and_remembered() {
    let text = changed(
        &moe(),
        &json!({ "lab_notes": { "run": 7 }, "lab_stage": 2 }),
    );
    let both = names(&["lab_stage", "lab_notes"]);
    let found = read(&text, Accept::Flag(&both)).unwrap();
    assert_eq!(found.model, moe());
    assert_eq!(
        warnings(&found),
        [
            "model/config.json: lab_notes = {\"run\":7} is accepted, and ignored in what is computed",
            "model/config.json: lab_stage = 2 is accepted, and ignored in what is computed",
        ]
    );
    let written = config_json(&found.model, &found.family, &found.notes, WeightDtype::F32);
    let fields: Map<String, Value> = serde_json::from_str(&written).unwrap();
    assert_eq!(fields["lab_notes"], json!({ "run": 7 }));
    assert_eq!(
        fields["firebox_accepted"],
        json!(["lab_notes", "lab_stage"])
    );
    // From now on it needs no flag, and may have one.
    for accept in [
        Accept::Nothing,
        Accept::Flag(&both[..1]),
        Accept::Key(&both),
    ] {
        let again = read(&written, accept).unwrap();
        assert_eq!(again, found);
    }
    // What is accepted is accepted by name.
    let more = written.replace("lab_stage\": 2", "lab_stage\": 2, \"lab_other\": 3");
    let error = read(&more, Accept::Nothing).unwrap_err();
    assert!(error.to_string().contains("lab_other = 3"), "{error}");
    let removed = written.replace("\"lab_stage\": 2,", "");
    assert_eq!(warnings(&read(&removed, Accept::Nothing).unwrap()).len(), 1);
}

#[test]
fn the_hint_of_an_unknown_field_says_how_to_accept_it() {
    let hint = |changes: &Value, accept| {
        let error = read(&changed(&moe(), changes), accept).unwrap_err();
        assert!(matches!(error, CheckpointError::ForeignField { .. }));
        error.advice().hint.unwrap()
    };
    let (unknown, foreign) = (
        json!({ "lab_stage": 2 }),
        json!({ "use_sliding_window": true }),
    );
    assert_eq!(
        hint(&unknown, Accept::Flag(&[])),
        "if it does not affect what the network computes, --accept lab_stage makes Firebox ignore it and keep it"
    );
    assert_eq!(
        hint(&foreign, Accept::Key(&[])),
        "if it does not affect what the network computes, train.accept = [\"use_sliding_window\"] makes Firebox ignore \
         it and keep it; if the weights are of the family qwen2 or qwen3 or smollm3 or qwen3_moe or qwen2_moe, set \
         model_type"
    );
    assert!(hint(&unknown, Accept::Nothing).ends_with("remove it"));
}

#[test]
fn only_unknown_fields_of_the_file_are_accepted() {
    let refusal = |changes: Value, field: &str| {
        let fields = names(&[field]);
        let error = read(&changed(&moe(), &changes), Accept::Flag(&fields)).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        let text = error.to_string();
        assert!(text.starts_with(&format!("--accept {field}: ")), "{text}");
        (text, error.advice().hint.unwrap())
    };
    let (text, hint) = refusal(json!({ "lab_stage": 2 }), "lab_stages");
    assert!(text.ends_with("config.json has no such field"), "{text}");
    assert!(hint.ends_with("does not know: lab_stage"), "{hint}");
    let (_, hint) = refusal(json!({}), "lab_stage");
    assert!(hint.contains("has no other field"), "{hint}");
    for (changes, field, reason) in [
        (
            json!({ "attention_bias": true }),
            "attention_bias",
            "in this family attention has no biases, whatever the field says",
        ),
        (
            json!({ "hidden_act": "gelu" }),
            "hidden_act",
            "Firebox computes silu",
        ),
        (
            json!({ "rope_parameters": null, "rope_scaling": { "rope_type": "dynamic", "factor": 4.0 } }),
            "rope_scaling",
            "Firebox computes default, linear, llama3 and yarn",
        ),
        (
            json!({ "sliding_window": 8 }),
            "sliding_window",
            "it is part of the computation",
        ),
        (
            json!({ "quantization_config": { "bits": 4 } }),
            "quantization_config",
            "the weights are quantized",
        ),
        (json!({}), "vocab_size", "it is part of the computation"),
        (
            json!({ "pad_token_id": 7 }),
            "pad_token_id",
            "it is ignored anyway",
        ),
    ] {
        let (text, hint) = refusal(changes, field);
        assert!(
            text.contains("cannot be accepted") && text.ends_with(reason),
            "{text}"
        );
        assert!(hint.contains("that Firebox does not know"), "{hint}");
    }
    // Nor does a file accept them for itself.
    let changes = json!({ "attention_bias": true, "firebox_accepted": ["attention_bias", "gone"] });
    let error = read(&changed(&moe(), &changes), Accept::Nothing).unwrap_err();
    assert!(
        error.to_string().contains("attention has no biases"),
        "{error}"
    );
}

#[test]
fn in_another_family_a_field_means_what_that_family_says() {
    let fields = json!({ "lab_stage": 2, "num_experts_per_tok": 5, "moe_intermediate_size": 3 });
    let accepted = names(&["lab_stage", "num_experts_per_tok", "moe_intermediate_size"]);
    let text = changed(&dense(QkNorm::None), &fields);
    let found = read(&text, Accept::Key(&accepted)).unwrap();
    assert_eq!(found.model.moe, None);
    // As in upcycling.
    let model = moe();
    assert_eq!(family(&model), MIXTRAL);
    let text = config_json(&model, &MIXTRAL, &found.notes, WeightDtype::F32);
    let again = read(&text, Accept::Nothing).unwrap();
    assert_eq!(again.model, model);
    assert_eq!(warnings(&again).len(), 2);
    let text = config_json(&model, &QWEN3_MOE, &found.notes, WeightDtype::F32);
    let again = read(&text, Accept::Nothing).unwrap();
    assert_eq!(
        (
            again.model.moe.clone().map(|moe| moe.experts),
            warnings(&again).len()
        ),
        (model.moe.map(|moe| moe.experts), 1)
    );
}
