//! What a config.json says besides what is computed.

use std::fs;

use firebox_kernels::dtype::WeightDtype;
use firebox_model::config::ModelConfig;
use serde_json::{Map, Value, json};

use super::{changed, moe, read, written};
use crate::families::FIREBOX;
use crate::{Accept, CONFIG_FILE, GENERATION_FILE, config_json, read_config};

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
    // A longer one, with other rotary positions.
    let longer = ModelConfig {
        context_length: 128,
        ..model.clone()
    };
    let text = config_json(&longer, &found.family, &found.notes, WeightDtype::F32);
    let written: Map<String, Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(written["max_position_embeddings"], 128);
    // Nobody said which token is padding.
    let text = config_json(
        &longer,
        &found.family,
        &Default::default(),
        WeightDtype::F32,
    );
    assert!(text.contains("\"pad_token_id\": null"), "{text}");
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
        read_config(folder.path(), Accept::Nothing).map(|config| config.eos_ids)
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
    let error = read_config(folder.path(), Accept::Nothing).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("the weights are quantized (gptq)"), "{text}");
    assert!(error.advice().hint.unwrap().contains("dequantize"));
}
