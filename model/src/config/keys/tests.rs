//! Keys become a configuration, and a configuration its keys.

use serde_json::{Value, json};

use super::*;
use crate::config::{
    AttentionKind, BalanceKind, ConfigError, ExpertActivation, LayerConfig, ModelConfig,
};

/// Two layers of four experts, with some keys changed; null removes one.
fn keys(changes: Value) -> ModelKeys {
    let mut keys = json!({
        "vocab_size": 37,
        "layers": 2,
        "d_model": 24,
        "heads": 4,
        "context_length": 32,
        "experts": { "count": 4, "top_k": 2, "d_ff": 20 },
    });
    let fields = keys.as_object_mut().unwrap();
    for (key, value) in changes.as_object().unwrap() {
        fields.insert(key.clone(), value.clone());
    }
    serde_json::from_value(keys).unwrap()
}

fn resolved(changes: Value) -> ModelConfig {
    keys(changes).resolve().unwrap()
}

fn refused(changes: Value) -> ConfigError {
    keys(changes).resolve().unwrap_err()
}

#[test]
fn a_pattern_is_repeated_over_the_layers() {
    let attention = |changes: Value| -> Vec<AttentionKind> {
        let layers = resolved(changes).layers;
        layers.iter().map(|layer| layer.attention).collect()
    };
    use AttentionKind::{Full, Nope, Window};
    assert_eq!(attention(json!({})), [Full, Full]);
    let pattern = json!({
        "layers": 5, "attention": ["window", "window", "nope"], "window": 8,
    });
    let kinds = [Window(8), Window(8), Nope, Window(8), Window(8)];
    assert_eq!(attention(pattern.clone()), kinds);
    let written = ModelKeys::of(&resolved(pattern));
    assert_eq!(written.attention.unwrap().len(), 3);
    assert_eq!(written.window, Some(8));

    assert_eq!(
        refused(json!({ "attention": ["window"] })).to_string(),
        "window is missing"
    );
    let unused = refused(json!({ "window": 8 }));
    assert!(
        unused.to_string().starts_with("window has no effect"),
        "{unused}"
    );
    for words in [json!([]), json!(["full", "full", "nope"])] {
        assert_eq!(refused(json!({ "attention": words })).key, "attention");
    }
    let zero = refused(json!({ "attention": ["window"], "window": 0 }));
    assert_eq!(zero.key, "window");
}

#[test]
fn quantile_balancing_has_no_loss_no_rate_and_no_groups() {
    let router = |changes: Value| {
        let mut router = json!({ "balance": "quantile" });
        let fields = changes.as_object().unwrap().clone();
        router.as_object_mut().unwrap().extend(fields);
        json!({ "router": router })
    };
    let found = resolved(router(json!({}))).moe.unwrap().router;
    assert!(found.balances_by_bias() && found.balance == BalanceKind::Quantile);
    assert_eq!(
        (found.balance_coefficient, found.z_coefficient),
        (0.0, 0.001)
    );
    // As a file writes them that switches a loss off.
    let zeros = json!({ "balance_coefficient": 0.0, "bias_update_rate": 0.0 });
    assert_eq!(resolved(router(zeros)).moe.unwrap().router, found);
    assert!(!resolved(json!({})).moe.unwrap().router.balances_by_bias());
    for (key, value) in [
        ("balance_coefficient", json!(0.01)),
        ("bias_update_rate", json!(0.001)),
        ("groups", json!(2)),
    ] {
        let error = refused(router(json!({ key: value })));
        assert_eq!(error.key, format!("router.{key}"));
        assert!(
            error.rule.contains("with router.balance = \"quantile\""),
            "{error}"
        );
    }
}

#[test]
fn a_dense_model_has_no_mixture() {
    let dense = |changes: Value| {
        let model = resolved(changes);
        assert_eq!(model.moe, None);
        model.layers
    };
    // The baseline of the mixture.
    let baseline = dense(json!({ "feed_forward": "dense" }));
    assert_eq!(baseline, [LayerConfig::dense(40); 2]);
    // A width of its own.
    let own = json!({ "feed_forward": "dense", "dense": { "d_ff": 7 } });
    assert_eq!(dense(own), [LayerConfig::dense(7); 2]);
    let alone = json!({ "feed_forward": "dense", "experts": null, "dense": { "d_ff": 7 } });
    assert_eq!(dense(alone), [LayerConfig::dense(7); 2]);

    let none = refused(json!({ "feed_forward": "dense", "experts": null }));
    assert_eq!(none.to_string(), "dense.d_ff is missing");
    let some = refused(json!({ "feed_forward": "dense", "dense": { "layers": [0] } }));
    assert!(
        some.to_string().starts_with("dense.layers has no effect"),
        "{some}"
    );
}

