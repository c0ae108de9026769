//! Rank 0, which issues the steps and takes the results.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use burn::tensor::{Tensor, TensorData};

use super::Ranks;
use super::group::encoded;
use super::stage::Stage;
use super::step::{Captions, Edit, Reply, Routed, Seen, Step};
use crate::batch::Sequence;
use crate::cache::KeyValueCache;
use crate::captions::Captioned;
use crate::config::ModelConfig;
use crate::language_model::{LanguageModel, ModelOutput, Trace, VisionTrace};
use crate::moe::Routing;
use crate::moe::loads::ExpertLoads;
use crate::network::{
    BatchSums, Batches, CaptionNats, Network, PaddedRows, Part, PictureWeights, Session,
};
use crate::sampling::Drawn;
use crate::timeline::Span;
use crate::vision::{Picture, PictureKeys};
use firebox_kernels::dispatch::DispatchPlan;

/// Many ranks that hold a model together, seen from the first one. The others [`serve`](super::serve) until the first one
/// [dismisses](dismiss) them.
///
/// A step goes from stage to stage, and the first rank does its own part of it before [`submit`](Network::submit) returns.
/// Whatever depends on time or on what was drawn before is decided here alone.
#[derive(Debug)]
pub struct Driver<'a> {
    stage: Stage<'a>,
    /// Changes of the cache that the other ranks do not know of yet.
    edits: Vec<Edit>,
    /// The pictures that the other ranks know, by their numbers.
    pictures: Vec<(u64, Weak<PictureKeys>)>,
    /// The number of the next ones.
    next_pictures: u64,
    /// For each step whose result was not asked for, what the first stage has told.
    own: VecDeque<Option<Reply>>,
    /// Numbers of targets that count in the batches whose sums were not asked for.
    counts: VecDeque<u64>,
    /// The captions whose nats were not asked for.
    captions: VecDeque<Vec<Captioned>>,
}

/// Tells the other ranks, which [`serve`](super::serve), that there is nothing more to do.
///
/// # Panics
///
/// When this is not the first rank, or a message fails: see [`TensorGroup`](super::TensorGroup).
pub fn dismiss(ranks: &Ranks) {
    assert!(ranks.is_first(), "only rank 0 issues steps");
    ranks.pass_on(&encoded(&Step::End));
}

impl<'a> Driver<'a> {
    /// The first rank with its part of the model, among its ranks.
    ///
    /// # Panics
    ///
    /// When this is not the first rank. Here and in every method: when a message fails, see
    /// [`TensorGroup`](super::TensorGroup).
    pub fn new(model: &'a LanguageModel, ranks: &'a Ranks) -> Self {
        assert!(ranks.is_first(), "only rank 0 issues steps");
        Self {
            stage: Stage::new(model, ranks),
            edits: Vec::new(),
            pictures: Vec::new(),
            next_pictures: 0,
            own: VecDeque::new(),
            counts: VecDeque::new(),
            captions: VecDeque::new(),
        }
    }

    /// Begins a step on all ranks.
    fn start(&mut self, step: &Step) {
        self.stage.ranks.pass_on(&encoded(step));
    }

    /// Begins a step on all ranks, and does this rank's part.
    fn run(&mut self, step: &Step) {
        self.start(step);
        let reply = self.stage.run(step);
        self.own.push_back(reply);
    }

    /// The replies of all stages to the oldest step whose result has not been taken, from the first stage to the last.
    fn replies(&mut self) -> impl Iterator<Item = Reply> {
        let own = self.own.pop_front().expect("a step that was submitted");
        let ranks = self.stage.ranks;
        let later = (1..ranks.layout().pipeline).map(|stage| ranks.reply_of(stage));
        own.into_iter().chain(later)
    }

    /// The replies of all stages to a step that computes nothing, while steps of a cache may be under way.
    fn ask(&mut self, step: &Step) -> Vec<Reply> {
        // The last stage replies to those first.
        for place in 0..self.own.len() {
            if self.own[place].is_none() {
                self.own[place] = Some(self.last_reply());
            }
        }
        self.start(step);
        let own = self.stage.run(step);
        let later = (1..self.stages()).map(|stage| self.stage.ranks.reply_of(stage));
        own.into_iter().chain(later).collect()
    }

    /// The reply of the last stage to the oldest step to which it has not been taken.
    fn last_reply(&self) -> Reply {
        self.stage.ranks.reply_of(self.stages() - 1)
    }

