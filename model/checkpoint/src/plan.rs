//! Maps each parameter to the tensors that store it and the part to read.

use std::collections::{BTreeMap, BTreeSet};

use super::CheckpointError;
use super::families::Family;
use super::layout::{Numbers, Piece, Rule, Spelling, fill};
use super::mismatch::Mismatch;
use super::store::TensorStore;
use firebox_model::config::ModelConfig;
use firebox_model::language_model::LanguageModel;
use firebox_model::parallel::{Shard, Slice};
use firebox_model::parameters::ParameterInfo;

/// Path of the embedding.
pub(crate) const EMBEDDING_PATH: &str = "embedding";

/// What a folder contains.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Files<'a> {
    /// A whole model; with a shard, only that rank's part is read.
    Whole(Option<&'a Shard>),
    /// A rank's tensors, in its shapes.
    OfRank(&'a Shard),
}

/// Which tensors of a folder to read, and into which parameters.
#[derive(Debug)]
pub(crate) struct Plan {
    /// By path; those that the rank has, where a rank reads.
    pub parameters: BTreeMap<String, Planned>,
    /// The tensors of the routers' selection bias, one per MoE layer, of the rank's stage where a rank reads; empty if
    /// there is none.
    pub biases: Vec<String>,
    /// Whether there is a head although it is tied to the embedding.
    pub has_tied_head: bool,
}

/// The tensors of a parameter.
#[derive(Debug)]
pub(crate) struct Planned {
    /// Slice of the full parameter.
    pub held: Slice,
    /// The same slice in the files' coordinates.
    pub part: Slice,
    rule: Rule,
    spelling: Spelling,
    numbers: Numbers,
}

impl Files<'_> {
    /// The rank that reads.
    pub fn shard(&self) -> Option<&Shard> {
        match self {
            Self::Whole(shard) => *shard,
            Self::OfRank(shard) => Some(shard),
        }
    }

    /// Whether they have the tensors of a layer.
    fn have(&self, layer: usize) -> bool {
        match self {
            Self::Whole(_) => true,
            Self::OfRank(shard) => shard.layers().contains(&layer),
        }
    }

    /// What is wanted of a parameter; `None` if nothing is.
    fn wanted(&self, parameter: &ParameterInfo) -> Option<Slice> {
        match self.shard() {
            Some(shard) => shard.slice(parameter),
            None => Some(Slice::whole(parameter.shape.clone())),
        }
    }
}

impl Planned {
    /// Whether each index of its first dimension has a piece of its own.
    pub fn is_stack(&self) -> bool {
        self.rule.is_stack(self.spelling)
    }

    /// Tensors of the unsharded checkpoint to read, each with its slice.
    pub fn tensors(&self) -> Vec<(String, Slice)> {
        self.rule
            .tensors(self.spelling, self.numbers.layer, &self.held)
    }

    /// One of its pieces; of a stack, the one of this index of what the files have.
    pub fn piece(&self, index: usize) -> Piece {
        self.rule
            .piece(self.spelling, self.numbers, self.part.of(), index)
    }
}

impl Plan {
    /// Compares all names and shapes: each parameter has its tensors, and each tensor its parameter.
    ///
    /// # Errors
    ///
    /// When they do not match.
    pub fn new(
        store: &TensorStore,
        config: &ModelConfig,
        family: &Family,
        files: Files<'_>,
    ) -> Result<Self, CheckpointError> {
        // A size beyond what these files can contain would make the list of parameters unboundedly long.
        let tensors = store.tensors().count();
        let layers = match files {
            Files::Whole(_) => config.layers.len(),
            Files::OfRank(shard) => shard.layers().len(),
        };
        if layers > tensors {
            return Err(CheckpointError::Mismatch {
                place: store.folder().to_owned(),
                differences: format!(
                    "config.json has {layers} layers, but the files contain only {tensors} tensors"
                ),
            });
        }
        let mut search = Search {
            store,
            family,
            tied: config.tied_embeddings,
            tensors,
            mismatch: Mismatch::default(),
            read: BTreeMap::new(),
        };
        let mut parameters = BTreeMap::new();
        for parameter in LanguageModel::parameter_list(config) {
            let held = files.wanted(&parameter);
            let (stored, first_expert) = match (files, &held) {
                (Files::Whole(_), _) => (parameter.shape.clone(), 0),
                (Files::OfRank(_), None) => continue,
                (Files::OfRank(_), Some(held)) => {
                    let first = held.ranges()[0].first().map_or(0, |range| range.start);
                    (held.shape(), first)
                }
            };
            let found = search.find(&parameter.path, &stored, first_expert);
            if let (Some((rule, spelling, numbers)), Some(held)) = (found, held) {
                let part = match files {
                    Files::Whole(_) => held.clone(),
                    Files::OfRank(_) => Slice::whole(stored),
                };
                let planned = Planned {
                    held,
                    part,
                    rule,
                    spelling,
                    numbers,
                };
                parameters.insert(parameter.path, planned);
            }
        }
        let biases = search.biases(config, files);
        let has_tied_head = search.has_tied_head(config);
        search.check_superfluous(config.layers.len());
        search.mismatch.check(store.folder())?;
        Ok(Self {
            parameters,
            biases,
            has_tied_head,
        })
    }
}

