//! An HTTP server with OpenAI's interface: requests become jobs, and events of jobs become replies and streams.
//!
//! [`http`] takes requests, [`request`] reads them and [`pictures`] what they show, [`prepare`] makes [`job`]s of them, which go to a
//! [`Submit`](job::Submit)ter, and [`reply`] makes objects and chunks of what happens to them.
//! [`route`] stands in front of several such servers, and [`client`] asks one. Nothing here computes a model.

pub mod client;
pub mod error;
pub mod http;
pub mod job;
pub mod lifecycle;
pub mod metrics;
pub mod pictures;
pub mod prepare;
pub mod reply;
pub mod request;
pub mod route;
pub mod scheduler;
pub mod served;
pub mod template;
#[cfg(test)]
mod testing;
pub mod text;
