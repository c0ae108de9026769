//! Models that see pictures: what their files may not say, and by which name it is refused.

use std::fs;

use serde_json::{Value, json};

use super::{dense, family, gpt_oss, moe, read, seeing, written};
use crate::{Accept, CONFIG_FILE, Notes, PREPROCESSOR_FILE, config_json, read_config};
use firebox_kernels::dtype::WeightDtype;
use firebox_model::config::{ModelConfig, QkNorm};

/// The file of a model with a value at a path; null removes it.
fn with(model: &ModelConfig, path: &str, value: &Value) -> String {
    let text = written(model, WeightDtype::F32);
    let mut file: Value = serde_json::from_str(&text).unwrap();
    let (table, key) = path.rsplit_once('.').unwrap_or(("", path));
    let table = match table {
        "" => &mut file,
        table => &mut file[table],
    };
    let fields = table.as_object_mut().unwrap();
    match value {
        Value::Null => fields.remove(key),
        value => fields.insert(key.to_owned(), value.clone()),
    };
    file.to_string()
}

/// transformers refuses a null as the id that begins a text.
#[test]
fn an_id_that_there_is_not_is_left_out() {
    let model = seeing(dense(QkNorm::None));
    let field = |bos_id| {
        let notes = Notes::of_tokens(&[3], bos_id);
        let text = config_json(&model, &family(&model), &notes, WeightDtype::F32);
        let file: Value = serde_json::from_str(&text).unwrap();
        let config = read(&text).unwrap();
        assert_eq!((config.eos_ids, config.bos_id), (vec![3], bos_id));
        file["text_config"].get("bos_token_id").cloned()
    };
    assert_eq!(field(Some(1)), Some(json!(1)));
    assert_eq!(field(None), None);
}

