//! Comparison of tensors with references.

use std::collections::BTreeMap;

use burn::module::Param;
use burn::tensor::{Gradients, Tensor};
use firebox_model::language_model::LanguageModel;
use firebox_model::parameters::{VisitParameter, visit};

/// `‖a − b‖ / ‖b‖` over all values, in f64.
///
/// # Panics
///
/// When the lengths differ.
pub fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len(), "number of values");
    let square = |value: f64| value * value;
    let difference: f64 = found
        .iter()
        .zip(expected)
        .map(|(&a, &b)| square(f64::from(a) - f64::from(b)))
        .sum();
    let norm: f64 = expected.iter().map(|&b| square(f64::from(b))).sum();
    if difference == 0.0 {
        0.0
    } else {
        (difference / norm).sqrt()
    }
}

/// The gradient of every parameter, by path.
///
/// # Panics
///
/// When a parameter has none.
pub fn gradients(model: &LanguageModel, gradients: &Gradients) -> BTreeMap<String, Vec<f32>> {
    struct Collect<'a> {
        gradients: &'a Gradients,
        found: BTreeMap<String, Vec<f32>>,
    }
    impl VisitParameter for Collect<'_> {
        fn visit<const D: usize>(&mut self, path: &str, parameter: &Param<Tensor<D>>) {
            let gradient = parameter
                .val()
                .grad(self.gradients)
                .unwrap_or_else(|| panic!("{path} has no gradient"));
            self.found
                .insert(path.to_owned(), gradient.to_data().iter::<f32>().collect());
        }
    }
    let mut collect = Collect {
        gradients,
        found: BTreeMap::new(),
    };
    visit(model, &mut collect);
    collect.found
}
