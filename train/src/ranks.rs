//! Many ranks that train one model together.
//!
//! Every rank computes the gradient of its share of each batch ([`Team::share`]): of all parameters, or where several tensor
//! ranks have a share together ([`TrainLayout::tensor`]), of its parts of them. Gradients are added up over the ranks that
//! have the same values, which are all of them, or those with the same part of the experts ([`TrainLayout::expert`]) or of the
//! matrices. Each rank updates the values that are its own ([`Ownership`]), with the optimizer's state of
//! these alone (ZeRO stage 1, arXiv 1910.02054), and gives them to the others. What a run computes does not depend on the number of ranks, but for
//! rounding: counts, norms and means are those of the whole batch, and the order of the data is the same.
//!
//! A message that fails ends a rank's work by a panic that prints nothing ([`CommError::unwind`]), which whoever started
//! the rank catches ([`launch`]).
//!
//! [`CommError::unwind`]: firebox_comm::CommError::unwind

mod checksum;
pub mod launch;
mod layout;
mod ownership;
mod team;
mod validation;
mod weights;

pub use checksum::{checksum, checksum_of};
pub use layout::{Holders, LayoutError, TrainLayout};
pub use ownership::{Owned, Ownership, Update};
pub(crate) use team::host;
pub use team::{RankRecord, SHORT, SLOW, Team, relative_to_median, slow_rank};
pub use validation::Shared;
pub use weights::{Weights, own_weights};
