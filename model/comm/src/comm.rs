//! What a rank can do with the others.

use std::fmt::{self, Debug};
use std::sync::Arc;

use crate::{CommError, Traffic};

/// One rank's handle of a group of ranks that exchange messages.
///
/// All ranks of a group call the same operations in the same order, but for [`send`](Self::send) and
/// [`recv`](Self::recv). Ranks in arguments are those of the group, from 0; a [`Failure`](crate::Failure) names ranks
/// of the whole run.
///
/// # Errors
///
/// Every operation fails once any rank of the run has failed, in whichever group. It fails the run itself when it waits
/// for a rank that has finished, or that makes no progress within the deadline
/// ([`Options::deadline`](crate::Options::deadline), which counts from the beginning of the operation); and when the
/// ranks of a group call operations that do not fit together.
pub trait Comm: Debug + Send + Sync {
    /// This rank's place in the group.
    fn rank(&self) -> usize;

    /// How many ranks the group has.
    fn size(&self) -> usize;

    /// The group of the ranks that give the same color, in the order of their ranks here.
    ///
    /// # Errors
    ///
    /// As of every operation.
    fn split(&self, color: usize) -> Result<Arc<dyn Comm>, CommError>;

    /// Adds up the vectors of all ranks, which are of one length, element by element in the order of the ranks:
    /// `x₀ + x₁ + x₂ …`, each sum rounded to f32. Every rank gets the same bits, whatever carries the messages; only
    /// which NaN stands for several is open.
    ///
    /// # Errors
    ///
    /// As of every operation. `values` are of no use then.
    fn all_reduce_sum(&self, values: &mut [f32]) -> Result<(), CommError>;

    /// Adds up like [`all_reduce_sum`](Self::all_reduce_sum), but gives each rank its part of the sum alone: the values
    /// from the end of the part before it to its own in `ends`, which has one for each rank and is the same on all of
    /// them. The other values are of no use afterwards.
    ///
    /// # Errors
    ///
    /// As of every operation.
    ///
    /// # Panics
    ///
    /// When `ends` does not divide the values among the ranks.
    fn reduce_scatter_sum(&self, values: &mut [f32], ends: &[usize]) -> Result<(), CommError>;

    /// Gives every rank's part of a vector to all ranks: a part is that of
    /// [`reduce_scatter_sum`](Self::reduce_scatter_sum).
    ///
    /// # Errors
    ///
    /// As of every operation. `values` are of no use then.
    ///
    /// # Panics
    ///
    /// As there.
    fn all_gather_parts(&self, values: &mut [f32], ends: &[usize]) -> Result<(), CommError>;

    /// Sends bytes to every rank, this one included, and returns those that each of them has sent here, both in the order
    /// of the ranks. Lengths may differ.
    ///
    /// # Errors
    ///
    /// As of every operation.
    ///
    /// # Panics
    ///
    /// When there are not as many parts as ranks.
    fn all_to_all(&self, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, CommError>;

    /// The bytes of every rank, in the order of the ranks. Lengths may differ.
    ///
    /// # Errors
    ///
    /// As of every operation.
    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CommError>;

    /// Sends bytes to another rank, or to this one. It does not wait until they are received. Messages from one rank
    /// to another arrive in the order in which they were sent.
    ///
    /// # Errors
    ///
    /// As of every operation, and when there is no rank `to`.
    fn send(&self, to: usize, bytes: &[u8]) -> Result<(), CommError>;

    /// The next message of a rank, waited for.
    ///
    /// # Errors
    ///
    /// As of every operation, and when there is no rank `from`.
    fn recv(&self, from: usize) -> Result<Vec<u8>, CommError>;

    /// The next message of a rank that sends when it has something to send: [`recv`](Self::recv) without a deadline. If
    /// any rank fails or dies, or this one finishes without a message, the wait ends with an error all the same. Under MPI,
    /// that a rank finishes is known on its own machine only.
    ///
    /// # Errors
    ///
    /// As of every operation but for its deadline, and when there is no rank `from`.
    fn wait(&self, from: usize) -> Result<Vec<u8>, CommError>;

    /// Waits until all ranks are here.
    ///
    /// # Errors
    ///
    /// As of every operation.
    fn barrier(&self) -> Result<(), CommError>;

    /// What this rank did with this group so far; groups split from it count for themselves.
    fn traffic(&self) -> Traffic;

    /// Says what this rank is about to do, such as `layer 7 of 120`, for the sentence that others print if it fails.
    /// It is cheap: a short text is formatted and kept.
    fn doing(&self, what: fmt::Arguments<'_>);
}
