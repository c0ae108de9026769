//! Which parameters are trained.

use burn::tensor::{Int, Tensor};
use firebox_model::config::ModelConfig;
use firebox_model::language_model::LanguageModel;

use crate::config::Frozen;

/// The parameters of a model that are trained.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Learned {
    /// All.
    #[default]
    Everything,
    /// Those that read pictures.
    Pictures(PictureParameters),
}

/// What the parameters that read pictures are told by.
#[derive(Debug, Clone, PartialEq)]
pub struct PictureParameters {
    /// What their paths begin with.
    prefixes: Vec<String>,
    /// Values of the embedding before the row of the image token.
    of_vocabulary: usize,
}

/// How much of a parameter is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    All,
    /// Its values from this one on.
    From(usize),
    /// Nothing.
    Nothing,
}

impl Learned {
    /// What a run trains of a model.
    pub fn of(config: &ModelConfig, frozen: Option<Frozen>) -> Self {
        match frozen {
            None | Some(Frozen::Nothing) => return Self::Everything,
            Some(Frozen::Text) => {}
        }
        let layers = config.layers.iter().enumerate();
        let crossing = layers.filter(|(_, layer)| layer.is_cross());
        let crossing = crossing.map(|(index, _)| format!("blocks.{index}."));
        Self::Pictures(PictureParameters {
            prefixes: crossing.chain(["vision.".to_owned()]).collect(),
            of_vocabulary: config.vocab_size * config.d_model,
        })
    }

    /// How much of the parameter at a path is trained.
    pub fn part(&self, path: &str) -> Part {
        match self {
            Self::Everything => Part::All,
            Self::Pictures(parameters) => {
                let is_new = |prefix: &String| path.starts_with(prefix.as_str());
                match path {
                    "embedding" => Part::From(parameters.of_vocabulary),
                    _ if parameters.prefixes.iter().any(is_new) => Part::All,
                    _ => Part::Nothing,
                }
            }
        }
    }

    /// Whether anything of the parameter at a path is trained.
    pub fn includes(&self, path: &str) -> bool {
        self.part(path) != Part::Nothing
    }

    /// How many numbers have a gradient. A parameter of which a part is trained counts as a whole: where nothing is
    /// trained, its gradient is zero.
    pub fn count(&self, config: &ModelConfig) -> u128 {
        let parameters = LanguageModel::parameter_list(config).into_iter();
        let learned = parameters.filter(|parameter| self.includes(&parameter.path));
        learned.map(|parameter| parameter.elements()).sum()
    }

    /// The gradient of the parameter at a path, flattened, with zeros where it is not trained; `None` where none of it is. Of a
    /// rank's part, `before` are the parameter's values before it.
    pub fn gradient(&self, path: &str, gradient: Tensor<1>, before: usize) -> Option<Tensor<1>> {
        match self.part(path) {
            Part::All => Some(gradient),
            Part::Nothing => None,
            Part::From(first) => {
                let [values] = gradient.dims();
                let first = first.saturating_sub(before).min(values);
                let is_trained = Tensor::<1, Int>::arange(0..values as i64, &gradient.device());
                Some(gradient.mask_fill(is_trained.lower_elem(first as i64), 0.0))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use firebox_model::testing::{seeing, tiny};

    use super::*;

    #[test]
    fn with_the_text_frozen_only_what_is_new_learns() {
        let config = seeing();
        let learned = Learned::of(&config, Some(Frozen::Text));
        let text = config.text_only();
        let paths = |config: &ModelConfig| -> Vec<String> {
            let parameters = LanguageModel::parameter_list(config).into_iter();
            parameters.map(|parameter| parameter.path).collect()
        };
        let frozen = paths(&config)
            .into_iter()
            .filter(|path| !learned.includes(path));
        // As many as the text model has, but for the embedding, which has the row of the image token.
        assert_eq!(frozen.count(), paths(&text).len() - 1);
        assert_eq!(
            learned.part("embedding"),
            Part::From(config.vocab_size * config.d_model)
        );
        assert_eq!(learned.part("vision.projector.weight"), Part::All);
        let everything = Learned::of(&tiny(), None);
        assert!(
            paths(&tiny())
                .iter()
                .all(|path| everything.part(path) == Part::All)
        );
    }
}
