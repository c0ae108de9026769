//! An HTTP server with OpenAI's interface around a scheduler of generated texts.

pub mod error;
pub mod job;
pub mod request;
pub mod text;