/// The comparison of parameters and tensors.
struct Search<'a> {
    store: &'a TensorStore,
    family: &'a Family,
    tied: bool,
    tensors: usize,
    mismatch: Mismatch,
    /// How many values of each tensor belong to a parameter.
    read: BTreeMap<String, usize>,
}

impl Search<'_> {
    /// Where the files have a parameter, or a part of it, of this shape.
    fn find(
        &mut self,
        path: &str,
        shape: &[usize],
        first_expert: usize,
    ) -> Option<(Rule, Spelling, Numbers)> {
        let store = self.store;
        let Some((rule, layer)) = store.dialect().rule(self.family, path) else {
            self.mismatch.expect(path, shape, None);
            return None;
        };
        let numbers = Numbers {
            layer,
            first_expert,
        };
        // Tools that write shared tensors once may keep the head's name.
        let swapped = path == EMBEDDING_PATH
            && self.tied
            && store.info(store.dialect().embedding()).is_none()
            && store.info(store.dialect().head()).is_some();
        let rule = match swapped {
            true => Rule::as_is(EMBEDDING_PATH, store.dialect().head()),
            false => rule,
        };
        let first = |spelling| rule.piece(spelling, numbers, shape, 0);
        let (saved, fused) = (first(Spelling::Saved), first(Spelling::Fused));
        let has = |piece: &Piece| store.info(&piece.name).is_some();
        let (spelling, first) = if has(&fused) && !has(&saved) {
            (Spelling::Fused, fused)
        } else {
            (Spelling::Saved, saved)
        };
        let count = rule.count(spelling, shape);
        let last = rule.piece(spelling, numbers, shape, count - 1);
        let shared = spelling == Spelling::Fused || count > 1 && last.name == first.name;
        let found = store.info(&first.name);
        let absent = found.is_none_or(|info| shared && info.shape != first.shape);
        if absent {
            self.mismatch.expect(&first.name, &first.shape, found);
            return None;
        }
        if !shared && count > self.tensors {
            self.mismatch.expect(&last.name, &last.shape, None);
            return None;
        }
        for index in 0..count {
            let piece = rule.piece(spelling, numbers, shape, index);
            match self.read.get_mut(&piece.name) {
                Some(length) => *length = length.saturating_add(piece.length),
                None => {
                    let found = store.info(&piece.name);
                    let fits = self.mismatch.expect(&piece.name, &piece.shape, found);
                    // A tensor with another shape is not listed twice.
                    let length = if fits { piece.length } else { usize::MAX };
                    self.read.insert(piece.name, length);
                }
            }
        }
        Some((rule, spelling, numbers))
    }

    /// The selection biases. Every router has one, or none has.
    fn biases(&mut self, config: &ModelConfig, files: Files<'_>) -> Vec<String> {
        let layers = config.moe_layers().filter(|&layer| files.have(layer));
        let name = self.store.dialect().router_bias();
        let biases = layers.map(|layer| (layer, fill(name, Some(layer), None)));
        let mut biases: Vec<(usize, String)> = biases.collect();
        let any = biases
            .iter()
            .any(|(_, name)| self.store.info(name).is_some());
        if !self.family.has_selection_bias() || !any {
            return Vec::new();
        }
        let experts = config.moe.as_ref().map_or(0, |moe| moe.experts.count);
        for (_, name) in &biases {
            self.read.insert(name.clone(), experts);
            self.mismatch
                .expect(name, &[experts], self.store.info(name));
        }
        if let Some(shard) = files.shard() {
            biases.retain(|(layer, _)| shard.layers().contains(layer));
        }
        biases.into_iter().map(|(_, name)| name).collect()
    }

    /// Whether there is a head that nothing is read from, because it is tied to the embedding.
    fn has_tied_head(&mut self, config: &ModelConfig) -> bool {
        let dialect = self.store.dialect();
        let (embedding, head) = (dialect.embedding(), dialect.head());
        let has = |name| self.store.info(name).is_some();
        if !(self.tied && has(head) && has(embedding)) {
            return false;
        }
        let shape = [config.vocab_size, config.d_model];
        self.read.insert(head.to_owned(), shape.iter().product());
        self.mismatch.expect(head, &shape, self.store.info(head));
        true
    }

    /// Finds tensors that the model does not need.
    fn check_superfluous(&mut self, layers: usize) {
        let further = match self.family.predicts_further() {
            true => further_layers(self.store, layers),
            false => BTreeSet::new(),
        };
        for (name, info) in self.store.tensors() {
            if layer_of(name).is_some_and(|layer| further.contains(&layer)) {
                continue;
            }
            // A fused tensor of which the model needs only a part does not match either.
            let read = self.read.get(name);
            if read.is_none_or(|&length| length < info.elements()) {
                self.mismatch.superfluous(name, &info.shape);
            }
        }
    }
}

/// The layers behind the last one that predict further tokens: they begin with a projection of their own.
fn further_layers(store: &TensorStore, layers: usize) -> BTreeSet<usize> {
    let names = store.tensors().map(|(name, _)| name);
    let names = names.filter(|name| name.ends_with(".eh_proj.weight"));
    let further = names.filter_map(layer_of);
    further.filter(|layer| *layer >= layers).collect()
}

/// The layer in a tensor's name, such as 3 in `model.layers.3.mlp.gate.weight`.
fn layer_of(name: &str) -> Option<usize> {
    let rest = name.strip_prefix("model.layers.")?;
    rest.split('.').next()?.parse().ok()
}
