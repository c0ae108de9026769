//! Cross-entropy of logits that lie on several ranks, each with a part of the vocabulary.

use burn::tensor::{DType, Int, Tensor};

use super::TensorGroup;
use super::group::within;
use crate::sampling::Exchange;

/// What a rank tells the others of a row: its largest logit, the sum of `exp(logit − largest)`, and the target's logit, 0 if
/// that is another rank's. A NaN among the logits makes the sum NaN, and so the loss on every rank: no maximum over ranks has
/// to carry it.
type Terms = (f32, f32, f32);

/// The sum over the targets that count of `−ln p(target)` in nats, the same on every rank.
///
/// # Shapes
///
/// - `logits`: `[tokens, token ids of this rank]`, of the ids from `first` on
/// - `targets`: `[tokens]`
/// - `counted`: `[tokens]`, 1 for a target that counts and 0 for padding; `None` if all count
pub(super) fn cross_entropy_sum(
    logits: Tensor<2>,
    targets: Tensor<1, Int>,
    counted: Option<&Tensor<1>>,
    first: usize,
    exchange: &mut impl Exchange,
) -> f32 {
    let counted: Option<Vec<f32>> = counted.map(|flags| flags.to_data().iter::<f32>().collect());
    let rows = target_nats(logits, targets, first, exchange);
    let nats = rows.into_iter().enumerate();
    let nats = nats.map(|(row, nats)| match &counted {
        Some(counted) if counted[row] == 0.0 => 0.0,
        _ => nats,
    });
    nats.sum::<f64>() as f32
}

/// The same as a tensor with a gradient, `[1]`, for training. No rank has all logits, nor their gradient: the ranks tell each
/// other the largest of a row, and the sum of `exp(logit − largest)`.
///
/// # Shapes
///
/// As of [`cross_entropy_sum`].
pub(crate) fn divided_cross_entropy_sum(
    logits: Tensor<2>,
    targets: Tensor<1, Int>,
    counted: Option<&Tensor<1>>,
    first: usize,
    group: &TensorGroup,
) -> Tensor<1> {
    let logits = logits.cast(DType::F32);
    let [_, own] = logits.dims();
    // The loss does not depend on it.
    let largest = logits.clone().detach().max_dim(1).clamp_min(f32::MIN);
    let largest = group.gather_columns(largest).max_dim(1);
    let sum = (logits.clone() - largest.clone()).exp().sum_dim(1);
    let (places, elsewhere) = within(targets, first, own);
    let of_target = logits.gather(1, places.unsqueeze_dim::<2>(1));
    let of_target = of_target.mask_fill(elsewhere.unsqueeze_dim(1), 0.0);
    let sums = group.sum(Tensor::cat(vec![sum, of_target], 1));
    let nats = sums.clone().narrow(1, 0, 1).log() + largest - sums.narrow(1, 1, 1);
    let nats = nats.squeeze_dim::<1>(1);
    match counted {
        Some(counted) => nats.mask_fill(counted.clone().equal_elem(0.0), 0.0),
        None => nats,
    }
    .sum()
}

/// `−ln p(target)` of each row in nats, the same on every rank.
///
/// # Shapes
///
/// - `logits`: `[tokens, token ids of this rank]`, of the ids from `first` on
/// - `targets`: `[tokens]`
/// - output: as many as tokens
pub(crate) fn target_nats(
    logits: Tensor<2>,
    targets: Tensor<1, Int>,
    first: usize,
    exchange: &mut impl Exchange,
) -> Vec<f64> {
    let of_ranks = exchange.all(terms(logits.cast(DType::F32), targets, first));
    let rows = 0..of_ranks[0].len();
    rows.map(|row| negative_log_likelihood(of_ranks.iter().map(|terms| terms[row])))
        .collect()
}

fn terms(logits: Tensor<2>, targets: Tensor<1, Int>, first: usize) -> Vec<Terms> {
    let [_, own] = logits.dims();
    // A part of nothing but minus infinity sums up to 0.
    let largest = logits.clone().max_dim(1).clamp_min(f32::MIN);
    let sum = (logits.clone() - largest.clone()).exp().sum_dim(1);
    let (places, elsewhere) = within(targets, first, own);
    let of_target = logits.gather(1, places.unsqueeze_dim::<2>(1));
    let of_target = of_target.mask_fill(elsewhere.unsqueeze_dim(1), 0.0);
    let read = Tensor::cat(vec![largest, sum, of_target], 1).into_data();
    let values: Vec<f32> = read.iter::<f32>().collect();
    let rows = values.as_chunks::<3>().0.iter();
    rows.map(|&[largest, sum, of_target]| (largest, sum, of_target))
        .collect()
}

