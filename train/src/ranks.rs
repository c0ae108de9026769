//! Many ranks that train one model together.
//!
//! Every rank computes the gradient of its share of each batch ([`Team::share`]). Gradients are added up over the ranks that
//! have the same parameters, which are all of them, or for experts those with the same part of the experts
//! ([`TrainLayout::expert`]). Each rank updates the values that are its own ([`Ownership`]), with the optimizer's state of
//! these alone (ZeRO stage 1, arXiv 1910.02054), and gives them to the others. What a run computes does not depend on the number of ranks, but for
//! rounding: counts, norms and means are those of the whole batch, and the order of the data is the same.
//!
//! A message that fails ends a rank's work by a panic that prints nothing ([`CommError::unwind`]), which whoever started
//! the rank catches ([`launch`]).
//!
//! [`CommError::unwind`]: firebox_comm::CommError::unwind

mod checksum;
mod experts;
pub mod launch;
mod layout;
mod ownership;
mod team;
mod validation;

pub use checksum::checksum;
pub use experts::own_expert;
pub use layout::{LayoutError, TrainLayout};
pub(crate) use ownership::is_of_experts;
pub use ownership::{Owned, Ownership, Update};
pub(crate) use team::host;
pub use team::{Holders, RankRecord, Team, slow_rank};
pub use validation::Shared;
