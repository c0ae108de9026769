//! What a step trains on, row by row: windows of text, or captions behind their pictures, with windows of text among them.

use burn::tensor::Device;
use firebox_model::batch::{Batch, Sequence};
use firebox_model::captions::Captioned;
use firebox_model::language_model::LanguageModel;

use crate::config::RunConfig;
use crate::data::{CaptionStream, DataError, Prepared, TrainingStream};
use crate::error::TrainError;
use crate::step::{StepResult, TrainingState};

/// A row of a batch.
pub trait Row: Sized + Send {
    /// Number of targets that are to be learned.
    fn targets(&self) -> u64;

    /// A row like this one without targets.
    fn padding(&self) -> Self;

    /// Puts rows on a device, which is the model's. What the model makes of their pictures is part of the batch, with its
    /// gradient.
    fn batch(rows: &[Self], model: &LanguageModel, device: &Device) -> Batch;
}

impl Row for Sequence {
    fn targets(&self) -> u64 {
        self.valid as u64
    }

    fn padding(&self) -> Self {
        Self {
            valid: 0,
            ..self.clone()
        }
    }

    fn batch(rows: &[Self], _model: &LanguageModel, device: &Device) -> Batch {
        Batch::new(rows, device)
    }
}

impl Row for Captioned {
    fn targets(&self) -> u64 {
        Self::targets(self)
    }

    fn padding(&self) -> Self {
        Self {
            sequence: self.sequence.padding(),
            ..self.clone()
        }
    }

    fn batch(rows: &[Self], model: &LanguageModel, _: &Device) -> Batch {
        Self::batch(rows, model)
    }
}

/// The rows of a run, with random access from any thread.
pub trait Stream: Sync {
    /// Its rows.
    type Row: Row;

    /// The row that a run sees at `index`.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    fn row(&self, index: u64) -> Result<Self::Row, DataError>;
}

impl Stream for TrainingStream {
    type Row = Sequence;

    fn row(&self, index: u64) -> Result<Sequence, DataError> {
        self.sequence(index)
    }
}

impl Stream for CaptionStream {
    type Row = Captioned;

    fn row(&self, index: u64) -> Result<Captioned, DataError> {
        self.captioned(index)
    }
}

/// The rows of any run.
#[derive(Debug, Clone)]
pub enum Rows {
    /// Of a model of text alone.
    Text(TrainingStream),
    /// Of a model that sees pictures.
    Captions(CaptionStream),
}

impl Rows {
    /// The rows of a run of prepared data, whose configuration has the size of the vocabulary.
    ///
    /// # Errors
    ///
    /// When there are fewer than the run needs.
    pub fn of(prepared: &Prepared, config: &RunConfig) -> Result<Self, DataError> {
        let needed = config.sequences();
        Ok(match config.model.vision {
            Some(_) => Self::Captions(prepared.caption_stream(config, needed)?),
            None => {
                let context = config.model.context_length;
                Self::Text(prepared.training_stream(context, config.train.seed, needed)?)
            }
        })
    }

    /// Number of rows; `None` if the sources repeat without end.
    pub fn count(&self) -> Option<u64> {
        match self {
            Self::Text(stream) => stream.sequences(),
            Self::Captions(stream) => stream.rows(),
        }
    }

