//! Rules of a configuration, and what follows from it.

use super::*;
use crate::testing::{moe, tiny};

fn broken(change: impl FnOnce(&mut ModelConfig)) -> ConfigError {
    let mut config = tiny();
    change(&mut config);
    config.validate().unwrap_err()
}

#[test]
fn every_size_has_both_ends() {
    type Size = fn(&mut ModelConfig) -> &mut usize;
    let sizes: [(&str, Size); 8] = [
        ("vocab_size", |config| &mut config.vocab_size),
        ("d_model", |config| &mut config.d_model),
        ("heads", |config| &mut config.heads),
        ("kv_heads", |config| &mut config.kv_heads),
        ("head_dim", |config| &mut config.head_dim),
        ("context_length", |config| &mut config.context_length),
        ("experts.count", |config| &mut moe(config).experts.count),
        ("experts.d_ff", |config| &mut moe(config).experts.d_ff),
    ];
    for (key, size) in sizes {
        for value in [0, LARGEST_SIZE + 1] {
            let error = broken(|config| *size(config) = value);
            assert_eq!((error.key, error.value), (key, Some(value.to_string())));
            assert_eq!(error.rule, "must lie between 1 and 16777216");
        }
    }
    for layers in [0, MOST_LAYERS + 1] {
        let error = broken(|config| config.layers = vec![LayerConfig::MOE; layers]);
        assert_eq!(error.key, "layers");
        assert_eq!(error.rule, "must lie between 1 and 65536");
    }
    for (key, size) in [sizes[0], sizes[1], sizes[5], sizes[7]] {
        for value in [1, LARGEST_SIZE] {
            let mut config = tiny();
            *size(&mut config) = value;
            assert_eq!(config.validate(), Ok(()), "{key} = {value}");
        }
    }
}

#[test]
fn heads_experts_and_dense_layers_fit_together() {
    let error = broken(|config| config.kv_heads = 3);
    assert_eq!((error.key, error.value.as_deref()), ("kv_heads", Some("3")));
    assert!(error.rule.starts_with("must divide heads = 4"), "{error}");
    assert_eq!(error.hint.as_deref(), Some("allowed values: 1, 2, 4"));

    let error = broken(|config| config.head_dim = 7);
    assert_eq!(
        (error.key, error.hint.as_deref()),
        ("head_dim", Some("use 6 or 8"))
    );

    for rotary_dim in [0, 3, 8] {
        let error = broken(|config| config.rotary_dim = rotary_dim);
        assert_eq!(error.key, "rotary_dim");
        assert_eq!(error.rule, "must be an even number from 2 to head_dim = 6");
    }

    for top_k in [0, 9] {
        let error = broken(|config| moe(config).experts.top_k = top_k);
        assert_eq!(error.key, "experts.top_k");
        assert_eq!(error.rule, "must lie between 1 and experts.count = 8");
    }

    let mut config = tiny();
    config.layers[0] = LayerConfig::dense(0);
    assert_eq!(config.validate().unwrap_err().key, "dense.d_ff");
    for window in [0, LARGEST_SIZE + 1] {
        let error = broken(|config| config.layers[1].attention = AttentionKind::Window(window));
        assert_eq!(error.key, "window");
    }
}

#[test]
fn rope_scaling_is_in_range() {
    let key = |scaling: RopeScaling| broken(|config| config.rope_scaling = Some(scaling)).key;
    for factor in [0.5, f64::NAN, f64::INFINITY] {
        assert_eq!(key(RopeScaling::Linear { factor }), "rope_scaling.factor");
    }
    let llama = |low_freq_factor, original_context| RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor,
        high_freq_factor: 4.0,
        original_context,
    };
    assert_eq!(key(llama(4.0, 32)), "rope_scaling.low_freq_factor");
    assert_eq!(key(llama(1.0, 0)), "rope_scaling.original_context");
    let yarn = |beta_slow, attention_factor| RopeScaling::Yarn {
        factor: 4.0,
        original_context: 16,
        beta_fast: 32.0,
        beta_slow,
        attention_factor,
        truncate: true,
        mscale_all_dim: 0.0,
    };
    assert_eq!(key(yarn(0.0, None)), "rope_scaling.beta_slow");
    assert_eq!(key(yarn(1.0, Some(-1.0))), "rope_scaling.attention_factor");
    let mut config = tiny();
    config.rope_scaling = Some(yarn(1.0, None));
    assert_eq!(config.validate(), Ok(()));
}

