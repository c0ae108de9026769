//! Many ranks that hold one model together: which rank has which part of which parameter.
//!
//! A [`RankLayout`] says how many pipeline stages there are, how many tensor ranks each of them has, and into how many
//! groups these divide the experts. [`stages`] deals the layers out to the stages, and a [`Shard`] is one rank of it all:
//! what it holds of a parameter follows from the parameter's role and axes, by one table ([`Shard::holding`]), as a
//! [`Slice`].
//!
//! A [`ParameterSource`](crate::parameters::ParameterSource) with a shard gives each module its part: modules ask for whole
//! parameters, and take the sizes that they compute with from what they get.
//!
//! At run time, [`Ranks`] holds a rank's communicators. The first rank has the model as a
//! [`Network`](crate::network::Network), the [`Driver`]; the others [`serve`]. A message that fails ends a rank's work by a
//! panic that prints nothing ([`TensorGroup`]), which whoever started the rank catches.

pub(crate) mod cross_entropy;
mod driver;
#[cfg(test)]
mod exactness;
mod group;
mod layout;
mod ranks;
mod shard;
mod slice;
mod stage;
pub mod stages;
mod step;
#[cfg(test)]
mod tests;
pub mod traffic;

pub use driver::{Driver, dismiss};
pub use group::TensorGroup;
pub use layout::{Coordinates, LayoutError, MOST_RANKS, RankLayout, share};
pub use ranks::Ranks;
pub use shard::{GradientPart, Holding, Shard, are_stages};
pub use slice::Slice;
pub use stage::{observed, serve};
