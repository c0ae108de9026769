//! The fields of config.json as published models have them, at small sizes.

use serde_json::{Value, json};

use super::read;
use crate::config_json;
use firebox_kernels::dtype::WeightDtype;
use firebox_model::config::{AttentionKind, RopeScaling};

#[test]
fn configurations_of_published_models_are_read() {
    let qwen3_instruct = json!({
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 243, "eos_token_id": 245, "head_dim": 16, "hidden_act": "silu", "hidden_size": 32,
        "initializer_range": 0.02, "intermediate_size": 48, "max_position_embeddings": 40960,
        "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 4, "num_hidden_layers": 2,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000,
        "sliding_window": null, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0", "use_cache": true, "use_sliding_window": false, "vocab_size": 256,
    });
    let qwen3_coder = json!({
        "architectures": ["Qwen3MoeForCausalLM"], "attention_dropout": 0.0, "decoder_sparse_step": 1,
        "eos_token_id": 245, "head_dim": 16, "hidden_act": "silu", "hidden_size": 32,
        "initializer_range": 0.02, "intermediate_size": 88, "max_position_embeddings": 262144,
        "max_window_layers": 28, "mlp_only_layers": [], "model_type": "qwen3_moe",
        "moe_intermediate_size": 24, "norm_topk_prob": true, "num_attention_heads": 4, "num_experts": 8,
        "num_experts_per_tok": 2, "num_hidden_layers": 2, "num_key_value_heads": 2,
        "output_router_logits": false, "qkv_bias": false, "rms_norm_eps": 1e-06, "rope_scaling": null,
        "rope_theta": 10000000, "router_aux_loss_coef": 0.0, "shared_expert_intermediate_size": 0,
        "sliding_window": null, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.52.3", "use_cache": true, "use_qk_norm": true,
        "use_sliding_window": false, "vocab_size": 256,
    });
    let smollm2 = json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 36,
        "initializer_range": 0.041666666666666664, "intermediate_size": 48, "is_llama_config": true,
        "max_position_embeddings": 8192, "mlp_bias": false, "model_type": "llama",
        "num_attention_heads": 9, "num_hidden_layers": 2, "num_key_value_heads": 3, "pad_token_id": 2,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": false, "rope_scaling": null,
        "rope_theta": 100000, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers.js_config": { "kv_cache_dtype": { "fp16": "float16" } },
        "transformers_version": "4.42.3", "use_cache": true, "vocab_size": 256,
    });
    let tinyllama = json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 1,
        "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 32, "initializer_range": 0.02,
        "intermediate_size": 88, "max_position_embeddings": 2048, "model_type": "llama",
        "num_attention_heads": 8, "num_hidden_layers": 2, "num_key_value_heads": 4, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 10000.0,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.35.0",
        "use_cache": true, "vocab_size": 256,
    });
    let mixtral = json!({
        "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
        "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 32, "initializer_range": 0.02,
        "intermediate_size": 48, "max_position_embeddings": 32768, "model_type": "mixtral",
        "num_attention_heads": 4, "num_experts_per_tok": 2, "num_hidden_layers": 2,
        "num_key_value_heads": 2, "num_local_experts": 8, "output_router_logits": false,
        "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02,
        "sliding_window": null, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.36.0.dev0", "use_cache": true, "vocab_size": 256,
    });
    let olmoe = json!({
        "architectures": ["OlmoeForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "clip_qkv": null, "eos_token_id": 250, "hidden_act": "silu", "hidden_size": 32,
        "initializer_range": 0.02, "intermediate_size": 24, "max_position_embeddings": 4096,
        "model_type": "olmoe", "norm_topk_prob": false, "num_attention_heads": 4, "num_experts": 16,
        "num_experts_per_tok": 4, "num_hidden_layers": 2, "num_key_value_heads": 4,
        "output_router_logits": false, "pad_token_id": 1, "rms_norm_eps": 1e-05, "rope_scaling": null,
        "rope_theta": 10000.0, "router_aux_loss_coef": 0.01, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "transformers_version": "4.43.0.dev0", "use_cache": true,
        "vocab_size": 256,
    });
    for (config, theta, context, head_dim, eos) in [
        (qwen3_instruct, 1e6, 40_960, 16, 245),
        (qwen3_coder, 1e7, 262_144, 16, 245),
        (smollm2, 1e5, 8192, 4, 2),
        (tinyllama, 1e4, 2048, 4, 2),
        (mixtral, 1e6, 32_768, 8, 2),
        (olmoe, 1e4, 4096, 8, 250),
    ] {
        let found = read(&config.to_string()).unwrap_or_else(|error| panic!("{error}"));
        let model = found.model;
        assert_eq!(model.rope_theta, theta, "{config}");
        assert_eq!((model.context_length, model.head_dim), (context, head_dim));
        assert_eq!(found.eos_ids, [eos]);
        assert_eq!(found.notes.training_options(&found.family).count(), 0);
    }
}

