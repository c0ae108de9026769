//! Weights that change between two steps, by a fault of a machine's memory.

use burn::module::Param;
use burn::tensor::Tensor;
use firebox_model::language_model::LanguageModel;
use firebox_model::parameters::{VisitParameter, visit};

/// A checksum of the weights that are here (CRC-32C, RFC 3720, appendix B.4): one changed bit changes it.
pub fn checksum(model: &LanguageModel) -> u32 {
    checksum_of(model, |_| true)
}

/// The same of the parameters with some of the paths.
pub fn checksum_of(model: &LanguageModel, includes: impl Fn(&str) -> bool) -> u32 {
    struct Sum<F>(u32, F);
    impl<F: Fn(&str) -> bool> VisitParameter for Sum<F> {
        fn visit<const D: usize>(&mut self, path: &str, parameter: &Param<Tensor<D>>) {
            if (self.1)(path) {
                let data = parameter.val().into_data();
                self.0 = crc32c::crc32c_append(self.0, data.as_bytes());
            }
        }
    }
    let mut sum = Sum(0, includes);
    visit(model, &mut sum);
    sum.0
}
