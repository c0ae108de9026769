//! Sources of parameters, and traversal of parameters by path.
//!
//! A model is built from a [`ParameterSource`], be it random weights, a checkpoint or an upcycled checkpoint, so that
//! a model never has parameters without values.

mod part;
mod random;
#[cfg(test)]
mod tests;

use std::convert::Infallible;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Device, Tensor, TensorData};

pub(crate) use self::part::PartOf;
pub use self::random::RandomValues;
use crate::matrix::Matrix;
use crate::parallel::{Holding, Shard, Slice};

/// The initial value of a parameter that is not loaded from a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Initializer {
    /// All ones: the gain of a norm.
    Ones,
    /// All zeros: a bias.
    Zeros,
    /// Normally distributed with mean 0 and this standard deviation.
    Normal(f64),
    /// The same, of a projection whose output is added to the residual stream. Random weights may have zeros in its place
    /// ([`RandomParameters::with_zero_outputs`]).
    Output(f64),
}

/// What a parameter is for. Weight decay, the type in which weights are stored, and upcycling go by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The embedding table.
    Embedding,
    /// The gain of a norm.
    Norm,
    /// What a projection adds to its product.
    Bias,
    /// The sinks of attention.
    Sinks,
    /// A projection of attention.
    Attention,
    /// The weight of a router, or of the gate of the shared experts.
    Router,
    /// What a router adds to its logits.
    RouterBias,
    /// A matrix of a dense feed-forward.
    FeedForward,
    /// The stacked matrices of a layer's experts.
    Experts,
    /// A matrix of the shared experts.
    SharedExperts,
    /// The head.
    Head,
    /// A projection of cross-attention.
    CrossAttention,
    /// A gate, of which the hyperbolic tangent is a factor.
    Gate,
    /// A matrix of the vision tower, or the projection of what comes out of it.
    Tower,
    /// What the vision tower adds to or puts before the patches of a picture.
    TowerEmbedding,
}

/// What a dimension of a parameter counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// Token ids.
    Vocabulary,
    /// Values of the residual stream.
    Model,
    /// Values of all query heads.
    Heads,
    /// Query heads.
    QueryHeads,
    /// Values of all key/value heads.
    KvHeads,
    /// Values of one head.
    HeadDim,
    /// Values of a latent of latent attention, or of the key beside it.
    Latent,
    /// Values between the matrices of a SwiGLU.
    FeedForward,
    /// Experts.
    Experts,
    /// The only value.
    Single,
    /// Values of the stream of the vision tower.
    Tower,
    /// Values of all heads of the vision tower.
    TowerHeads,
    /// Values between the matrices of a feed-forward of the vision tower.
    TowerFeedForward,
    /// Values of a position that comes out of the vision tower.
    TowerOutput,
    /// Colours of a pixel.
    Channels,
    /// Rows or columns of pixels of a patch.
    Pixels,
    /// Positions of a tile.
    Positions,
    /// Arrangements of tiles.
    Arrangements,
    /// Values that an arrangement of tiles adds to all of a picture.
    Arrangement,
}

/// A parameter that a module asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct ParameterSpec<const D: usize> {
    /// Such as `blocks.0.attention.query.weight`.
    pub path: String,
    /// What it is for.
    pub role: Role,
    /// What its dimensions count.
    pub axes: [Axis; D],
    /// Its shape.
    pub shape: [usize; D],
    /// Its value if it is not loaded.
    pub initializer: Initializer,
}

impl<const D: usize> ParameterSpec<D> {
    /// A parameter of these dimensions.
    pub fn new(
        path: impl Into<String>,
        role: Role,
        dimensions: [(Axis, usize); D],
        initializer: Initializer,
    ) -> Self {
        Self {
            path: path.into(),
            role,
            axes: dimensions.map(|(axis, _)| axis),
            shape: dimensions.map(|(_, size)| size),
            initializer,
        }
    }

    /// What it is, without its value; not as a [`matrix`](ParameterSource::matrix).
    pub fn info(&self) -> ParameterInfo {
        ParameterInfo {
            path: self.path.clone(),
            role: self.role,
            axes: self.axes.to_vec(),
            shape: self.shape.to_vec(),
            is_matrix: false,
        }
    }
}

/// A parameter of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterInfo {
    /// Such as `blocks.0.attention.query.weight`.
    pub path: String,
    /// What it is for.
    pub role: Role,
    /// What its dimensions count.
    pub axes: Vec<Axis>,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Whether the model takes it as the weights of a product ([`ParameterSource::matrix`]), which may be held in 8 bits.
    pub is_matrix: bool,
}

impl ParameterInfo {
    /// The layer that it belongs to; `None` for embedding, final norm and head.
    pub fn layer(&self) -> Option<usize> {
        let (layer, _) = self.path.strip_prefix("blocks.")?.split_once('.')?;
        layer.parse().ok()
    }

    /// Whether it belongs to the vision tower, or to the projection of what comes out of it.
    pub fn is_tower(&self) -> bool {
        self.path.starts_with("vision.")
    }

    /// Number of values.
    pub fn elements(&self) -> u128 {
        self.shape.iter().map(|&size| size as u128).product()
    }
}

/// What a source provides of a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// These of its values.
    Values(Slice),
    /// Zeros of this shape; see [`Holding::Zeros`].
    Zeros(Vec<usize>),
}

/// Provides the parameters of a model under construction.
pub trait ParameterSource {
    /// Why a parameter cannot be provided.
    type Error;

    /// The rank that it provides parameters for; `None` for a model that is whole.
    fn shard(&self) -> Option<&Shard> {
        None
    }

