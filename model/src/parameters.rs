//! Sources of parameters, and traversal of parameters by path.
//!
//! A model is built from a [`ParameterSource`], be it random weights, a checkpoint or an upcycled checkpoint, so that
//! a model never has parameters without values.

use std::convert::Infallible;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Device, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use sha2::{Digest, Sha256};

/// The initial value of a parameter that is not loaded from a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Initializer {
    /// All ones: the gain of a norm.
    Ones,
    /// Normally distributed with mean 0 and this standard deviation.
    Normal(f64),
}

/// Provides the parameters of a model under construction.
pub trait ParameterSource {
    /// Why a parameter cannot be provided.
    type Error;

    /// The parameter at `path`, such as `blocks.0.attention.query`, trainable.
    ///
    /// # Errors
    ///
    /// When this source has no such parameter of this shape.
    fn parameter<const D: usize>(
        &mut self,
        path: &str,
        shape: [usize; D],
        initializer: Initializer,
    ) -> Result<Param<Tensor<D>>, Self::Error>;
}

/// Random weights, sampled on the host by a counter-based generator (ChaCha8) whose stream is the hash of the
/// parameter's path: they depend on the seed and the shape, not on the device or the order of construction.
#[derive(Debug)]
pub struct RandomParameters<'a> {
    /// Seed of all weights.
    pub seed: u64,
    /// Device of the tensors.
    pub device: &'a Device,
}

impl ParameterSource for RandomParameters<'_> {
    type Error = Infallible;

    fn parameter<const D: usize>(
        &mut self,
        path: &str,
        shape: [usize; D],
        initializer: Initializer,
    ) -> Result<Param<Tensor<D>>, Infallible> {
        let value = match initializer {
            Initializer::Ones => Tensor::ones(shape, self.device),
            Initializer::Normal(deviation) => {
                let digest = Sha256::digest(path.as_bytes());
                let stream = digest[..8]
                    .iter()
                    .fold(0, |word, byte| (word << 8) | u64::from(*byte));
                let mut generator = ChaCha8Rng::seed_from_u64(self.seed);
                generator.set_stream(stream);
                let deviation = deviation as f32;
                let values: Vec<f32> = (0..shape.iter().product())
                    .map(|_| {
                        let sample: f32 = StandardNormal.sample(&mut generator);
                        sample * deviation
                    })
                    .collect();
                Tensor::from_data(TensorData::new(values, shape), self.device)
            }
        };
        Ok(Param::from_tensor(value))
    }
}

/// Collects the path and shape of each parameter that a model requests.
#[derive(Default)]
pub(crate) struct Shapes(pub Vec<(String, Vec<usize>)>);

impl ParameterSource for Shapes {
    type Error = Infallible;

    fn parameter<const D: usize>(
        &mut self,
        path: &str,
        shape: [usize; D],
        _: Initializer,
    ) -> Result<Param<Tensor<D>>, Infallible> {
        self.0.push((path.to_owned(), shape.to_vec()));
        // Allocated on first read, which never happens.
        let value = move |device: &Device, _| Tensor::zeros(shape, device);
        let (id, device) = (ParamId::new(), Device::default());
        Ok(Param::uninitialized(id, value, device, true, shape.into()))
    }
}

/// Visits each parameter of a module, in the order of its fields.
pub trait VisitParameter {
    /// Called once per parameter.
    fn visit<const D: usize>(&mut self, path: &str, parameter: &Param<Tensor<D>>);
}

/// Replaces each parameter of a module, in the order of its fields.
pub trait MapParameter {
    /// Called once per parameter; returns its new value.
    fn map<const D: usize>(&mut self, path: &str, value: Tensor<D>) -> Tensor<D>;
}

/// Visits the parameters of a module with their paths.
pub fn visit<M: Module>(module: &M, visitor: &mut impl VisitParameter) {
    module.visit(&mut Walk {
        path: Path::default(),
        inner: visitor,
    });
}

/// Replaces the parameters of a module; a new value is a trainable leaf if the old one was.
pub fn map<M: Module>(module: M, mapper: &mut impl MapParameter) -> M {
    module.map(&mut Walk {
        path: Path::default(),
        inner: mapper,
    })
}

/// The path of field names that leads to a parameter. It does not contain enum variants, so that the path does not
/// depend on the kind of feed-forward.
#[derive(Default)]
struct Path(Vec<Option<String>>);

impl Path {
    fn enter(&mut self, name: &str, container: &str) {
        self.0
            .push((!container.starts_with("Enum:")).then(|| name.to_owned()));
    }

    fn exit(&mut self) {
        self.0.pop();
    }

    fn joined(&self) -> String {
        self.0
            .iter()
            .flatten()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(".")
    }
}

struct Walk<'a, T> {
    path: Path,
    inner: &'a mut T,
}

impl<V: VisitParameter> ModuleVisitor for Walk<'_, V> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.inner.visit(&self.path.joined(), param);
    }
}

impl<M: MapParameter> ModuleMapper for Walk<'_, M> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = self.path.joined();
        let (id, value, mapper) = param.consume();
        let trainable = value.is_require_grad();
        let value = self.inner.map(&path, value).set_require_grad(trainable);
        Param::from_mapped_value(id, value, mapper)
    }
}