#[test]
fn groups_divide_the_experts_and_leave_a_choice() {
    let groups = |groups: usize, top_groups: usize, top_k: usize| {
        move |config: &mut ModelConfig| {
            let moe = moe(config);
            (moe.router.groups, moe.router.top_groups) = (groups, top_groups);
            moe.experts.top_k = top_k;
        }
    };
    for number in [0, 3, 8] {
        let error = broken(groups(number, 1, 2));
        assert_eq!(error.key, "router.groups");
        assert_eq!(error.hint.as_deref(), Some("allowed values: 1, 2, 4"));
    }
    for top_groups in [0, 3] {
        let error = broken(groups(2, top_groups, 2));
        assert_eq!(error.key, "router.top_groups");
        assert_eq!(error.rule, "must lie between 1 and router.groups = 2");
    }
    let error = broken(groups(4, 1, 3));
    assert_eq!(
        (error.key, error.hint.as_deref()),
        ("router.top_groups", Some("use 2 or more"))
    );
    for (number, top_groups, top_k) in [(1, 1, 8), (4, 2, 3), (4, 4, 8), (2, 1, 4)] {
        let mut config = tiny();
        groups(number, top_groups, top_k)(&mut config);
        assert_eq!(config.validate(), Ok(()));
    }
    assert_eq!(
        broken(|config| moe(config).experts.shared_d_ff = LARGEST_SIZE + 1).key,
        "experts.shared_d_ff"
    );
}

#[test]
fn numbers_are_finite_and_not_negative() {
    type Number = fn(&mut ModelConfig) -> &mut f64;
    for value in [-1.0, 0.0, 1e-7, 1e7, f64::NAN] {
        assert_eq!(
            broken(|config| moe(config).router.scaling = value).key,
            "router.scaling"
        );
    }
    let numbers: [(&str, Number, bool); 6] = [
        ("rope_theta", |config| &mut config.rope_theta, true),
        ("norm_epsilon", |config| &mut config.norm_epsilon, true),
        (
            "initializer_range",
            |config| &mut config.initializer_range,
            true,
        ),
        (
            "router.balance_coefficient",
            |config| &mut moe(config).router.balance_coefficient,
            false,
        ),
        (
            "router.z_coefficient",
            |config| &mut moe(config).router.z_coefficient,
            false,
        ),
        (
            "router.bias_update_rate",
            |config| &mut moe(config).router.bias_update_rate,
            false,
        ),
    ];
    for (key, number, above_zero) in numbers {
        for value in [-1e-9, f64::NAN, f64::INFINITY, 1e39] {
            assert_eq!(broken(|config| *number(config) = value).key, key, "{value}");
        }
        let mut tiny_value = tiny();
        *number(&mut tiny_value) = 1e-50;
        assert_eq!(tiny_value.validate().is_err(), above_zero, "{key} = 1e-50");
        let mut config = tiny();
        *number(&mut config) = 0.0;
        assert_eq!(config.validate().is_err(), above_zero, "{key} = 0");
    }
}

#[test]
fn what_follows_from_the_fields() {
    let mut config = tiny();
    assert_eq!(config.validate(), Ok(()));
    assert_eq!(moe(&mut config).experts.active_d_ff(), 40);
    // 0.3 / √(2 · 2)
    assert!((config.residual_initializer_range() - 0.15).abs() < 1e-12);
    assert!(config.moe_layers().eq([0, 1]));
    assert_eq!(config.dense_d_ff(0), None);
    moe(&mut config).experts.shared_d_ff = 5;
    assert_eq!(config.dense_baseline().dense_d_ff(0), Some(45));
    moe(&mut config).experts.shared_d_ff = 0;
    config.layers[1] = LayerConfig::dense(7);
    assert_eq!(config.validate(), Ok(()));
    assert!(config.moe_layers().eq([0]));
    assert_eq!(
        [0, 1].map(|layer| config.dense_d_ff(layer)),
        [None, Some(7)]
    );
    let baseline = config.dense_baseline();
    assert_eq!(baseline.validate(), Ok(()));
    assert_eq!(baseline.moe, None);
    assert_eq!(
        [0, 1].map(|layer| baseline.dense_d_ff(layer)),
        [Some(40), Some(7)]
    );
}

#[test]
fn the_dense_baseline_has_the_active_shape() {
    let [moe, dense] = [tiny(), tiny().dense_baseline()].map(|config| {
        crate::accounting::Accounting::of(&config)
            .operations
            .forward
    });
    // But for the router's own product, of 2 · d_model · experts a layer.
    assert_eq!(moe - 2.0 * 24.0 * 8.0 * 2.0, dense);
}