    /// See [`TrainingState::step`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn step(
        &self,
        training: TrainingState,
        config: &RunConfig,
    ) -> Result<(TrainingState, StepResult), TrainError> {
        match self {
            Self::Text(stream) => training.step(config, stream),
            Self::Captions(stream) => training.step(config, stream),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Param;
    use burn::tensor::Tensor;
    use firebox_model::parameters::{MapParameter, VisitParameter, map, visit};

    use super::*;
    use crate::config::Frozen;
    use crate::data::prepare;
    use crate::learned::Learned;
    use crate::looking::{self, HeldOutLoss};
    use crate::optimizer::Optimizer;
    use crate::ranks::Team;
    use crate::state::Progress;
    use crate::testing::{SmallRun, bits, default_device};

    fn start(config: &RunConfig, prepared: &Prepared, frozen: Frozen) -> (TrainingState, Rows) {
        let rows = Rows::of(prepared, config).unwrap();
        let device = default_device();
        let model = LanguageModel::random(&config.model, 7, &device);
        let learned = Learned::of(&config.model, Some(frozen));
        let alone = Team::default();
        let optimizer = Optimizer::new(&config.model, config.optimizer.muon, learned, &alone);
        let training = TrainingState::new(model, optimizer, Progress::default(), &device);
        (training, rows)
    }

    fn steps(
        mut training: TrainingState,
        rows: &Rows,
        config: &RunConfig,
        count: usize,
    ) -> TrainingState {
        for _ in 0..count {
            (training, _) = rows.step(training, config).unwrap();
        }
        training
    }

    #[test]
    fn a_caption_stands_behind_its_picture() {
        let run = SmallRun::seeing();
        let config = run.config(&[]);
        let prepared = prepare(&config, false).unwrap();
        let Rows::Captions(stream) = Rows::of(&prepared, &config).unwrap() else {
            panic!("captions");
        };
        let count = stream.rows().unwrap();
        assert_eq!(count % 10, 0);
        let first = stream.captioned(0).unwrap();
        let valid = first.sequence.valid;
        // The image token is the one after the vocabulary of 257, whose last ends a document.
        assert_eq!(first.sequence.tokens[0], 257);
        assert_eq!(
            first.sequence.targets[..valid - 1],
            first.sequence.tokens[1..valid]
        );
        assert_eq!(first.sequence.targets[valid - 1], 256);
        assert_eq!(first.targets(), valid as u64);
        let picture = first.picture.as_ref().unwrap();
        assert_eq!((picture.arrangement, &picture.used[..]), (1, &[true][..]));
        assert_eq!(picture.pixels.len(), 3 * 16 * 16);
        assert!(picture.pixels.iter().all(|value| value.abs() <= 1.0));
        // The same each time; each picture once an epoch, and moved in another way in the next.
        assert_eq!(stream.captioned(0).unwrap(), first);
        let captions = |epoch: u64| {
            let indices = epoch * count / 10..(epoch + 1) * count / 10;
            let mut rows: Vec<Captioned> = indices
                .map(|index| stream.captioned(index).unwrap())
                .collect();
            rows.sort_by(|a, b| a.sequence.tokens.cmp(&b.sequence.tokens));
            rows
        };
        let (one, two) = (captions(0), captions(1));
        assert!(
            one.iter()
                .zip(&two)
                .all(|(one, two)| one.sequence == two.sequence)
        );
        assert!(
            one.windows(2)
                .all(|pair| pair[0].sequence != pair[1].sequence)
        );
        let moved = one
            .iter()
            .zip(&two)
            .filter(|(one, two)| one.picture != two.picture);
        assert!(moved.count() * 2 > one.len());
    }

    #[test]
    fn gates_of_zero_hide_the_picture_and_then_open() {
        let run = SmallRun::seeing();
        let config = run.config(&[]);
        let prepared = prepare(&config, false).unwrap();
        let (training, rows) = start(&config, &prepared, Frozen::Nothing);
        let parts = prepared.held_out_captions(40, 20).unwrap();
        let evaluate = |training: &TrainingState| {
            let mut done = 0;
            let model = burn::module::Module::valid(&training.model);
            let found = looking::evaluate(&model, &parts, &prepared.tokenizer, |rows| done = rows);
            assert_eq!(done, looking::rows(&parts));
            found
        };
        let (whole, losses) = evaluate(&training);
        assert!(
            (whole.nats_per_token - 257f64.ln()).abs() < 0.1,
            "{whole:?}"
        );
        for HeldOutLoss { loss, .. } in &losses {
            assert_eq!((loss.right, loss.other), (loss.none, Some(loss.none)));
        }
        let training = steps(training, &rows, &config, 6);
        let (_, losses) = evaluate(&training);
        for HeldOutLoss { loss, .. } in &losses {
            assert!(
                Some(loss.right) != loss.other && loss.right != loss.none,
                "{loss:?}"
            );
            assert!(loss.right < whole.nats_per_token - 0.05, "{loss:?}");
        }
    }

    /// The parameters that a backward pass finds gradients of.
    fn gradients(training: &TrainingState, rows: &Rows) -> Vec<String> {
        struct Found(burn::tensor::Gradients, Vec<String>);
        impl VisitParameter for Found {
            fn visit<const D: usize>(&mut self, path: &str, parameter: &Param<Tensor<D>>) {
                if parameter.val().grad(&self.0).is_some() {
                    self.1.push(path.to_owned());
                }
            }
        }
        let Rows::Captions(stream) = rows else {
            panic!("captions");
        };
        let batch = Captioned::batch(&[stream.captioned(0).unwrap()], &training.model);
        let output = training.model.forward_batch(&batch);
        let mut found = Found(output.logits.sum().backward(), Vec::new());
        visit(&training.model, &mut found);
        found.1
    }

    fn trained(training: &TrainingState) -> Vec<String> {
        let parameters = LanguageModel::parameter_list(training.model.config()).into_iter();
        let paths = parameters.map(|parameter| parameter.path);
        let learned = training.optimizer.learned();
        paths.filter(|path| learned.includes(path)).collect()
    }

    #[test]
    fn a_frozen_text_model_stays_as_it_is() {
        for balance in ["bias_update_rate=0.25", "balance=quantile"] {
            frozen_text(&format!("model.router.{balance}"));
        }
    }

    fn frozen_text(balance: &str) {
        let run = SmallRun::seeing();
        let config = run.config(&[balance]);
        let prepared = prepare(&config, false).unwrap();
        let (training, rows) = start(&config, &prepared, Frozen::Text);
        let before = bits(&training.model);
        let bias = training.model.router_bias();
        // What is frozen has no gradient, so that none is computed.
        assert_eq!(gradients(&training, &rows), trained(&training));
        let training = steps(training, &rows, &config, 3);
        assert_eq!(gradients(&training, &rows), trained(&training));
        assert_eq!(training.model.router_bias(), bias);
        let of_vocabulary = 257 * 8;
        let learned = training.optimizer.learned().clone();
        let mut moved = 0;
        for ((path, before), (_, after)) in before.iter().zip(&bits(&training.model)) {
            if path == "embedding" {
                assert_eq!(before[..of_vocabulary], after[..of_vocabulary]);
                assert_ne!(before[of_vocabulary..], after[of_vocabulary..]);
            } else if learned.includes(path) {
                moved += usize::from(before != after);
            } else {
                assert_eq!(before, after, "{path}");
            }
        }
        assert!(moved > 20, "{moved} parameters");
    }

    #[test]
    fn captions_and_text_are_trained_on_together() {
        let run = SmallRun::seeing();
        std::fs::write(run.path("a.txt"), "The cat sat on the mat. ".repeat(20)).unwrap();
        std::fs::write(run.path("b.txt"), "A dog lay on the rug. ".repeat(20)).unwrap();
        let config = run.config(&[&format!(
            "data.source=[{{ name = 'emoji', cargo = 'twemoji-assets', max_bytes = 3000, weight = 1 }}, \
             {{ name = 'texts', files = ['{}'], weight = 1 }}]",
            run.path("*.txt").display()
        )]);
        let prepared = prepare(&config, false).unwrap();
        let (training, rows) = start(&config, &prepared, Frozen::Nothing);
        let Rows::Captions(stream) = &rows else {
            panic!("captions");
        };
        let seen = (0..12).filter(|&index| stream.captioned(index).unwrap().picture.is_some());
        assert_eq!(seen.count(), 6);
        let text = |training: &TrainingState| {
            let windows: Vec<Captioned> = (0..12)
                .map(|index| stream.captioned(index).unwrap())
                .filter(|row| row.picture.is_none())
                .collect();
            let device = default_device().autodiff();
            crate::gradient::forward_backward(&training.model, &windows, 4, &device).loss
        };
        let before = text(&training);
        let training = steps(training, &rows, &config, 8);
        assert!(text(&training) < before - 0.1, "text is learned");
    }

    #[test]
    fn neither_neighbours_nor_the_split_of_a_batch_change_a_row() {
        struct Open;
        impl MapParameter for Open {
            fn map<const D: usize>(&mut self, path: &str, value: Tensor<D>) -> Tensor<D> {
                match path.ends_with("gate") {
                    true => value.full_like(0.5),
                    false => value,
                }
            }
        }
        let run = SmallRun::seeing();
        let config = run.config(&[]);
        let prepared = prepare(&config, false).unwrap();
        let (training, rows) = start(&config, &prepared, Frozen::Nothing);
        let model = map(training.model, &mut Open);
        let Rows::Captions(stream) = rows else {
            panic!("captions");
        };
        let mut some: Vec<Captioned> = (0..4)
            .map(|index| stream.captioned(index).unwrap())
            .collect();
        some[2] = some[2].without_picture();
        let device = default_device().autodiff();
        let loss = |rows: &[Captioned], micro_batch| {
            let found = crate::gradient::forward_backward(&model, rows, micro_batch, &device);
            (found.loss, found.gradient_norm)
        };
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-5 * b.abs(), "{a} {b}");
        let (whole, norm) = loss(&some, 4);
        let targets: Vec<f64> = some.iter().map(|row| row.targets() as f64).collect();
        let alone = some
            .iter()
            .zip(&targets)
            .map(|(row, targets)| loss(std::slice::from_ref(row), 1).0 * targets);
        near(alone.sum::<f64>() / targets.iter().sum::<f64>(), whole);
        for micro_batch in [1, 3] {
            let (loss, split) = loss(&some, micro_batch);
            near(loss, whole);
            near(split, norm);
        }
    }
}
