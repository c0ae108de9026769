//! Panics as messages.
//!
//! A binary puts all its work into [`caught`] and reports what comes out; [`install_hook`] keeps the default
//! report from being printed too.

use std::any::Any;
use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};

/// Does `work`, and turns a panic into its message.
///
/// # Errors
///
/// The message of the panic, and its location where [`install_hook`] was called.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        let message = text(payload.as_ref());
        match LOCATION.take() {
            // Burn raises panics again on other threads, with their causes; the new location is not informative.
            Some(location) if !message.contains("Caused by:") => format!("{message} ({location})"),
            _ => message,
        }
    })
}

fn text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|&text| text.to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panicked without a message".to_owned())
}

thread_local! {
    /// Where this thread last panicked.
    static LOCATION: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Sends the messages of panics to the log, at the level `debug`, in place of standard error. This is set for the
/// whole process, so only binaries may call it.
pub fn install_hook() {
    set_hook(Box::new(|panic| {
        tracing::debug!("{panic}\n{}", Backtrace::capture());
        let location = panic.location().map(ToString::to_string);
        // The thread-local value of a thread that is ending is gone already.
        let _ = LOCATION.try_with(|last| last.replace(location));
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_its_message() {
        assert_eq!(caught(|| 3), Ok(3));
        assert_eq!(
            caught(|| panic!("no {}", 5)),
            Err::<(), _>("no 5".to_owned())
        );
        let silent = caught(|| std::panic::panic_any(5));
        assert_eq!(
            silent,
            Err::<(), _>("panicked without a message".to_owned())
        );
    }
}
