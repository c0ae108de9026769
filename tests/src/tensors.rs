//! Comparison of tensors with references.

use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;

/// All tensors of a small safetensors file, of f32 and i64.
pub struct Tensors(Vec<u8>);

impl Tensors {
    /// # Panics
    ///
    /// When the file cannot be read.
    pub fn read(path: &Path) -> Self {
        Self(fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    /// In no particular order.
    pub fn names(&self) -> Vec<String> {
        self.file().names().into_iter().map(str::to_owned).collect()
    }

    /// # Panics
    ///
    /// When there is no such tensor.
    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.file().tensor(name).expect(name).shape().to_vec()
    }

    /// # Panics
    ///
    /// When there is no such tensor of f32.
    pub fn floats(&self, name: &str) -> Vec<f32> {
        let words = self.words::<4>(name, Dtype::F32);
        words.into_iter().map(f32::from_le_bytes).collect()
    }

    /// # Panics
    ///
    /// When there is no such tensor of i64.
    pub fn integers(&self, name: &str) -> Vec<i64> {
        let words = self.words::<8>(name, Dtype::I64);
        words.into_iter().map(i64::from_le_bytes).collect()
    }

    fn words<const N: usize>(&self, name: &str, dtype: Dtype) -> Vec<[u8; N]> {
        let file = self.file();
        let view = file.tensor(name).expect(name);
        assert_eq!(view.dtype(), dtype, "{name}");
        let words = view.data().chunks_exact(N);
        words
            .map(|word| word.try_into().expect("N bytes"))
            .collect()
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).expect("a safetensors file")
    }
}

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
