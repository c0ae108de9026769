//! Small models and texts.

use std::collections::BTreeMap;

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use firebox_model::batch::Sequence;
use firebox_model::config::ModelConfig;
use firebox_model::language_model::LanguageModel;
use firebox_model::parameters::{VisitParameter, visit};
pub use firebox_model::testing::tiny;

/// A model whose parameters, the norms' gains too, are random.
pub fn model(config: &ModelConfig, device: &Device) -> LanguageModel {
    LanguageModel::random(config, 7, device)
}

/// `count` sequences of `length` arbitrary tokens; `padding` of the last ones' positions do not count.
pub fn sequences(
    config: &ModelConfig,
    count: usize,
    length: usize,
    padding: &[usize],
) -> Vec<Sequence> {
    let mut state = 12_345u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % config.vocab_size as u64) as u32
    };
    (0..count)
        .map(|row| {
            let text: Vec<u32> = (0..=length).map(|_| next()).collect();
            let hidden = padding.get(row).copied().unwrap_or(0);
            Sequence {
                tokens: text[..length].to_vec(),
                targets: text[1..].to_vec(),
                valid: length - hidden,
                positions: None,
            }
        })
        .collect()
}

/// Bits of every parameter, by path.
pub fn bits(model: &LanguageModel) -> BTreeMap<String, Vec<u32>> {
    struct Collect(BTreeMap<String, Vec<u32>>);
    impl VisitParameter for Collect {
        fn visit<const D: usize>(&mut self, path: &str, parameter: &Param<Tensor<D>>) {
            let values = parameter.val().into_data();
            let bits = values.iter::<f32>().map(f32::to_bits).collect();
            self.0.insert(path.to_owned(), bits);
        }
    }
    let mut collect = Collect(BTreeMap::new());
    visit(model, &mut collect);
    collect.0
}
