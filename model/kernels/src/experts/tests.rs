mod clamped;

use burn::tensor::{Device, TensorData};
use proptest::prelude::*;

use super::backward::ByInput;
use super::forward::{Biases, Inputs};
use super::*;
use crate::dispatch::HostPlan;
use firebox_runtime::on_every_device;
use firebox_runtime::testing::{devices, noise as values};

on_every_device!(
    one_value_through_one_expert_and_through_two,
    equals_the_reference,
    parts_of_the_experts_add_up_to_all_of_them,
    one_token_one_expert_and_one_with_everything,
    several_blocks_of_rows_and_slices_of_the_hidden_width,
    no_tokens_at_all,
    the_dense_twin_equals_its_reference,
);

/// `‖a − b‖ ≤ 2e-6 (‖b‖ + √n)` for n values. Both sides add the same f32 products in another order, and their
/// exponentials differ by 2 units in the last place. The operands are such that all that is added is about 1 in size:
/// what is left of a sum whose terms cancel is held to the size of these, which √n stands for.
const TOLERANCE: f64 = 2e-6;

/// Widths, and the experts of each token.
#[derive(Debug, Clone)]
struct Case {
    d_model: usize,
    d_ff: usize,
    plan: HostPlan,
    /// Whether x and the experts' weights are numbers in bf16.
    rounded: bool,
    activation: Activation,
    biased: bool,
}

impl Case {
    fn new(d_model: usize, d_ff: usize, chosen: &[u32], experts: usize, top_k: usize) -> Self {
        Self {
            d_model,
            d_ff,
            plan: HostPlan::new(chosen, experts, top_k),
            rounded: false,
            activation: Activation::Swiglu,
            biased: false,
        }
    }

    fn plan_on(&self, device: &Device) -> DispatchPlan {
        let plan = &self.plan;
        let chosen = &plan.expert_of_assignment;
        DispatchPlan::new(chosen, plan.experts, plan.top_k, device)
    }

    fn tokens(&self) -> usize {
        self.plan.token_of_row.len() / self.plan.top_k
    }

    /// x, router weights, gate, up, down, and their biases.
    fn operands(&self) -> [Vec<f32>; 8] {
        let stack = self.plan.experts * self.d_model * self.d_ff;
        let [of_model, of_hidden] = [self.d_model, self.d_ff].map(|d_in| (d_in as f32).powf(-0.5));
        let factor = |length, phase, size| {
            let mut values = values(length, phase, size);
            if self.rounded {
                let round = crate::precision::rounded_to_bf16;
                values.iter_mut().for_each(|value| *value = round(*value));
            }
            values
        };
        [
            factor(self.tokens() * self.d_model, 0.1, 1.0),
            values(self.plan.token_of_row.len(), 0.3, 1.0),
            factor(stack, 0.5, of_model),
            factor(stack, 0.7, of_model),
            factor(stack, 0.9, of_hidden),
            values(self.plan.experts * self.d_ff, 1.1, 1.0),
            values(self.plan.experts * self.d_ff, 1.3, 1.0),
            values(self.plan.experts * self.d_model, 1.5, 1.0),
        ]
    }

    fn inputs<'a>(&'a self, operands: &'a [Vec<f32>; 8]) -> Inputs<'a> {
        let [x, weights, gate, up, down, of_gate, of_up, of_down] = operands;
        let biases = Biases {
            gate: of_gate,
            up: of_up,
            down: of_down,
        };
        Inputs {
            x,
            weights,
            gate,
            up,
            down,
            biases: self.biased.then_some(biases),
            activation: self.activation,
            plan: &self.plan,
            d_model: self.d_model,
            d_ff: self.d_ff,
            precision: Precision::F32,
        }
    }
}