#[test]
fn llama3_with_scaled_frequencies() {
    let llama3 = json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 128, "eos_token_id": [129, 136, 137], "head_dim": 8, "hidden_act": "silu",
        "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 131072,
        "mlp_bias": false, "model_type": "llama", "num_attention_heads": 4, "num_hidden_layers": 2,
        "num_key_value_heads": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
        "rope_theta": 500000.0, "tie_word_embeddings": true, "vocab_size": 256,
    });
    let found = read(&llama3.to_string()).unwrap();
    let scaling = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 8192,
    };
    assert_eq!(found.model.rope_scaling, Some(scaling));
    assert_eq!(found.model.rope_theta, 500_000.0);
    assert_eq!(found.eos_ids, [129, 136, 137]);
    // What is written says it in both spellings, and is read as the same.
    let text = config_json(&found.model, &found.family, &found.notes, WeightDtype::F32);
    assert_eq!(read(&text).unwrap().model, found.model);
}

#[test]
fn qwen3_with_yarn() {
    let with = |scaling: Value| {
        let config = json!({
            "model_type": "qwen3", "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
            "max_position_embeddings": 131072, "rope_theta": 1000000, "rope_scaling": scaling,
        });
        read(&config.to_string())
    };
    let yarn = |factor, attention_factor| RopeScaling::Yarn {
        factor,
        original_context: 32_768,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor,
        truncate: true,
        mscale_all_dim: 0.0,
    };
    for (scaling, expected) in [
        (
            json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768 }),
            yarn(4.0, None),
        ),
        (
            json!({
                "type": "yarn", "factor": null, "original_max_position_embeddings": 32768,
                "beta_fast": 0, "mscale": null,
            }),
            yarn(4.0, None),
        ),
        (
            json!({
                "rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 32768,
                "mscale": 0.5, "mscale_all_dim": 0.5,
            }),
            yarn(2.0, Some(1.0)),
        ),
        (
            json!({
                "rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 32768,
                "attention_factor": 1.25,
            }),
            yarn(2.0, Some(1.25)),
        ),
    ] {
        let found = with(scaling).unwrap();
        assert_eq!(found.model.rope_scaling, Some(expected));
        let text = config_json(&found.model, &found.family, &found.notes, WeightDtype::F32);
        assert_eq!(read(&text).unwrap().model, found.model);
    }
    for (scaling, key) in [
        (
            json!({ "rope_type": "dynamic", "factor": 2.0 }),
            "rope_scaling.rope_type",
        ),
        (json!({ "rope_type": "yarn" }), "rope_scaling.factor"),
        (
            json!({ "rope_type": "yarn", "factor": 0.5 }),
            "rope_scaling.factor",
        ),
        (
            json!({ "rope_type": "linear", "factor": "2" }),
            "rope_scaling.factor",
        ),
        (
            json!({ "rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0 }),
            "rope_scaling.low_freq_factor",
        ),
        (
            json!({ "rope_type": "yarn", "factor": 2.0, "short_factor": [1.0] }),
            "rope_scaling.short_factor",
        ),
        (
            json!({ "rope_type": "default", "partial_rotary_factor": 0.5 }),
            "rope_scaling.partial_rotary_factor",
        ),
    ] {
        let error = with(scaling).unwrap_err();
        assert!(error.contains(key), "no {key} in {error}");
    }
}

#[test]
fn gpt_oss_as_published() {
    let published = json!({
        "architectures": ["GptOssForCausalLM"], "attention_bias": true, "attention_dropout": 0.0,
        "eos_token_id": 245, "experts_per_token": 2, "head_dim": 16, "hidden_act": "silu",
        "hidden_size": 32, "initial_context_length": 4096, "initializer_range": 0.02,
        "intermediate_size": 32, "layer_types": ["sliding_attention", "full_attention"],
        "max_position_embeddings": 131072, "model_type": "gpt_oss", "num_attention_heads": 4,
        "num_experts_per_tok": 2, "num_hidden_layers": 2, "num_key_value_heads": 2,
        "num_local_experts": 8, "output_router_logits": false, "pad_token_id": 240,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0,
            "original_max_position_embeddings": 4096, "rope_type": "yarn", "truncate": false,
        },
        "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128,
        "swiglu_limit": 7.0, "tie_word_embeddings": false, "transformers_version": "4.55.0.dev0",
        "use_cache": true, "vocab_size": 256,
    });
    let with = |changes: Value| {
        let mut config = published.clone();
        let fields = config.as_object_mut().unwrap();
        fields.extend(changes.as_object().unwrap().clone());
        read(&config.to_string())
    };
    let found = with(json!({})).unwrap();
    let kinds = found.model.layers.iter().map(|layer| layer.attention);
    assert!(kinds.eq([AttentionKind::Window(128), AttentionKind::Full]));
    // What is absent, or null, of the rotary positions is the same.
    let same = with(json!({ "rope_scaling": null })).unwrap();
    assert_eq!(same.model, found.model);
    let same = with(json!({ "layer_types": null })).unwrap();
    assert_eq!(same.model, found.model);
    // Whether experts are packed, their tensors say.
    let packed = json!({ "quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"] });
    let same = with(json!({ "quantization_config": packed })).unwrap();
    assert_eq!(
        (same.model, same.notes),
        (found.model.clone(), found.notes.clone())
    );
    // An empty table is none of the defaults.
    let plain = with(json!({ "rope_scaling": {} })).unwrap();
    assert_eq!(plain.model.rope_scaling, None);
    let text = config_json(&found.model, &found.family, &found.notes, WeightDtype::F32);
    assert_eq!(read(&text).unwrap().model, found.model);

    for (changes, key) in [
        (json!({ "sliding_window": null }), "sliding_window"),
        (json!({ "swiglu_limit": 0.0 }), "swiglu_limit"),
        (json!({ "swiglu_alpha": -1.0 }), "swiglu_alpha"),
        (json!({ "swiglu_limit": "7" }), "swiglu_limit"),
        (json!({ "norm_topk_prob": false }), "norm_topk_prob"),
        (
            json!({ "quantization_config": { "quant_method": "gptq" } }),
            "quantization_config: the weights are quantized",
        ),
    ] {
        let error = with(changes).unwrap_err();
        assert!(error.contains(key), "no {key} in {error}");
    }
}

