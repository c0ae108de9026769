use super::*;
use crate::language_model::LanguageModel;
use crate::testing::{moe, smallest, tiny};
use firebox_runtime::on_every_device;
use firebox_runtime::testing::values;

on_every_device!(
    values_depend_on_seed_and_path_alone,
    parameters_are_visited_in_the_order_of_fields,
    a_map_changes_values_and_nothing_else,
    outputs_may_begin_at_zero,
);

fn outputs_may_begin_at_zero(device: Device) {
    struct Zeros(Vec<String>);
    impl VisitParameter for Zeros {
        fn visit<const D: usize>(&mut self, path: &str, parameter: &Param<Tensor<D>>) {
            if values(parameter.val()).iter().all(|&value| value == 0.0) {
                self.0.push(path.to_owned());
            }
        }
    }
    let mut config = tiny();
    config.layers.push(crate::config::LayerConfig::dense(9));
    moe(&mut config).experts.shared_d_ff = 5;
    let zeros = |source: RandomParameters<'_>| {
        let mut source = source;
        let Ok(model) = LanguageModel::new(&config, &mut source);
        let mut zeros = Zeros(Vec::new());
        visit(&model, &mut zeros);
        zeros.0
    };
    let random = || RandomParameters::new(7, &device);
    assert_eq!(zeros(random()), [""; 0]);
    let mut found = zeros(random().with_zero_outputs());
    found.sort();
    let of = |layer: usize, parts: &[&str]| {
        let paths = parts.iter().map(|part| format!("blocks.{layer}.{part}"));
        paths.collect::<Vec<String>>()
    };
    let output = "attention.output.weight";
    let mixture = [
        output,
        "feed_forward.experts.down",
        "feed_forward.shared.down",
    ];
    let dense = of(2, &[output, "feed_forward.down"]);
    assert_eq!(found, [of(0, &mixture), of(1, &mixture), dense].concat());
}

fn drawn(seed: u64, path: &str, length: usize, device: &Device) -> Vec<f32> {
    let mut source = RandomParameters::new(seed, device);
    let Ok(parameter) = source.parameter(ParameterSpec::new(
        path,
        Role::Head,
        [(Axis::Model, length)],
        Initializer::Normal(2.0),
    ));
    values(parameter.val())
}

fn values_depend_on_seed_and_path_alone(device: Device) {
    let first = drawn(7, "blocks.0.attention.query", 10_000, &device);
    assert_eq!(drawn(7, "blocks.0.attention.query", 10_000, &device), first);
    // The stream does not know how much is asked of it.
    let shorter = drawn(7, "blocks.0.attention.query", 10, &device);
    assert_eq!(shorter, first[..10]);
    for (seed, path) in [
        (8, "blocks.0.attention.query"),
        (7, "blocks.1.attention.query"),
    ] {
        assert_ne!(drawn(seed, path, 10, &device), shorter, "{seed}, {path}");
    }
    // The mean of n such numbers is 2 / √n = 0.02 off, their variance 4 · √(2/n) = 0.057.
    let n = first.len() as f64;
    let mean = first.iter().copied().map(f64::from).sum::<f64>() / n;
    let variance = first.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n;
    assert!(
        mean.abs() < 0.08 && (variance - 4.0).abs() < 0.23,
        "{mean}, {variance}"
    );
    let mut source = RandomParameters::new(7, &device);
    let Ok(ones) = source.parameter(ParameterSpec::new(
        "norm.gamma",
        Role::Norm,
        [(Axis::Model, 3)],
        Initializer::Ones,
    ));
    assert_eq!(values(ones.val()), [1.0; 3]);
}

#[test]
fn dimensions_have_the_sizes_of_their_axes() {
    let mut config = tiny();
    config.qk_norm = crate::config::QkNorm::Projection;
    config.attention_bias = crate::config::AttentionBias::All;
    config.sinks = true;
    moe(&mut config).experts.shared_d_ff = 5;
    moe(&mut config).experts.biases = true;
    moe(&mut config).router.logit_bias = true;
    config.layers[1] = crate::config::LayerConfig::dense(3);
    for ParameterInfo {
        path,
        role,
        axes,
        shape,
        ..
    } in LanguageModel::parameter_list(&config)
    {
        for (axis, size) in axes.into_iter().zip(shape) {
            let expected = match axis {
                Axis::Vocabulary => 37,
                Axis::Model => 24,
                Axis::Heads => 24,
                Axis::QueryHeads => 4,
                Axis::KvHeads => 12,
                Axis::HeadDim => 6,
                Axis::Experts => 8,
                Axis::FeedForward => match role {
                    Role::Experts | Role::Bias => 20,
                    Role::SharedExperts => 5,
                    _ => 3,
                },
                other => panic!("{other:?} in a model of text alone"),
            };
            assert_eq!(size, expected, "{path}: {axis:?}");
        }
    }
}