// σ(ln 3) is 3/4, and σ(−ln 3) is 1/4.
fn one_value_through_one_expert_and_through_two(device: Device) {
    let ln3 = 3f32.ln();
    let one = |value: f32| Tensor::<2>::from_floats([[value]], &device);
    let stack = |values: [f32; 2]| Tensor::<3>::from_floats(values.map(|v| [[v]]), &device);
    let output = swiglu(one(1.0), one(ln3), one(2.0), one(10.0), Precision::F32);
    assert_close("dense", &data(output), &[15.0 * ln3]).unwrap();
    let output = experts(
        one(1.0),
        Tensor::from_floats([[0.75, 0.25]], &device),
        ExpertWeights {
            gate: stack([ln3, -ln3]).into(),
            up: stack([2.0, 4.0]).into(),
            down: stack([1.0, 1.0]).into(),
            biases: None,
        },
        &DispatchPlan::new(&[1, 0], 2, 2, &device),
        Activation::Swiglu,
        Precision::F32,
    );
    // The second expert comes first: 3/4 · (−ln 3) + 1/4 · 3/2 ln 3
    assert_close("experts", &data(output), &[-0.375 * ln3]).unwrap();
}

type Operation =
    fn(Tensor<2>, Tensor<2>, ExpertWeights, &DispatchPlan, Activation, Precision) -> Tensor<2>;

fn data<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

const TYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// The output without gradients, the output with them, and the gradients of a weighted sum of it for x, router weights,
/// gate, up and down, and the biases where there are any. Of gate, up and down, held in another type than f32, there are
/// none.
fn run(
    operation: Operation,
    case: &Case,
    (held, precision): (DType, Precision),
    device: &Device,
) -> Vec<(&'static str, Vec<f32>)> {
    let (tokens, d_model, d_ff) = (case.tokens(), case.d_model, case.d_ff);
    let (experts, top_k) = (case.plan.experts, case.plan.top_k);
    let operands = case.operands();
    let tensors = |device: &Device| {
        let [x, weights, gate, up, down, of_gate, of_up, of_down] = &operands;
        let matrix = |values: &Vec<f32>, shape: [usize; 2]| {
            Tensor::<2>::from_data(TensorData::new(values.clone(), shape), device)
        };
        let stack = |values: &Vec<f32>, shape: [usize; 3]| {
            Tensor::<3>::from_data(TensorData::new(values.clone(), shape), device).cast(held)
        };
        let biases = ExpertBiases {
            gate: matrix(of_gate, [experts, d_ff]),
            up: matrix(of_up, [experts, d_ff]),
            down: matrix(of_down, [experts, d_model]),
        };
        let weights_of_experts = ExpertWeights {
            gate: stack(gate, [experts, d_model, d_ff]).into(),
            up: stack(up, [experts, d_model, d_ff]).into(),
            down: stack(down, [experts, d_ff, d_model]).into(),
            biases: case.biased.then_some(biases),
        };
        let x = matrix(x, [tokens, d_model]);
        (x, matrix(weights, [tokens, top_k]), weights_of_experts)
    };
    let (x, weights, of_experts) = tensors(device);
    let plan = case.plan_on(device);
    let plain = operation(x, weights, of_experts, &plan, case.activation, precision);

    let device = device.clone().autodiff();
    let (x, weights, mut of_experts) = tensors(&device);
    let (x, weights) = (x.require_grad(), weights.require_grad());
    if held == DType::F32 {
        for stack in [
            &mut of_experts.gate,
            &mut of_experts.up,
            &mut of_experts.down,
        ] {
            *stack = stack.clone().dequantized().require_grad().into();
        }
    }
    of_experts.biases = of_experts.biases.map(|biases| ExpertBiases {
        gate: biases.gate.require_grad(),
        up: biases.up.require_grad(),
        down: biases.down.require_grad(),
    });
    let plan = case.plan_on(&device);
    let output = operation(
        x.clone(),
        weights.clone(),
        of_experts.clone(),
        &plan,
        case.activation,
        precision,
    );
    let factors = TensorData::new(values(tokens * d_model, 0.2, 1.0), [tokens, d_model]);
    let gradients = (output.clone() * Tensor::from_data(factors, &device))
        .sum()
        .backward();
    let mut found = vec![
        ("output without gradients", data(plain)),
        ("output", data(output)),
        ("d(x)", data(x.grad(&gradients).unwrap())),
        ("d(weights)", data(weights.grad(&gradients).unwrap())),
    ];
    if held == DType::F32 {
        let grad = |stack: &Tensor<3>| data(stack.grad(&gradients).unwrap());
        found.push(("d(gate)", grad(&of_experts.gate.dequantized())));
        found.push(("d(up)", grad(&of_experts.up.dequantized())));
        found.push(("d(down)", grad(&of_experts.down.dequantized())));
    }
    if let Some(biases) = &of_experts.biases {
        let grad = |bias: &Tensor<2>| data(bias.grad(&gradients).unwrap());
        found.push(("d(gate bias)", grad(&biases.gate)));
        found.push(("d(up bias)", grad(&biases.up)));
        found.push(("d(down bias)", grad(&biases.down)));
    }
    found
}

