//! Memory that a kernel writes without filling it with zeros first.

use std::mem::MaybeUninit;

/// A vector of values that `fill` writes.
///
/// # Safety
///
/// `fill` must write every value.
#[allow(unsafe_code)]
pub unsafe fn vec_uninit_with(
    length: usize,
    fill: impl FnOnce(&mut [MaybeUninit<f32>]),
) -> Vec<f32> {
    // SAFETY: the caller's promise.
    let [values] = unsafe { vecs_uninit_with([length], |[values]| fill(values)) };
    values
}

/// Several vectors of values that `fill` writes together.
///
/// # Safety
///
/// `fill` must write every value of each.
#[allow(unsafe_code)]
pub unsafe fn vecs_uninit_with<const N: usize>(
    lengths: [usize; N],
    fill: impl FnOnce([&mut [MaybeUninit<f32>]; N]),
) -> [Vec<f32>; N] {
    let mut vectors = lengths.map(Vec::with_capacity);
    let mut sizes = lengths.into_iter();
    fill(vectors.each_mut().map(|vector| {
        let length = sizes.next().expect("a length for each vector");
        &mut vector.spare_capacity_mut()[..length]
    }));
    for (vector, length) in vectors.iter_mut().zip(lengths) {
        // SAFETY: the vector has the capacity, and the caller promises that all values are written.
        unsafe { vector.set_len(length) };
    }
    vectors
}

/// `length` values at the end of an empty scratch vector, which keeps its capacity for the next time, so that it is
/// neither filled with zeros nor allocated anew.
pub fn uninit(scratch: &mut Vec<f32>, length: usize) -> &mut [MaybeUninit<f32>] {
    scratch.reserve(length);
    &mut scratch.spare_capacity_mut()[..length]
}

/// Zeros in all places.
pub fn zeros(places: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    places.fill(MaybeUninit::new(0.0));
    // SAFETY: each value was written just now.
    #[allow(unsafe_code)]
    unsafe {
        places.assume_init_mut()
    }
}
