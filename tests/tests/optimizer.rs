//! AdamW against the formula, written once more for single numbers in f64.

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use firebox_model::language_model::LanguageModel;
use firebox_model::parameters::{VisitParameter, visit};
use firebox_runtime::on_every_device;
use firebox_tests::models::{model, sequences, tiny};
use firebox_tests::tensors::relative_error;
use firebox_train::config::{Muon, OptimizerConfig};
use firebox_train::gradient::forward_backward;
use firebox_train::learned::Learned;
use firebox_train::optimizer::Optimizer;
use firebox_train::ranks::Team;

on_every_device!(three_steps_follow_the_formula);

const CONFIG: OptimizerConfig = OptimizerConfig {
    learning_rate: 0.0, // that of each step is given to it
    beta1: 0.9,
    beta2: 0.95,
    epsilon: 1e-8,
    weight_decay: 0.1,
    clip_norm: 1.0,
    muon: Muon::None,
    muon_momentum: None,
    expert_interval: 1,
    gate_rate: 1.0,
};

/// Every parameter's values, by path.
fn weights(model: &LanguageModel) -> BTreeMap<String, Vec<f32>> {
    struct Collect(BTreeMap<String, Vec<f32>>);
    impl VisitParameter for Collect {
        fn visit<const D: usize>(&mut self, path: &str, parameter: &Param<Tensor<D>>) {
            let values = parameter.val().to_data().iter::<f32>().collect();
            self.0.insert(path.to_owned(), values);
        }
    }
    let mut collect = Collect(BTreeMap::new());
    visit(model, &mut collect);
    collect.0
}

/// That of all parameters of the smallest model.
fn optimizer() -> Optimizer {
    Optimizer::new(&tiny(), CONFIG.muon, Learned::Everything, &Team::default())
}

fn three_steps_follow_the_formula(device: Device) {
    let device = device.autodiff();
    let mut model = model(&tiny(), &device).train();
    let mut optimizer = optimizer();
    let text = sequences(&tiny(), 2, 12, &[]);
    let mut moments: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for (step, (scale, rate)) in [(0.25, 1e-2), (1.0, 2e-2), (0.5, 1e-2)]
        .into_iter()
        .enumerate()
    {
        let before = weights(&model);
        let gradients = forward_backward(&model, &text, 2, &device).gradients;
        let by_path: BTreeMap<String, Vec<f32>> = gradients
            .by_path()
            .iter()
            .map(|(path, gradient)| (path.clone(), gradient.to_data().iter::<f32>().collect()))
            .collect();
        model = optimizer.step(model, gradients, scale, rate, &CONFIG);

        let steps = step as i32 + 1;
        let [first_correction, second_correction] =
            [0.9f64, 0.95].map(|beta| 1.0 - beta.powi(steps));
        for (path, found) in weights(&model) {
            let decay = if path == "embedding" || path.ends_with("gamma") {
                0.0
            } else {
                0.1
            };
            let moments = moments
                .entry(path.clone())
                .or_insert_with(|| vec![(0.0, 0.0); found.len()]);
            let numbers = before[&path].iter().zip(&by_path[&path]).zip(moments);
            let expected: Vec<f32> = numbers
                .map(|((&weight, &gradient), (first, second))| {
                    let (weight, gradient) = (f64::from(weight), f64::from(gradient) * scale);
                    *first = 0.9 * *first + 0.1 * gradient;
                    *second = 0.95 * *second + 0.05 * gradient * gradient;
                    let change =
                        (*first / first_correction) / ((*second / second_correction).sqrt() + 1e-8);
                    (weight * (1.0 - rate * decay) - rate * change) as f32
                })
                .collect();
            // The change itself, not the weight beside which it is small.
            let change = |after: &[f32]| -> Vec<f32> {
                after
                    .iter()
                    .zip(&before[&path])
                    .map(|(after, before)| after - before)
                    .collect()
            };
            let error = relative_error(&change(&found), &change(&expected));
            assert!(error < 1e-4, "step {steps}: {path} is off by {error:.1e}");
        }
        assert_eq!(optimizer.steps(), steps as u64);
    }
}

/// Where each parameter's values lie.
#[cfg(feature = "flex")]
fn addresses(model: &LanguageModel) -> BTreeMap<String, usize> {
    use burn::backend::DispatchTensorKind;

    struct Collect(BTreeMap<String, usize>);
    impl VisitParameter for Collect {
        fn visit<const D: usize>(&mut self, path: &str, parameter: &Param<Tensor<D>>) {
            let DispatchTensorKind::Flex(tensor) = parameter.val().inner().into_dispatch().kind
            else {
                panic!("{path} is on flex");
            };
            let address = tensor.as_float().bytes().as_ptr() as usize;
            self.0.insert(path.to_owned(), address);
        }
    }
    let mut collect = Collect(BTreeMap::new());
    visit(model, &mut collect);
    collect.0
}

#[cfg(feature = "flex")]
#[test]
fn weights_change_where_they_are() {
    let device = Device::flex().autodiff();
    let mut model = model(&tiny(), &device).train();
    let mut optimizer = optimizer();
    let text = sequences(&tiny(), 2, 12, &[]);
    let (start, values) = (addresses(&model), weights(&model));
    for _ in 0..2 {
        let gradients = forward_backward(&model, &text, 1, &device).gradients;
        model = optimizer.step(model, gradients, 1.0, 1e-2, &CONFIG);
    }
    assert_eq!(addresses(&model), start);
    assert_ne!(weights(&model), values);
}