#[derive(Default)]
struct Seen(Vec<(String, Vec<usize>, f32)>);

impl VisitParameter for Seen {
    fn visit<const D: usize>(&mut self, path: &str, parameter: &Param<Tensor<D>>) {
        let value = parameter.val();
        assert!(value.is_require_grad() || !value.device().is_autodiff());
        let dimensions = value.dims().to_vec();
        self.0.push((path.to_owned(), dimensions, values(value)[0]));
    }
}

fn seen(model: &LanguageModel) -> Vec<(String, Vec<usize>, f32)> {
    let mut seen = Seen::default();
    visit(model, &mut seen);
    seen.0
}

fn parameters_are_visited_in_the_order_of_fields(device: Device) {
    let model = LanguageModel::random(&smallest(), 1, &device);
    let seen: Vec<(String, Vec<usize>)> = seen(&model)
        .into_iter()
        .map(|(path, dimensions, _)| (path, dimensions))
        .collect();
    let expected: [(&str, &[usize]); 12] = [
        ("embedding", &[4, 2]),
        ("blocks.0.attention_norm.gamma", &[2]),
        ("blocks.0.attention.query.weight", &[2, 2]),
        ("blocks.0.attention.key.weight", &[2, 2]),
        ("blocks.0.attention.value.weight", &[2, 2]),
        ("blocks.0.attention.output.weight", &[2, 2]),
        ("blocks.0.feed_forward_norm.gamma", &[2]),
        ("blocks.0.feed_forward.router.weight", &[2, 2]),
        ("blocks.0.feed_forward.experts.gate", &[2, 2, 1]),
        ("blocks.0.feed_forward.experts.up", &[2, 2, 1]),
        ("blocks.0.feed_forward.experts.down", &[2, 1, 2]),
        ("norm.gamma", &[2]),
    ];
    let mut expected = expected
        .map(|(path, shape)| (path.to_owned(), shape.to_vec()))
        .to_vec();
    expected.push(("head".to_owned(), vec![2, 4]));
    assert_eq!(seen, expected);

    // What is asked for is what is there, of every kind of layer.
    let mut mixed = tiny();
    mixed.qk_norm = crate::config::QkNorm::Head;
    mixed.attention_bias = crate::config::AttentionBias::Qkv;
    mixed.sinks = true;
    mixed.layers[1] = crate::config::LayerConfig::dense(3);
    moe(&mut mixed).experts.shared_d_ff = 5;
    moe(&mut mixed).experts.biases = true;
    moe(&mut mixed).router.logit_bias = true;
    for config in [smallest(), mixed, tiny().dense_baseline()] {
        let model = LanguageModel::random(&config, 1, &device);
        let mut seen = self::seen(&model);
        let asked = LanguageModel::parameter_list(&config).into_iter();
        let total: u128 = asked.clone().map(|parameter| parameter.elements()).sum();
        assert_eq!(u128::from(model.parameters()), total);
        let mut asked: Vec<_> = asked
            .map(|parameter| (parameter.path, parameter.shape))
            .collect();
        seen.sort_by(|a, b| a.0.cmp(&b.0));
        asked.sort();
        let seen: Vec<_> = seen
            .into_iter()
            .map(|(path, shape, _)| (path, shape))
            .collect();
        assert_eq!(seen, asked);
    }
}

fn a_map_changes_values_and_nothing_else(device: Device) {
    struct Halve;
    impl MapParameter for Halve {
        fn map<const D: usize>(&mut self, path: &str, value: Tensor<D>) -> Tensor<D> {
            match path {
                "norm.gamma" => value,
                _ => Tensor::from_inner(value.inner().mul_scalar(0.5)),
            }
        }
    }
    let model = LanguageModel::random(&smallest(), 1, &device.autodiff()).train();
    let before = seen(&model);
    let after = seen(&map(model, &mut Halve));
    assert_eq!(before.len(), after.len());
    for (before, after) in before.into_iter().zip(after) {
        let factor = if before.0 == "norm.gamma" { 1.0 } else { 0.5 };
        assert_eq!((before.0, before.1, before.2 * factor), after);
    }
}