fn assert_close(kind: &str, found: &[f32], expected: &[f32]) -> Result<(), TestCaseError> {
    assert_within(kind, found, expected, TOLERANCE)
}

fn assert_within(
    kind: &str,
    found: &[f32],
    expected: &[f32],
    tolerance: f64,
) -> Result<(), TestCaseError> {
    prop_assert_eq!(found.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f32>| {
        values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
    };
    let difference = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    let size = norm(&mut expected.iter().copied());
    let rounding = (expected.len() as f64).sqrt();
    prop_assert!(
        difference <= tolerance * (size + rounding),
        "{}: off by {:e} of {:e}",
        kind,
        difference,
        size
    );
    Ok(())
}

fn assert_same(case: &Case, device: &Device) -> Result<(), TestCaseError> {
    for held in TYPES
        .into_iter()
        .filter(|&held| device.supports_dtype(held))
    {
        let fast = run(experts, case, (held, Precision::F32), device);
        let slow = run(experts_reference, case, (held, Precision::F32), device);
        let stacks = if held == DType::F32 { 3 } else { 0 };
        let biases = if case.biased { 3 } else { 0 };
        prop_assert_eq!(
            (fast.len(), slow.len()),
            (4 + stacks + biases, 4 + stacks + biases)
        );
        for ((kind, fast), (_, slow)) in fast.iter().zip(&slow) {
            assert_close(&format!("{kind}, weights in {held:?}"), fast, slow)?;
        }
    }
    Ok(())
}

/// Experts of each token: different ones, and sometimes one expert first for all of them.
fn cases() -> impl Strategy<Value = Case> {
    (1usize..7, 1usize..40, 1usize..40).prop_flat_map(|(experts, d_model, d_ff)| {
        let token = Just((0..experts as u32).collect::<Vec<_>>()).prop_shuffle();
        (1..=experts, prop::collection::vec(token, 1..30)).prop_map(move |(top_k, tokens)| {
            let chosen: Vec<u32> = tokens
                .iter()
                .flat_map(|experts| experts[..top_k].iter().copied())
                .collect();
            Case::new(d_model, d_ff, &chosen, experts, top_k)
        })
    })
}

fn equals_the_reference(device: Device) {
    proptest!(ProptestConfig::with_cases(32), |(case in cases())| {
        assert_same(&case, &device)?;
        assert_near_in_bf16(&case, &device)?;
    });
}

/// Each of some runs of experts by itself, and the sum of what they say.
fn in_parts(
    x: Tensor<2>,
    weights: Tensor<2>,
    of: ExpertWeights,
    plan: &DispatchPlan,
    activation: Activation,
    precision: Precision,
) -> Tensor<2> {
    let count = plan.experts();
    let cuts = [0, 1, count.div_ceil(2), count];
    let ranges = cuts.windows(2).map(|cut| cut[0]..cut[1].max(cut[0]));
    let outputs = ranges.filter(|range| !range.is_empty()).map(|range| {
        let (start, length) = (range.start, range.len());
        let stack = |stack: &Weight<3>| stack.clone().dequantized().narrow(0, start, length).into();
        let bias = |bias: &Tensor<2>| bias.clone().narrow(0, start, length);
        let own = ExpertWeights {
            gate: stack(&of.gate),
            up: stack(&of.up),
            down: stack(&of.down),
            biases: of.biases.as_ref().map(|biases| ExpertBiases {
                gate: bias(&biases.gate),
                up: bias(&biases.up),
                down: bias(&biases.down),
            }),
        };
        let plan = plan.part(range);
        experts(
            x.clone(),
            weights.clone(),
            own,
            &plan,
            activation,
            precision,
        )
    });
    let sum = outputs.reduce(|sum, output| sum + output);
    sum.expect("at least one expert")
}

fn parts_of_the_experts_add_up_to_all_of_them(device: Device) {
    proptest!(ProptestConfig::with_cases(24), |(case in cases(), biased in any::<bool>())| {
        let case = Case { biased, ..case };
        let f32 = (DType::F32, Precision::F32);
        let parts = run(in_parts, &case, f32, &device);
        let all = run(experts_reference, &case, f32, &device);
        prop_assert_eq!(parts.len(), all.len());
        for ((kind, parts), (_, all)) in parts.iter().zip(&all) {
            assert_close(kind, parts, all)?;
        }
    });
}

/// The operands in bf16.
fn rounded(case: &Case) -> Case {
    Case {
        rounded: true,
        ..case.clone()
    }
}

/// In bf16: operands that are rounded before give the same bits, since they are rounded in any case; and the reference, which
/// rounds neither hidden activations that differ in the last bit of f32 alike, nor factors that are gradients, is as near as
/// one rounding by 2⁻⁸ of each in turn makes it: one forward, and up to four on the way to a gradient.
fn assert_near_in_bf16(case: &Case, device: &Device) -> Result<(), TestCaseError> {
    if !Precision::Bf16.runs_on(device) {
        return Ok(());
    }
    let held = (DType::F32, Precision::Bf16);
    let fast = run(experts, case, held, device);
    let again = run(experts, &rounded(case), held, device);
    let slow = run(experts_reference, case, held, device);
    for (place, (kind, fast)) in fast.iter().enumerate() {
        prop_assert_eq!(fast, &again[place].1, "{}", kind);
        let roundings = if place < 2 { 1.0 } else { 4.0 };
        let kind = format!("{kind}, products in bf16");
        assert_within(&kind, fast, &slow[place].1, roundings / 256.0)?;
    }
    Ok(())
}

fn one_token_one_expert_and_one_with_everything(device: Device) {
    for case in [
        Case::new(1, 1, &[0], 1, 1),
        Case::new(24, 40, &[3, 1], 5, 2),
        Case::new(17, 33, &[2; 300], 4, 1),
        Case::new(8, 300, &[1, 0, 2, 1, 0, 2], 3, 3),
    ] {
        assert_same(&case, &device).unwrap();
        assert_near_in_bf16(&case, &device).unwrap();
    }
}

fn several_blocks_of_rows_and_slices_of_the_hidden_width(device: Device) {
    let chosen: Vec<u32> = (0..700).flat_map(|t| [t * t % 5, 5 + t % 2]).collect();
    let few = [0, 1, 2, 0, 1, 2];
    for case in [
        Case::new(24, 1030, &chosen, 7, 2),
        Case::new(40, 1030, &few, 3, 2),
    ] {
        assert_same(&case, &device).unwrap();
        assert_near_in_bf16(&case, &device).unwrap();
    }
}

// NdArray's own product refuses matrices without rows, so that there is no reference to compare with.
fn no_tokens_at_all(device: Device) {
    let case = Case::new(6, 5, &[], 3, 2);
    let stack = |shape: [usize; 3]| Tensor::<3>::ones(shape, &device);
    let (x, weights) = (
        Tensor::zeros([0, 6], &device),
        Tensor::zeros([0, 2], &device),
    );
    let of_experts = ExpertWeights {
        gate: stack([3, 6, 5]).into(),
        up: stack([3, 6, 5]).into(),
        down: stack([3, 5, 6]).into(),
        biases: None,
    };
    let plan = case.plan_on(&device);
    let activation = Activation::Swiglu;
    let output = experts(x, weights, of_experts, &plan, activation, Precision::F32);
    assert_eq!(output.dims(), [0, 6]);
}

#[test]
fn slices_of_no_tokens_at_all() {
    let case = Case::new(6, 5, &[], 3, 2);
    let operands = case.operands();
    let inputs = case.inputs(&operands);
    assert!(forward::forward(&inputs).is_empty());
    let (output, saved) = forward::forward_saving(&inputs);
    assert!(output.is_empty());
    let gradients = backward::backward(&inputs, saved, &[], all());
    assert!(gradients.x.unwrap().is_empty());
    assert_eq!(gradients.gate.unwrap(), vec![0.0; 90]);
}

fn the_dense_twin_equals_its_reference(device: Device) {
    let device = device.autodiff();
    for tokens in [1, 2, 200] {
        let matrix = |rows: usize, columns: usize, phase| {
            let data = TensorData::new(values(rows * columns, phase, 1.0), [rows, columns]);
            Tensor::<2>::from_data(data, &device).require_grad()
        };
        let operands = [
            matrix(tokens, 24, 0.1),
            matrix(24, 300, 0.2),
            matrix(24, 300, 0.3),
            matrix(300, 24, 0.4),
        ];
        let [fast, slow] = [swiglu, swiglu_reference].map(|operation| {
            let [x, gate, up, down] = operands.clone();
            let output = operation(x, gate, up, down, Precision::F32);
            let gradients = (output.clone() * output.clone()).sum().backward();
            let mut found = vec![data(output)];
            found.extend(operands.iter().map(|o| data(o.grad(&gradients).unwrap())));
            found
        });
        for (fast, slow) in fast.iter().zip(&slow) {
            assert_close("dense", fast, slow).unwrap();
        }
    }
}

const fn all() -> ByInput<bool> {
    ByInput {
        x: true,
        weights: true,
        gate: true,
        up: true,
        down: true,
        gate_bias: true,
        up_bias: true,
        down_bias: true,
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let chosen: Vec<u32> = (0..900).flat_map(|t| [t * t % 3, 3 + t % 2]).collect();
    let case = Case {
        biased: true,
        ..Case::new(40, 136, &chosen, 6, 2)
    };
    let operands = case.operands();
    let gradient = values(900 * 40, 0.2, 1.0);
    let run = |precision, threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.unwrap().install(|| {
            let inputs = Inputs {
                precision,
                ..case.inputs(&operands)
            };
            let plain = forward::forward(&inputs);
            let (output, saved) = forward::forward_saving(&inputs);
            let gradients = backward::backward(&inputs, saved, &gradient, all());
            (plain, output, gradients)
        })
    };
    for precision in Precision::ALL {
        let one = run(precision, 1);
        assert!(one == run(precision, 2) && one == run(precision, 8));
    }
}

#[test]
fn gradients_that_nobody_wants_are_not_computed() {
    let case = Case::new(6, 5, &[0, 2, 2, 1], 3, 2);
    let operands = case.operands();
    let inputs = case.inputs(&operands);
    let gradient = values(12, 0.2, 1.0);
    let run = |needs_grad| {
        let (_, saved) = forward::forward_saving(&inputs);
        backward::backward(&inputs, saved, &gradient, needs_grad)
    };
    let whole = run(all());
    let up = run(ByInput {
        up: true,
        ..ByInput::default()
    });
    assert_eq!(up.up, whole.up);
    assert!(up.x.is_none() && up.weights.is_none() && up.gate.is_none() && up.down.is_none());
}

#[test]
#[should_panic(expected = "router weights of 2 tokens")]
fn shapes_that_do_not_fit_are_refused() {
    let device = devices().remove(0);
    let stack = || Tensor::zeros([3, 4, 4], &device);
    let plan = DispatchPlan::new(&[0, 1, 2, 0], 3, 2, &device);
    let (x, weights) = (
        Tensor::zeros([2, 4], &device),
        Tensor::zeros([2, 1], &device),
    );
    let of_experts = ExpertWeights {
        gate: stack().into(),
        up: stack().into(),
        down: stack().into(),
        biases: None,
    };
    let _ = experts(
        x,
        weights,
        of_experts,
        &plan,
        Activation::Swiglu,
        Precision::F32,
    );
}