    /// Changes the cache here, and later on the other ranks.
    fn edit(&mut self, edit: Edit) {
        self.stage.edit(&edit);
        self.edits.push(edit);
    }

    /// The number by which the other ranks know pictures, which they are told of where they do not.
    fn number(&mut self, pictures: &Arc<PictureKeys>) -> u64 {
        let mut known = self.pictures.iter();
        let known = known.find(|(_, known)| std::ptr::eq(known.as_ptr(), Arc::as_ptr(pictures)));
        if let Some((number, _)) = known {
            return *number;
        }
        let number = self.next_pictures;
        self.next_pictures += 1;
        self.pictures.push((number, Arc::downgrade(pictures)));
        self.edits.push(Edit::Look {
            number,
            pictures: pictures.pictures.clone(),
        });
        number
    }

    /// Has the other ranks forget the pictures that nobody here has any more.
    fn forget_pictures(&mut self) {
        let edits = &mut self.edits;
        self.pictures.retain(|&(number, ref pictures)| {
            let needed = pictures.strong_count() > 0;
            if !needed {
                edits.push(Edit::Forget { number });
            }
            needed
        });
    }

    fn tensor<const D: usize>(&self, values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values, shape), &self.stage.model.device())
    }

    fn routing(&self, routed: Routed) -> Routing {
        let moe = self.config().moe.as_ref().expect("routers of a mixture");
        let (experts, top_k) = (moe.experts.count, moe.experts.top_k);
        let tokens = routed.chosen.len() / top_k;
        let device = self.stage.model.device();
        Routing {
            layer: routed.layer,
            scores: moe.router.scores,
            logits: self.tensor(routed.logits, [tokens, experts]),
            probabilities: self.tensor(routed.probabilities, [tokens, experts]),
            plan: DispatchPlan::new(&routed.chosen, experts, top_k, &device),
        }
    }
}

impl Batches for Driver<'_> {
    fn stages(&self) -> usize {
        self.stage.ranks.layout().pipeline
    }

    fn submit_batch(&mut self, sequences: &[Sequence]) {
        let counts = sequences.iter().map(|sequence| sequence.valid as u64);
        self.counts.push_back(counts.sum());
        self.run(&Step::Batch(sequences.into()));
    }

    fn sums(&mut self) -> BatchSums {
        let mut sums = BatchSums {
            nats: 0.0,
            tokens: self.counts.pop_front().expect("a batch that was submitted"),
            layers: Vec::new(),
            health: Vec::new(),
        };
        for reply in self.replies() {
            let Reply::Sums {
                nats,
                layers,
                health,
            } = reply
            else {
                panic!("{reply:?} of a batch");
            };
            sums.nats = nats.unwrap_or(sums.nats);
            sums.layers.extend(layers);
            sums.health.extend(health);
        }
        sums
    }
}