/// `−ln p(target)` of a row, from the terms of all ranks.
fn negative_log_likelihood(terms: impl Iterator<Item = Terms> + Clone) -> f64 {
    let largest = terms.clone().map(|terms| terms.0).fold(f32::MIN, f32::max);
    let largest = f64::from(largest);
    let (mut sum, mut of_target) = (0.0, 0.0);
    for (own, of_rank, target) in terms {
        sum += f64::from(of_rank) * (f64::from(own) - largest).exp();
        of_target += f64::from(target);
    }
    sum.ln() + largest - of_target
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};
    use firebox_comm::{CommError, Options, threads};
    use firebox_runtime::device::{default_name, select};
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, values, wave};

    use super::*;
    use crate::loss;
    use crate::parallel::share;

    on_every_device!(
        parts_of_the_vocabulary_give_the_loss_of_the_whole,
        parts_of_the_vocabulary_give_the_gradient_of_the_whole,
    );

    /// Replays the other ranks' messages.
    struct Said(Vec<Vec<Terms>>);

    impl Exchange for Said {
        fn ranks(&self) -> usize {
            self.0.len()
        }

        fn all<T: serde::Serialize + serde::de::DeserializeOwned>(&mut self, _: T) -> Vec<T> {
            let bytes = postcard::to_allocvec(&self.0).unwrap();
            postcard::from_bytes(&bytes).unwrap()
        }
    }

    /// The loss that each rank finds.
    fn by_rank(
        logits: &Tensor<2>,
        targets: &Tensor<1, Int>,
        counted: Option<&Tensor<1>>,
        cuts: &[usize],
    ) -> Vec<f32> {
        let part = |cut: &[usize]| logits.clone().narrow(1, cut[0], cut[1] - cut[0]);
        let said = cuts.windows(2);
        let said: Vec<_> = said
            .map(|cut| terms(part(cut), targets.clone(), cut[0]))
            .collect();
        let found = cuts.windows(2).map(|cut| {
            let said = &mut Said(said.clone());
            cross_entropy_sum(part(cut), targets.clone(), counted, cut[0], said)
        });
        found.collect()
    }

    fn parts_of_the_vocabulary_give_the_loss_of_the_whole(device: Device) {
        let logits = wave([9, 37], 0.37, &device).mul_scalar(6.0);
        let targets = Tensor::<1, Int>::from_ints([0, 36, 12, 13, 5, 20, 29, 1, 11], &device);
        let counted = [1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0];
        let counted = Tensor::<1>::from_floats(counted, &device);
        for counted in [None, Some(&counted)] {
            let whole = loss::cross_entropy_sum(logits.clone(), targets.clone(), counted);
            let whole = values(whole)[0];
            for cuts in [&[0, 37][..], &[0, 13, 37], &[0, 1, 12, 13, 36, 37]] {
                for found in by_rank(&logits, &targets, counted, cuts) {
                    assert!(
                        (found / whole - 1.0).abs() < 1e-6,
                        "{found}, {whole}, {cuts:?}"
                    );
                }
            }
        }
    }

    fn parts_of_the_vocabulary_give_the_gradient_of_the_whole(device: Device) {
        let device = device.autodiff();
        let logits = wave([9, 37], 0.37, &device).mul_scalar(6.0).detach();
        let targets = Tensor::<1, Int>::from_ints([0, 36, 12, 13, 5, 20, 29, 1, 11], &device);
        let counted = [1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0];
        let counted = Tensor::<1>::from_floats(counted, &device);
        let found = |logits: &Tensor<2>, loss: Tensor<1>| {
            let gradients = loss.clone().mul_scalar(0.5).backward();
            (values(loss), logits.grad(&gradients).expect("a gradient"))
        };
        let whole = logits.clone().require_grad();
        let loss = loss::cross_entropy_sum(whole.clone(), targets.clone(), Some(&counted));
        let (loss, gradient) = found(&whole, loss);
        let ranks = threads::run(3, &Options::default(), move |comm| {
            let group = TensorGroup::new(comm);
            let own = share(37, 3, group.rank());
            let part = logits.clone().narrow(1, own.start, own.len());
            let part = part.detach().require_grad();
            let (targets, counted) = (targets.clone(), Some(&counted));
            let sum = divided_cross_entropy_sum(part.clone(), targets, counted, own.start, &group);
            Ok::<_, CommError>(found(&part, sum))
        });
        let (losses, gradients): (Vec<_>, Vec<_>) =
            ranks.expect("no rank fails").into_iter().unzip();
        // Languages for GPUs leave exponentials some units in the last place.
        for found in losses {
            assert_close("loss", &found, &loss, 5e-6).unwrap();
        }
        let found = values(Tensor::cat(gradients, 1));
        assert_close("gradient", &found, &values(gradient), 5e-6).unwrap();
    }

    /// On the CPU: languages for GPUs leave open what becomes of a NaN.
    #[test]
    fn what_is_not_finite_on_one_rank_is_told_by_all() {
        let device = select(default_name()).unwrap();
        let with = |value: f32, place: usize| {
            let mut logits = vec![0.5f32; 12];
            logits[place] = value;
            Tensor::from_data(TensorData::new(logits, [2, 6]), &device)
        };
        let targets = Tensor::<1, Int>::from_ints([3, 0], &device);
        for place in [0, 5, 8] {
            let found = by_rank(&with(f32::NAN, place), &targets, None, &[0, 2, 4, 6]);
            assert!(found.iter().all(|nats| nats.is_nan()), "{place}: {found:?}");
            let found = by_rank(&with(f32::INFINITY, place), &targets, None, &[0, 2, 4, 6]);
            assert!(found.iter().all(|nats| !nats.is_finite()), "{found:?}");
        }
        // All logits of one rank may be −∞.
        let nothing = f32::NEG_INFINITY;
        let logits = [1.0, 1.0, nothing, nothing, 1.0, 1.0];
        let logits = Tensor::from_floats([logits, logits], &device);
        let targets = Tensor::<1, Int>::from_ints([0, 5], &device);
        for found in by_rank(&logits, &targets, None, &[0, 2, 4, 6]) {
            assert!((found - 2.0 * 4f32.ln()).abs() < 1e-6, "{found}");
        }
    }
}