#[test]
fn what_is_not_computed_is_refused_by_name() {
    let model = seeing(dense(QkNorm::None));
    let vocabulary = model.vocab_size;
    for (path, value, rule) in [
        ("tie_word_embeddings", json!(true), "ties nothing"),
        (
            "text_config.tie_word_embeddings",
            json!(true),
            "ties nothing",
        ),
        (
            "text_config.cross_attention_layers",
            json!([0, 2]),
            "must not contain 0",
        ),
        (
            "text_config.cross_attention_layers",
            json!([]),
            "at least one layer",
        ),
        (
            "text_config.cross_attention_layers",
            json!("2"),
            "list of integers",
        ),
        ("text_config.dropout", json!(0.1), "no dropout"),
        ("text_config.hidden_act", json!("gelu"), "computes silu"),
        (
            "text_config.model_type",
            json!("llama"),
            "mllama_text_model",
        ),
        ("text_config.head_dim", json!(16), "has no such field"),
        (
            "text_config.pad_token_id",
            json!(vocabulary + 8),
            "rows of the embedding",
        ),
        (
            "text_config.rope_parameters",
            json!({ "rope_type": "dynamic" }),
            "default, linear, llama3",
        ),
        ("text_config.num_attention_heads", json!(0), ""),
        ("text_config", json!(7), "must be a table"),
        ("vision_config", Value::Null, "must be a table"),
        (
            "vision_config.vision_output_dim",
            json!(81),
            "hidden_size = 20 times 4",
        ),
        (
            "vision_config.hidden_act",
            json!("gelu_new"),
            "the exact gelu",
        ),
        ("vision_config.num_channels", json!(1), "three colours"),
        ("vision_config.attention_heads", json!(21), "at most 20"),
        ("vision_config.patch_size", json!(30), "at most 29"),
        ("vision_config.image_size", json!(0), "between 1 and"),
        (
            "vision_config.supported_aspect_ratios",
            json!([[1, 3]]),
            "1 to vision.max_tiles = 2",
        ),
        (
            "vision_config.supported_aspect_ratios",
            json!([[1]]),
            "pairs of integers",
        ),
        (
            "vision_config.supported_aspect_ratios",
            Value::Null,
            "must be there",
        ),
        (
            "vision_config.intermediate_layers_indices",
            json!([5, 0, 4]),
            "from 0 to 4",
        ),
        ("vision_config.norm_eps", json!(0.0), "above 0"),
        (
            "vision_config.model_type",
            json!("siglip_vision_model"),
            "mllama_vision_model",
        ),
        ("vision_config.use_head", json!(true), "has no such field"),
        (
            "image_token_index",
            json!(3),
            "the row of the embedding behind the vocabulary",
        ),
        ("projector_hidden_act", json!("gelu"), "has no such field"),
    ] {
        let error = read(&with(&model, path, &value)).unwrap_err();
        assert!(
            error.contains(path) && error.contains(rule),
            "{path} = {value}: {error}"
        );
    }
    // What is beyond the layers is passed over, as the default is.
    let found = read(&with(
        &model,
        "text_config.cross_attention_layers",
        &json!([2, 30, 2]),
    ));
    assert_eq!(found.unwrap().model, model);
    // Llama's scaling of rotary positions is that of the published models.
    let rope = json!({
        "rope_type": "llama3",
        "rope_theta": model.rope_theta,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    let text = with(&model, "text_config.rope_parameters", &rope);
    assert!(read(&text).unwrap().model.rope_scaling.is_some());
}

#[test]
fn absent_fields_have_the_defaults_of_transformers() {
    let text = json!({ "model_type": "mllama", "text_config": {}, "vision_config": {} });
    let model = read(&text.to_string()).unwrap().model;
    assert_eq!(model.layers.len(), 40);
    let cross: Vec<usize> = model.cross_layers().collect();
    assert_eq!(cross, [3, 8, 13, 18, 23, 28, 33, 38]);
    assert_eq!(
        (model.vocab_size, model.embedding_rows()),
        (128_256, 128_264)
    );
    assert_eq!([model.heads, model.kv_heads, model.head_dim], [32, 8, 128]);
    assert_eq!((model.rope_theta, model.norm_epsilon), (500_000.0, 1e-5));
    assert_eq!(model.dense_d_ff(3), Some(14_336));
    let vision = model.vision.unwrap();
    assert_eq!([vision.width, vision.d_ff, vision.heads], [1280, 5120, 16]);
    assert_eq!(
        [vision.layers, vision.global_layers, vision.max_tiles],
        [32, 8, 4]
    );
    assert_eq!([vision.tile_size, vision.patch_size], [448, 14]);
    assert_eq!(vision.output_width(), 7680);
    assert_eq!(vision.aspect_ratios.len(), 8);
}

#[test]
fn the_image_processor_makes_the_tiles_that_the_tower_reads() {
    for model in [seeing(moe()), seeing(gpt_oss())] {
        let folder = tempfile::tempdir().unwrap();
        let text = written(&model, WeightDtype::F32);
        fs::write(folder.path().join(CONFIG_FILE), text).unwrap();
        let read = |processor: Value| {
            let path = folder.path().join(PREPROCESSOR_FILE);
            fs::write(path, processor.to_string()).unwrap();
            read_config(folder.path(), Accept::Nothing).map_err(|error| error.to_string())
        };
        let size = |height, width| json!({ "height": height, "width": width });
        let fits = json!({ "size": size(29, 29), "max_image_tiles": 2, "do_pad": true });
        let found = read(fits).unwrap();
        assert_eq!((found.model, found.family), (model.clone(), family(&model)));
        for (processor, key) in [
            (
                json!({ "size": size(28, 29) }),
                "size.height = 28: must be 29, the side of a tile in config.json",
            ),
            (json!({ "size": size(29, 30) }), "size.width = 30"),
            (
                json!({ "max_image_tiles": 4 }),
                "max_image_tiles = 4: must be 2, the most tiles",
            ),
            (json!([]), "is damaged"),
        ] {
            let error = read(processor).unwrap_err();
            assert!(
                error.contains(PREPROCESSOR_FILE) && error.contains(key),
                "{error}"
            );
        }
    }
}