#[test]
fn single_layers_are_dense() {
    let layers = |dense: Value| resolved(json!({ "dense": dense })).layers;
    let expected = [LayerConfig::dense(9), LayerConfig::MOE];
    assert_eq!(layers(json!({ "layers": [0], "d_ff": 9 })), expected);
    let expected = [LayerConfig::MOE, LayerConfig::dense(40)];
    assert_eq!(layers(json!({ "layers": [1] })), expected);
    for layers in [json!([2]), json!([1, 0]), json!([0, 0])] {
        let error = refused(json!({ "dense": { "layers": layers } }));
        assert_eq!(error.key, "dense.layers");
        assert!(error.rule.contains("from 0 to 1 "), "{error}");
    }
    for layers in [json!([]), json!([0, 1])] {
        let error = refused(json!({ "dense": { "layers": layers } }));
        assert_eq!(error.rule, "must name at least one layer, but not all");
    }
    let unnamed = refused(json!({ "dense": { "d_ff": 9 } }));
    assert_eq!(unnamed.to_string(), "dense.layers is missing");
}

#[test]
fn a_number_of_layers_is_refused_before_they_are_made() {
    let error = refused(json!({ "layers": 9_000_000_000_000_u64 }));
    assert_eq!(error.key, "layers");
}

#[test]
fn a_limit_belongs_to_a_clamped_activation() {
    let with = |changes: Value| {
        let mut experts = json!({ "count": 4, "top_k": 2, "d_ff": 20 });
        let fields = experts.as_object_mut().unwrap();
        fields.extend(changes.as_object().unwrap().clone());
        keys(json!({ "experts": experts })).resolve()
    };
    let activation = |changes| with(changes).unwrap().moe.unwrap().experts.activation;
    assert_eq!(activation(json!({})), ExpertActivation::Swiglu);
    let (alpha, limit) = (1.702, 7.0);
    let clamped = activation(json!({ "activation": "clamped-swiglu" }));
    assert_eq!(clamped, ExpertActivation::ClampedSwiglu { alpha, limit });
    let own = json!({ "activation": "clamped-swiglu", "alpha": 1.0, "limit": 2.5 });
    let (alpha, limit) = (1.0, 2.5);
    assert_eq!(
        activation(own),
        ExpertActivation::ClampedSwiglu { alpha, limit }
    );
    for (key, path) in [("limit", "experts.limit"), ("alpha", "experts.alpha")] {
        let unused = with(json!({ key: 2.0 })).unwrap_err().to_string();
        let expected =
            format!("{path} has no effect unless model.experts.activation = \"clamped-swiglu\"");
        assert_eq!(unused, expected);
        for value in [0.0, -1.0, 1e300] {
            let error = with(json!({ "activation": "clamped-swiglu", key: value })).unwrap_err();
            assert_eq!(error.key, path);
        }
    }
}

#[test]
fn what_is_written_reads_back() {
    let scaling = json!({ "kind": "yarn", "factor": 4.0, "original_context": 8 });
    for changes in [
        json!({}),
        json!({ "feed_forward": "dense" }),
        json!({ "dense": { "layers": [1] }, "qk_norm": "head", "attention_bias": "qkv", "rope_scaling": scaling }),
        json!({ "layers": 4, "attention": ["window", "full"], "window": 3, "sinks": true, "rotary_dim": 4 }),
        json!({ "experts": {
            "count": 4, "top_k": 2, "d_ff": 20, "activation": "clamped-swiglu", "limit": 3.0, "biases": true,
        }, "router": { "logit_bias": true } }),
        json!({ "router": { "scores": "sigmoid", "groups": 2, "balance": "pooled" } }),
    ] {
        let model = resolved(changes);
        let written = serde_json::to_value(&model).unwrap();
        let read: ModelKeys = serde_json::from_value(written).unwrap();
        assert_eq!(read.resolve().unwrap(), model);
    }
}
