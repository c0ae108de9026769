//! What keeps a load from being measured.

use std::io;

use firebox_console::advice::{Advice, Advise};
use firebox_serve::route::Address;

/// Why a server was not measured.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// `--serve` without an address or a checkpoint.
    #[error("--serve needs the address of a running server, or a CHECKPOINT to serve meanwhile")]
    Nothing,
    /// `--serve` with both.
    #[error(
        "--serve {address} measures a running server, which has its own checkpoint; omit CHECKPOINT"
    )]
    Both {
        /// The address.
        address: Address,
    },
    /// A range of lengths where one batch is measured.
    #[error("{option} {lengths}: without --serve all sequences have one length")]
    Range {
        /// The option.
        option: &'static str,
        /// What it was given.
        lengths: super::Lengths,
    },
    /// Nobody listens.
    #[error("no server answers at http://{address}: {error}")]
    Silent {
        /// The address.
        address: Address,
        /// What the system says.
        error: io::Error,
    },
    /// The key is wrong or missing.
    #[error("the server at http://{address} {}", if *given { "does not accept this key" } else { "requires a key" })]
    Key {
        /// The address.
        address: Address,
        /// Whether it was given one.
        given: bool,
    },
    /// The server has no such path, or not this interface.
    #[error("http://{address}{path} is not OpenAI's interface: {reason}")]
    Interface {
        /// The address.
        address: Address,
        /// The path.
        path: &'static str,
        /// What it answered.
        reason: String,
    },
    /// The server does not have the model.
    #[error("the server at http://{address} has no model {name}")]
    Model {
        /// The address.
        address: Address,
        /// The wanted one.
        name: String,
        /// Those that it has.
        served: Vec<String>,
    },
    /// Requests do not fit the context.
    #[error(
        "prompts of up to {prompt} tokens and {new} new ones exceed the context of {context} tokens"
    )]
    TooLong {
        /// Tokens of the longest prompt.
        prompt: usize,
        /// New tokens after it.
        new: usize,
        /// The context of the model.
        context: usize,
    },
    /// No request of the warm-up or of a load was answered.
    #[error("no request was answered: {first}")]
    Unanswered {
        /// What the first one met.
        first: String,
    },
    /// Ctrl-C.
    #[error("interrupted after {answered} requests")]
    Interrupted {
        /// Requests that were answered by then.
        answered: usize,
    },
    /// The system gives no runtime, or the key is no header.
    #[error("cannot send requests: {0}")]
    Client(io::Error),
}

impl Advise for LoadError {
    fn advice(&self) -> Advice {
        match self {
            Self::Nothing => Advice::USAGE.hint(
                "cargo infer bench CHECKPOINT --serve, or cargo infer bench --serve http://127.0.0.1:8000",
            ),
            Self::Both { .. } => {
                Advice::USAGE.hint("with CHECKPOINT, --serve has no address: it takes a free port")
            }
            Self::Range { .. } => Advice::USAGE.hint("give one number, such as 128"),
            Self::Silent { .. } => Advice::FAILURE
                .hint("start a server, for example cargo infer serve CHECKPOINT, and name its address"),
            Self::Key { .. } => Advice::FAILURE.hint("--api-key-file FILE names the file with the key"),
            Self::Interface { .. } => Advice::FAILURE
                .hint("the address is that of the server alone, without /v1"),
            Self::Model { served, .. } => {
                Advice::USAGE.hint(format!("it serves {}", served.join(", ")))
            }
            Self::TooLong { .. } => Advice::USAGE.hint("lower --prompt-tokens or --new-tokens"),
            Self::Interrupted { .. } => Advice::FAILURE.exit_code(130),
            Self::Unanswered { .. } | Self::Client(_) => Advice::FAILURE,
        }
    }
}
