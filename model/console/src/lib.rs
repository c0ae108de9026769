//! What Firebox's binaries need around their work: the log, errors as one sentence with a hint and an exit code,
//! numbers, tables, progress and HTML pages for people; files written whole; processes of their own. Nothing here
//! knows a model or a device.
//!
//! ```
//! use firebox_console::numbers::{grouped, scaled};
//!
//! assert_eq!(grouped(1_831u32), "1,831");
//! assert_eq!(scaled(1.83e12), "1.83 T");
//! ```

pub mod advice;
pub mod durable;
pub mod numbers;
pub mod panics;
pub mod process;
pub mod progress;
pub mod report;
pub mod terminal;