#[test]
fn a_scaling_beside_rope_parameters_says_the_same() {
    let with = |theta: Value, scaling: Value| {
        let config = json!({
            "model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "rope_theta": theta,
            "rope_parameters": { "rope_type": "linear", "factor": 2.0, "rope_theta": 5e5 },
            "rope_scaling": scaling,
        });
        read(&config.to_string()).map(|config| config.model.rope_theta)
    };
    let same = json!({ "rope_type": "linear", "factor": 2.0 });
    assert_eq!(with(json!(5e5), same.clone()).unwrap(), 5e5);
    assert_eq!(with(Value::Null, json!({})).unwrap(), 5e5);
    // To transformers the base would be 10,000.
    for scaling in [same, json!({ "rope_type": "linear", "factor": 4.0 })] {
        let error = with(Value::Null, scaling).unwrap_err();
        assert!(error.contains("rope_scaling = "), "{error}");
    }
}

#[test]
fn what_is_not_computed_yet_is_refused_for_the_true_reason() {
    let gemma = json!({
        "architectures": ["Gemma2ForCausalLM"], "hidden_size": 32, "intermediate_size": 48,
        "max_position_embeddings": 32768, "model_type": "gemma2", "num_attention_heads": 4,
        "num_hidden_layers": 2, "num_key_value_heads": 2, "sliding_window": null, "vocab_size": 256,
    });
    let error = read(&gemma.to_string()).unwrap_err();
    assert!(
        error.contains("model_type = \"gemma2\"") && error.contains("llama"),
        "{error}"
    );
}
