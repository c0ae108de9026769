//! Memory that ends in a sentence.
//!
//! Where an allocation fails, Rust prints a line and aborts; no error can be returned, for whoever asked does not
//! expect one. [`Reporting`] says instead what was being computed and what to do, and ends the process with exit
//! code 1. (Linux often grants what it does not have, and later kills the process: then nothing can be said.)

use std::alloc::{GlobalAlloc, Layout};
use std::io::Write;
use std::sync::OnceLock;

use crate::control::Control;

/// What a process computes, for an error that must not allocate.
#[derive(Debug)]
struct Work {
    device: String,
    less: &'static str,
    control: Control,
}

static WORK: OnceLock<Work> = OnceLock::new();

/// Says on which device this process computes and how it can do with less memory; `control` knows the step of a
/// training. The first call counts. This is set for the whole process, so only binaries may call it.
pub fn describe(device: &str, less: &'static str, control: &Control) {
    // A process has one command.
    _ = WORK.set(Work {
        device: device.to_owned(),
        less,
        control: control.clone(),
    });
}

/// An allocator whose failures end the process in a sentence.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reporting<A>(pub A);

impl<A> Reporting<A> {
    fn checked(&self, pointer: *mut u8, bytes: usize) -> *mut u8 {
        if pointer.is_null() {
            out_of_memory(bytes);
        }
        pointer
    }
}

// SAFETY: every call goes to the inner allocator as it came.
#[allow(unsafe_code)]
unsafe impl<A: GlobalAlloc> GlobalAlloc for Reporting<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        self.checked(unsafe { self.0.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        self.checked(unsafe { self.0.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        self.checked(unsafe { self.0.realloc(pointer, layout, size) }, size)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { self.0.dealloc(pointer, layout) }
    }
}

/// Formatting into standard error, which has no buffer, takes no memory.
#[cold]
fn out_of_memory(bytes: usize) -> ! {
    let mut output = std::io::stderr().lock();
    let mebibytes = bytes.div_ceil(1 << 20);
    // Where not even this can be said, the exit code is left.
    let work = WORK.get();
    let _ = match work.map(|work| (&work.device, work.control.step())) {
        Some((device, None)) => write!(output, "error: {device} "),
        Some((device, Some(step))) => write!(output, "error: step {step}: {device} "),
        None => write!(output, "error: the process "),
    };
    let _ = writeln!(
        output,
        "ran out of memory: could not allocate {mebibytes} MiB"
    );
    let _ = match work {
        Some(Work { less, .. }) => writeln!(output, "hint: {less}"),
        None => Ok(()),
    };
    std::process::exit(1);
}

#[cfg(test)]
mod tests {
    use std::alloc::System;

    use super::*;

    #[test]
    fn what_there_is_is_given() {
        let layout = Layout::array::<u64>(8).unwrap();
        let allocator = Reporting(System);
        // SAFETY: the layout is of 64 bytes, and the pointer is given back with what it was got with.
        #[allow(unsafe_code)]
        unsafe {
            let zeros = allocator.alloc_zeroed(layout).cast::<u64>();
            assert_eq!(*zeros.add(7), 0);
            *zeros.add(7) = 5;
            let more = allocator
                .realloc(zeros.cast(), layout, 1 << 20)
                .cast::<u64>();
            assert_eq!(*more.add(7), 5);
            allocator.dealloc(more.cast(), Layout::from_size_align(1 << 20, 8).unwrap());
        }
    }
}
