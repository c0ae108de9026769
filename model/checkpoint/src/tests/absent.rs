//! What is absent, and what is spelled in another way.

use firebox_model::config::{
    AttentionBias, AttentionKind, BalanceKind, ExpertActivation, ExpertsConfig, LatentConfig,
    LayerConfig, ModelConfig, MoeConfig, Multipliers, QkNorm, RopeScaling, RouterConfig,
};
use serde_json::json;

use super::{attending, changed, dense, moe, read, with_dense};

#[test]
fn equivalent_spellings_give_the_same_configuration() {
    let mut qwen = with_dense(moe(), &[0, 1, 2]);
    qwen.qk_norm = QkNorm::Head;
    let window = AttentionKind::Window(8);
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
        (attending(moe(), &[window]), json!({ "sliding_window": 8 })),
        (
            attending(qwen.clone(), &[window]),
            json!({ "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 2 }),
        ),
        // Of Qwen3 itself, the layers from there on.
        (
            attending(
                dense(QkNorm::Head),
                &[AttentionKind::Full, AttentionKind::Full, window, window],
            ),
            json!({ "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 2 }),
        ),
        (
            attending(dense(QkNorm::Head), &[window, AttentionKind::Full]),
            json!({
                "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 2,
                "layer_types": [
                    "sliding_attention", "full_attention", "sliding_attention", "full_attention",
                ],
            }),
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
            model.layers.len(),
            model.heads,
            model.kv_heads,
            model.head_dim,
            model.context_length,
        ]
    };
    let llama = of("llama");
    assert_eq!(sizes(&llama), [32_000, 4096, 32, 32, 32, 128, 2048]);
    assert_eq!(
        (llama.dense_d_ff(31).unwrap(), llama.norm_epsilon),
        (11_008, 1e-6)
    );
    assert_eq!((llama.rope_theta, llama.tied_embeddings), (10_000.0, false));
    assert_eq!(llama.initializer_range, 0.02);
    let qwen3 = of("qwen3");
    assert_eq!(sizes(&qwen3), [151_936, 4096, 32, 32, 32, 128, 32_768]);
    assert_eq!(
        (qwen3.dense_d_ff(31).unwrap(), qwen3.norm_epsilon),
        (22_016, 1e-6)
    );
    let mixtral = of("mixtral");
    assert_eq!(sizes(&mixtral), [32_000, 4096, 32, 32, 8, 128, 131_072]);
    assert_eq!((mixtral.norm_epsilon, mixtral.rope_theta), (1e-5, 1e6));
    let experts = |model: &ModelConfig| {
        let ExpertsConfig {
            count, top_k, d_ff, ..
        } = model.moe.as_ref().unwrap().experts;
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
        let router = model.moe.unwrap().router;
        assert_eq!(router.balance_coefficient, coefficient);
        assert_eq!(router.balance, BalanceKind::Pooled);
        assert_eq!(router.normalize, normalize);
    }
    // transformers has no default for the experts of this one.
    let missing = read(&json!({ "model_type": "dots1" }).to_string()).unwrap_err();
    assert!(missing.contains("n_routed_experts = 0"), "{missing}");
    let dots = json!({ "model_type": "dots1", "n_routed_experts": 16, "num_experts_per_tok": 6 });
    let dots = read(&dots.to_string()).unwrap().model;
    assert_eq!(sizes(&dots), [152_064, 4608, 62, 32, 32, 144, 2048]);
    assert_eq!(experts(&dots), [16, 6, 1408]);
    assert_eq!(dots.layers, [LayerConfig::MOE; 62]);
    let mixture = dots.moe.unwrap();
    assert_eq!((mixture.experts.shared_d_ff, dots.norm_epsilon), (0, 1e-6));
    let RouterConfig {
        normalize,
        scaling,
        groups,
        top_groups,
        balance_coefficient,
        ..
    } = mixture.router;
    assert_eq!((normalize, scaling, groups, top_groups), (false, 1.0, 1, 1));
    assert_eq!(balance_coefficient, 0.0);
    let granite = of("granitemoe");
    assert_eq!(sizes(&granite), [32_000, 4096, 32, 32, 32, 128, 2048]);
    assert_eq!(experts(&granite), [8, 2, 11_008]);
    // The factor of the scores is 1 too, and not the usual one.
    let ones = Multipliers {
        attention: Some(1.0),
        ..Multipliers::NONE
    };
    assert_eq!(granite.multipliers, ones);
    assert_eq!(granite.attention_bias, AttentionBias::None);
    assert!(granite.moe.unwrap().router.normalize);
    let qwen2_moe = of("qwen2_moe");
    assert_eq!(sizes(&qwen2_moe), [151_936, 2048, 24, 16, 16, 128, 32_768]);
    assert_eq!(experts(&qwen2_moe), [60, 4, 1408]);
    assert_eq!(qwen2_moe.attention_bias, AttentionBias::Qkv);
    assert_eq!(qwen2_moe.layers, [LayerConfig::MOE; 24]);
    let MoeConfig {
        experts: of_qwen,
        router,
    } = qwen2_moe.moe.unwrap();
    assert_eq!((of_qwen.shared_d_ff, of_qwen.shared_gate), (5632, true));
    assert_eq!(
        (router.normalize, router.balance_coefficient),
        (false, 0.001)
    );
    // Windows are in even layers below a bound.
    let windows = json!({
        "model_type": "qwen2_moe", "num_hidden_layers": 6, "use_sliding_window": true, "max_window_layers": 3,
    });
    let windows = read(&windows.to_string()).unwrap().model.layers;
    let kinds = windows.iter().map(|layer| layer.attention.window());
    assert!(kinds.eq([Some(4096), None, Some(4096), None, None, None]));
    let deepseek = of("deepseek_v3");
    assert_eq!(sizes(&deepseek), [129_280, 7168, 61, 128, 128, 192, 4096]);
    assert_eq!(experts(&deepseek), [256, 8, 2048]);
    let latent = LatentConfig {
        rank: 512,
        query_rank: Some(1536),
        value_dim: 128,
        interleaved: true,
    };
    assert_eq!((deepseek.latent, deepseek.rotary_dim), (Some(latent), 64));
    assert_eq!(deepseek.dense_layers().count(), 3);
    let MoeConfig {
        experts: shared,
        router,
    } = deepseek.moe.unwrap();
    assert_eq!(shared.shared_d_ff, 2048);
    assert_eq!((router.normalize, router.scaling), (true, 2.5));
    assert_eq!((router.groups, router.top_groups), (8, 4));
    let direct = json!({ "model_type": "deepseek_v3", "q_lora_rank": null });
    let direct = read(&direct.to_string()).unwrap().model.latent.unwrap();
    assert_eq!(direct.query_rank, None);
    let oss = of("gpt_oss");
    assert_eq!(sizes(&oss), [201_088, 2880, 36, 64, 8, 64, 131_072]);
    assert_eq!(experts(&oss), [128, 4, 2880]);
    assert_eq!(
        (oss.norm_epsilon, oss.rope_theta, oss.sinks),
        (1e-5, 150_000.0, true)
    );
    assert_eq!(oss.attention_bias, AttentionBias::All);
    let window = AttentionKind::Window(128);
    let kinds = oss.layers.iter().map(|layer| layer.attention);
    assert!(kinds.eq([window, AttentionKind::Full].into_iter().cycle().take(36)));
    let yarn = RopeScaling::Yarn {
        factor: 32.0,
        original_context: 4096,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: None,
        truncate: false,
        mscale_all_dim: 0.0,
    };
    assert_eq!(oss.rope_scaling, Some(yarn));
    let MoeConfig { experts, router } = oss.moe.unwrap();
    let (alpha, limit) = (1.702, 7.0);
    assert_eq!(
        experts.activation,
        ExpertActivation::ClampedSwiglu { alpha, limit }
    );
    assert!(experts.biases && router.logit_bias && router.normalize);
    assert_eq!(router.balance_coefficient, 0.001);
    // Null is absent, but for the key/value heads, as many as query heads, and the width of one.
    let null = json!({
        "model_type": "qwen3", "num_key_value_heads": null, "num_attention_heads": 8,
        "rms_norm_eps": null, "vocab_size": null,
    });
    let null = read(&null.to_string()).unwrap().model;
    assert_eq!((null.kv_heads, null.norm_epsilon), (8, 1e-6));
    assert_eq!(null.vocab_size, 151_936);
    let null = json!({ "model_type": "gpt_oss", "head_dim": null, "hidden_size": 1280 });
    assert_eq!(read(&null.to_string()).unwrap().model.head_dim, 20);
}
