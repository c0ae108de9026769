//! What clients ask for: the fields of a request, read strictly.
//!
//! A wrong type or a value out of range is refused with the field's name and what is allowed; nothing is corrected in silence. Only
//! the model is not needed for this: what depends on it (ids, the context) is checked in [`prepare`](crate::prepare).

mod body;
mod chat;
mod completion;
mod field;
mod generation;
#[cfg(test)]
mod tests;
mod tokenize;

pub use body::Body;
pub use chat::{ChatRequest, Message, Part, PictureUrl, Variables};
pub use completion::{CompletionRequest, Prompt};
pub use field::Field;
pub use generation::{Generation, StreamOptions};
pub use tokenize::{DetokenizeRequest, TokenizeRequest};
