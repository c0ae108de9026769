use burn::tensor::{Device, TensorData};

use super::*;
use firebox_runtime::on_every_device;
use firebox_runtime::testing::{assert_close, devices, on_threads, values, wave};

on_every_device!(
    two_keys,
    a_query_that_sees_nothing_has_the_mean,
    no_queries,
    any_number_of_threads_gives_the_same_bits,
);

type Attention = fn(BiasedInput<'_>) -> Tensor<2>;

const NAMES: [&str; 4] = ["output", "d(query)", "d(key)", "d(value)"];

/// Batch, queries, keys; key/value heads, query heads of each, values of a head.
#[derive(Debug, Clone, Copy)]
struct Case {
    sizes: [usize; 3],
    heads: [usize; 3],
}

/// What is hidden: of every fifth pair of positions, the first key aside; of the rest, something is added.
fn bias([batch, queries, keys]: [usize; 3], device: &Device) -> Tensor<3> {
    let of = |index: usize| match index % 5 == 3 && !index.is_multiple_of(keys) {
        true => HIDDEN,
        false => (index as f32 * 0.3).sin(),
    };
    let values: Vec<f32> = (0..batch * queries * keys).map(of).collect();
    Tensor::from_data(TensorData::new(values, [batch, queries, keys]), device)
}

fn run(attention: Attention, case: Case, device: &Device) -> [Vec<f32>; 4] {
    let device = device.clone().autodiff();
    let [batch, queries, keys] = case.sizes;
    let [kv_heads, group, head_dim] = case.heads;
    let width = kv_heads * group * head_dim;
    let query = wave([batch * queries, width], 0.1, &device).require_grad();
    let key = wave([batch * keys, kv_heads * head_dim], 0.5, &device).require_grad();
    let value = wave([batch * keys, kv_heads * head_dim], 0.9, &device).require_grad();
    let output = attention(BiasedInput {
        query: query.clone(),
        key: key.clone(),
        value: value.clone(),
        bias: &bias(case.sizes, &device),
        spec: AttentionSpec::new(kv_heads * group, kv_heads, head_dim),
    });
    let weights = wave([batch * queries, width], 1.3, &device);
    let gradients = (output.clone() * weights).sum().backward();
    let gradient = |input: Tensor<2>| values(input.grad(&gradients).unwrap());
    [
        values(output),
        gradient(query),
        gradient(key),
        gradient(value),
    ]
}

/// As near as those of [`attention`](super::super::attention): the same sums in other orders.
fn assert_same(case: Case) {
    let device = devices().remove(0);
    let fast = run(biased_attention, case, &device);
    let slow = run(biased_attention_reference, case, &device);
    for (name, (fast, slow)) in NAMES.iter().zip(fast.iter().zip(&slow)) {
        assert_close(&format!("{case:?}, {name}"), fast, slow, 1e-5).unwrap();
    }
}

// Scores 0 and ln 3, and ln 3 added to the first, then the second hidden.
fn two_keys(device: Device) {
    let query = Tensor::<2>::from_floats([[2f32.sqrt(), 0.0]; 3], &device);
    let key = Tensor::<2>::from_floats([[0.0, 0.0], [3f32.ln(), 0.0]], &device);
    let value = Tensor::<2>::from_floats([[4.0, 0.0], [0.0, 8.0]], &device);
    let bias = [[[0.0, 0.0], [3f32.ln(), 0.0], [0.0, HIDDEN]]];
    let output = biased_attention(BiasedInput {
        query,
        key,
        value,
        bias: &Tensor::from_floats(bias, &device),
        spec: AttentionSpec::new(1, 1, 2),
    });
    let expected = [1.0, 6.0, 2.0, 4.0, 4.0, 0.0];
    assert_close("output", &values(output), &expected, 5e-7).unwrap();
}

#[test]
fn equals_the_reference() {
    for sizes in [[1, 1, 3], [2, 7, 5], [3, 16, 29], [2, 30, 16], [1, 3, 17]] {
        for heads in [[1, 1, 4], [1, 3, 5], [2, 1, 16], [2, 3, 7]] {
            assert_same(Case { sizes, heads });
        }
    }
}

#[test]
fn more_keys_and_queries_than_a_block() {
    for sizes in [[1, 300, 20], [2, 20, 300], [1, 130, 257]] {
        let heads = [2, 2, 16];
        assert_same(Case { sizes, heads });
    }
}

// Two queries, of which the first sees nothing: its output is the mean of the values, and each key has a third of its gradient.
fn a_query_that_sees_nothing_has_the_mean(device: Device) {
    let run = |attention: Attention| {
        let device = device.clone().autodiff();
        let query = wave([2, 4], 0.1, &device).require_grad();
        let key = wave([3, 4], 0.5, &device).require_grad();
        let value = wave([3, 4], 0.9, &device).require_grad();
        let bias = [[[HIDDEN; 3], [0.0, HIDDEN, 0.0]]];
        let output = attention(BiasedInput {
            query: query.clone(),
            key: key.clone(),
            value: value.clone(),
            bias: &Tensor::from_floats(bias, &device),
            spec: AttentionSpec::new(1, 1, 4),
        });
        let mean = values(value.clone().mean_dim(0));
        assert_close("mean", &values(output.clone())[..4], &mean, 1e-6).unwrap();
        let gradients = (output * wave([2, 4], 1.3, &device)).sum().backward();
        let gradients = [query, key, value].map(|input| values(input.grad(&gradients).unwrap()));
        // Of the second value, which the second query does not see.
        let third = wave([2, 4], 1.3, &device).narrow(0, 0, 1).div_scalar(3.0);
        assert_close("d(value)", &gradients[2][4..8], &values(third), 1e-6).unwrap();
        gradients
    };
    let (fast, slow) = (run(biased_attention), run(biased_attention_reference));
    for index in 0..3 {
        assert_close(NAMES[index + 1], &fast[index], &slow[index], 2e-6).unwrap();
    }
}

fn no_queries(device: Device) {
    let output = biased_attention(BiasedInput {
        query: Tensor::zeros([0, 4], &device),
        key: wave([6, 4], 0.5, &device),
        value: wave([6, 4], 0.9, &device),
        bias: &Tensor::zeros([2, 0, 3], &device),
        spec: AttentionSpec::new(2, 2, 2),
    });
    assert_eq!(output.dims(), [0, 4]);
}

fn any_number_of_threads_gives_the_same_bits(device: Device) {
    let case = Case {
        sizes: [3, 150, 140],
        heads: [2, 3, 16],
    };
    on_threads(|| run(biased_attention, case, &device).concat());
}
