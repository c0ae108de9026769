//! Ranks that compute together and exchange messages: threads of one process, or processes under MPI.
//!
//! A rank gets a [`Comm`], the handle of a group of ranks, and never learns what carries the messages. Sums are taken
//! in rank order, so that threads and MPI give the same bits. Operations have a deadline; and when one rank panics,
//! returns an error, dies or hangs, the operations of all ranks fail at once with a [`Failure`], which names the rank
//! and what it was doing.
//!
//! ```
//! use firebox_comm::{CommError, Options, threads};
//!
//! let sums = threads::run(3, &Options::default(), |comm| {
//!     let mut values = [comm.rank() as f32, 1.0];
//!     comm.all_reduce_sum(&mut values)?;
//!     Ok::<_, CommError>(values)
//! })?;
//! assert_eq!(sums, [[3.0, 3.0]; 3]);
//! # Ok::<(), firebox_comm::RunError<CommError>>(())
//! ```

mod blame;
mod call;
mod comm;
mod error;
pub mod mpi;
mod options;
mod parts;
mod pool;
mod sum;
pub mod threads;
mod timeout;
mod traffic;

pub use comm::Comm;
pub use error::{Cause, CommError, Failure, RunError};
pub use options::Options;
pub use traffic::{Count, Operation, Traffic};
