//! Sums of vectors, one onto another: the step that every transport takes in the order of the ranks.

/// Adds `more` onto `sum`, element by element.
pub(crate) fn add(sum: &mut [f32], more: &[f32]) {
    assert_eq!(sum.len(), more.len());
    for (sum, &more) in sum.iter_mut().zip(more) {
        *sum += more;
    }
}

/// Adds a vector that has come in a message.
#[cfg(feature = "mpi")]
pub(crate) fn add_bytes(sum: &mut [f32], more: &[u8]) {
    assert_eq!(size_of_val(sum), more.len());
    for (sum, more) in sum.iter_mut().zip(more.as_chunks().0) {
        *sum += f32::from_ne_bytes(*more);
    }
}

/// A vector as it goes into a message.
#[cfg(feature = "mpi")]
pub(crate) fn bytes_of(values: &[f32]) -> &[u8] {
    bytemuck::cast_slice(values)
}