impl Network for Driver<'_> {
    fn config(&self) -> &ModelConfig {
        self.stage.model.config()
    }

    fn begin(&mut self, session: Session) {
        // What the other ranks know of pictures stays.
        self.edits
            .retain(|edit| matches!(edit, Edit::Look { .. } | Edit::Forget { .. }));
        let step = Step::Begin(session);
        self.start(&step);
        self.stage.run(&step);
    }

    fn cache(&self) -> &KeyValueCache {
        &self.stage.cache
    }

    fn truncate(&mut self, sequence: usize, length: usize) {
        // Usually nothing changes, and nothing needs to be sent.
        if self.cache().lengths()[sequence] != length {
            self.edit(Edit::Truncate { sequence, length });
        }
    }

    fn fork(&mut self, from: usize, length: usize, to: usize) {
        self.edit(Edit::Fork { from, length, to });
    }

    fn look(&mut self, pictures: &[Picture]) -> PictureKeys {
        self.stage.model.look(pictures)
    }

    fn show(&mut self, sequence: usize, pictures: Option<&Arc<PictureKeys>>) {
        let before = self.cache().shown(sequence).map(Arc::as_ptr);
        if before == pictures.map(Arc::as_ptr) {
            return;
        }
        self.stage.cache.show(sequence, pictures);
        let number = pictures.map(|pictures| self.number(pictures));
        self.edits.push(Edit::Show { sequence, number });
    }

    fn submit(&mut self, parts: &[Part]) {
        let stripped = parts.iter().map(|part| Part {
            sequence: part.sequence,
            tokens: part.tokens.as_ref().into(),
            asked: part.asked.stripped(),
        });
        let stripped: Vec<Part> = stripped.collect();
        self.forget_pictures();
        let edits = std::mem::take(&mut self.edits);
        self.start(&Step::Decode {
            edits: edits.into(),
            parts: stripped.as_slice().into(),
        });
        // The changes of the cache are done here.
        let reply = self.stage.decode(&stripped);
        self.own.push_back(reply);
    }

    fn drawn(&mut self) -> Vec<Drawn> {
        let own = self.own.pop_front().expect("a step that was submitted");
        match own.unwrap_or_else(|| self.last_reply()) {
            Reply::Drawn(drawn) => drawn,
            other => panic!("{other:?} of a step of a cache"),
        }
    }

    fn expert_loads(&mut self) -> Vec<ExpertLoads> {
        let of_stages = self.ask(&Step::ExpertLoads).into_iter();
        let loads = of_stages.map(|reply| match reply {
            Reply::ExpertLoads(loads) => loads,
            other => panic!("{other:?} of the loads of experts"),
        });
        loads.flatten().collect()
    }

    fn record(&mut self) {
        self.start(&Step::Record);
        self.stage.run(&Step::Record);
    }

    fn spans(&mut self) -> Vec<Span> {
        let of_stages = self.ask(&Step::Spans).into_iter();
        let spans = of_stages.map(|reply| match reply {
            Reply::Spans(spans) => spans,
            other => panic!("{other:?} of what was recorded"),
        });
        spans.flatten().collect()
    }

    fn submit_captions(&mut self, captions: &[Captioned]) {
        self.start(&Step::Captions(Captions::new(captions)));
        let reply = self.stage.captions(captions);
        self.own.push_back(reply);
        self.captions.push_back(captions.to_vec());
    }

    fn caption_nats(&mut self) -> CaptionNats {
        let captions = self.captions.pop_front();
        let captions = captions.expect("captions that were submitted");
        let (mut of_targets, mut all_layers, mut all_health) = (None, Vec::new(), Vec::new());
        for reply in self.replies() {
            let Reply::Captions {
                nats,
                layers,
                health,
            } = reply
            else {
                panic!("{reply:?} of captions");
            };
            of_targets = of_targets.or(nats);
            all_layers.extend(layers);
            all_health.extend(health);
        }
        let nats = of_targets.expect("the nats of the last stage");
        CaptionNats::of_pass(&captions, &nats, all_layers, all_health)
    }

    fn attention_to_pictures(&mut self, captions: &[Captioned]) -> Vec<PictureWeights> {
        self.start(&Step::Attention(Captions::new(captions)));
        let reply = self.stage.attention(captions);
        self.own.push_back(reply);
        let weights = self.replies().map(|reply| match reply {
            Reply::Attention(weights) => weights,
            other => panic!("{other:?} of the attention to pictures"),
        });
        weights.flatten().collect()
    }

    fn trace(&mut self, rows: PaddedRows) -> Trace {
        self.run(&Step::Trace {
            ids: rows.ids.into(),
            valid: rows.valid.into(),
            length: rows.length,
            pictures: rows.pictures.map(Cow::Borrowed),
        });
        let [batch, sequence] = rows.shape();
        let (d_model, vocab_size) = (self.config().d_model, self.config().vocab_size);
        let (mut hidden, mut routing, mut of_logits) = (Vec::new(), Vec::new(), None);
        let mut seen = None;
        let replies: Vec<Reply> = self.replies().collect();
        for reply in replies {
            let Reply::Trace {
                hidden: of_stage,
                routing: routed,
                logits,
                vision,
            } = reply
            else {
                panic!("{reply:?} of a trace");
            };
            let of_stage = of_stage.into_iter();
            hidden.extend(of_stage.map(|values| self.tensor(values, [batch, sequence, d_model])));
            routing.extend(routed.into_iter().map(|routed| self.routing(routed)));
            of_logits = of_logits.or(logits);
            // Each stage that has the tower computes the same.
            seen = seen.or(vision);
        }
        let logits = of_logits.expect("logits of the last stage");
        Trace {
            hidden,
            output: ModelOutput {
                logits: self.tensor(logits, [batch, sequence, vocab_size]),
                routing,
            },
            vision: seen.map(|Seen { parts, states }| {
                let parts = parts.into_iter();
                VisionTrace {
                    parts: parts
                        .map(|(part, shape, values)| (part, self.tensor(values, shape)))
                        .collect(),
                    states: self.tensor(states.1, states.0),
                }
            }),
        }
    }
}