    /// What the source provides of a parameter: what its rank holds, or all of it.
    ///
    /// # Panics
    ///
    /// When the parameter belongs to another stage than the rank's.
    fn held<const D: usize>(&self, spec: &ParameterSpec<D>) -> Held {
        let Some(shard) = self.shard() else {
            return Held::Values(Slice::whole(spec.shape));
        };
        match shard.holding(&spec.info()) {
            Holding::Part(slice) => Held::Values(slice),
            Holding::Zeros(shape) => Held::Zeros(shape),
            Holding::Elsewhere => panic!("{} is not on rank {}", spec.path, shard.rank()),
        }
    }

    /// This parameter, trainable. A source for a rank is asked for the whole parameter and gives what the rank holds of it
    /// ([`Shard::holding`]).
    ///
    /// # Errors
    ///
    /// When this source has no such parameter of this shape.
    ///
    /// # Panics
    ///
    /// When the parameter belongs to another stage than the rank's.
    fn parameter<const D: usize>(
        &mut self,
        spec: ParameterSpec<D>,
    ) -> Result<Param<Tensor<D>>, Self::Error>;

    /// The weights of a product, which a source may hold in another form than other parameters.
    ///
    /// # Errors
    ///
    /// As [`parameter`](Self::parameter).
    ///
    /// # Panics
    ///
    /// As [`parameter`](Self::parameter).
    fn matrix<const D: usize>(&mut self, spec: ParameterSpec<D>) -> Result<Matrix<D>, Self::Error> {
        self.parameter(spec).map(Matrix::from)
    }
}

/// Random weights, drawn on the host: [`RandomValues`], of which a part can be drawn alone.
#[derive(Debug)]
pub struct RandomParameters<'a> {
    seed: u64,
    device: &'a Device,
    shard: Option<Shard>,
    zero_outputs: bool,
}

impl<'a> RandomParameters<'a> {
    /// Those of a seed, on a device.
    pub fn new(seed: u64, device: &'a Device) -> Self {
        Self {
            seed,
            device,
            shard: None,
            zero_outputs: false,
        }
    }

    /// The same, but for the projections of attention, feed-forwards and experts whose outputs are added to the residual
    /// stream: they are zeros, so that a layer passes on what it is given (as the residual branches of Fixup, arXiv
    /// 1901.09321, begin).
    #[must_use]
    pub fn with_zero_outputs(self) -> Self {
        Self {
            zero_outputs: true,
            ..self
        }
    }

    /// What a rank holds of the same weights; nothing else is drawn.
    #[must_use]
    pub fn of_shard(self, shard: Shard) -> Self {
        Self {
            shard: Some(shard),
            ..self
        }
    }
}

impl ParameterSource for RandomParameters<'_> {
    type Error = Infallible;

    fn shard(&self) -> Option<&Shard> {
        self.shard.as_ref()
    }

    fn parameter<const D: usize>(
        &mut self,
        spec: ParameterSpec<D>,
    ) -> Result<Param<Tensor<D>>, Infallible> {
        let initializer = match spec.initializer {
            Initializer::Output(_) if self.zero_outputs => Initializer::Zeros,
            initializer => initializer,
        };
        let value = match (self.held(&spec), initializer) {
            (Held::Values(slice), Initializer::Ones) => Tensor::ones(slice.shape(), self.device),
            (Held::Values(slice), Initializer::Zeros) => Tensor::zeros(slice.shape(), self.device),
            (
                Held::Values(slice),
                Initializer::Normal(deviation) | Initializer::Output(deviation),
            ) => {
                let values = RandomValues::new(self.seed, &spec.path, deviation).of(&slice);
                let data = TensorData::new(values, slice.shape());
                Tensor::from_data(data, self.device)
            }
            (Held::Zeros(shape), _) => Tensor::zeros(shape, self.device),
        };
        Ok(Param::from_tensor(value))
    }
}

/// Collects the parameters that a model asks for.
#[derive(Default)]
pub(crate) struct ParameterList(pub Vec<ParameterInfo>);

impl ParameterSource for ParameterList {
    type Error = Infallible;

    fn parameter<const D: usize>(
        &mut self,
        spec: ParameterSpec<D>,
    ) -> Result<Param<Tensor<D>>, Infallible> {
        let shape = spec.shape;
        self.0.push(spec.info());
        // Allocated on first read, which never happens.
        let value = move |device: &Device, _| Tensor::zeros(shape, device);
        let (id, device) = (ParamId::new(), Device::default());
        Ok(Param::uninitialized(id, value, device, true, shape.into()))
    }

    fn matrix<const D: usize>(&mut self, spec: ParameterSpec<D>) -> Result<Matrix<D>, Infallible> {
        let parameter = self.parameter(spec)?;
        let info = self.0.last_mut().expect("it was added just now");
        info.is_matrix = true;
        Ok(parameter.into())
    }
}

/// Visits each parameter of a module, in the order of its fields.
pub trait VisitParameter {
    /// Called once per parameter.
    fn visit<const D: usize>(&mut self, path: &str, parameter: &Param<Tensor<D>>);
}

/// Replaces each parameter of a module, in the order of its fields.
pub trait MapParameter {
    /// Called once per parameter; returns its new value, which must be a leaf on an autodiff device, such as what
    /// `Tensor::from_inner` gives.
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

/// The module with gradients for the parameters at these paths alone: none is computed for the others.
#[must_use]
pub fn train_only<M: Module>(module: M, trains: impl Fn(&str) -> bool) -> M {
    module.map(&mut Walk {
        path: Path::default(),
        inner: &mut TrainOnly(trains),
    })
}

/// Which parameters have gradients.
struct TrainOnly<F>(F);

impl<F: Fn(&str) -> bool> ModuleMapper for Walk<'_, TrainOnly<F>> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let trains = self.inner.0(&self.path.joined());
        param.set_require_grad(trains)
    }
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
