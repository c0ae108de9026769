//! The sum of vectors, the same for every transport.

/// Adds `more` onto `sum`, element by element. It stays a function of its own so that every transport runs the same
/// instructions.
#[inline(never)]
pub(crate) fn add(sum: &mut [f32], more: &[f32]) {
    assert_eq!(sum.len(), more.len());
    for (sum, &more) in sum.iter_mut().zip(more) {
        *sum += more;
    }
}
