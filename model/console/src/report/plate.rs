//! A picture with what a model makes of it.

use maud::{Markup, html};

use super::Verdict;

/// A picture with its caption, numbers, the words of the caption, and other captions to choose from.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plate {
    picture: String,
    /// Width and height.
    size: (usize, usize),
    caption: String,
    about: String,
    bars: Vec<(String, f64, String)>,
    words: Vec<Word>,
    choice: Option<Choice>,
}

/// The captions that were compared: a verdict on the likeliest one, a sentence, and each with its text and number.
type Choice = (Verdict, String, Vec<(Option<Verdict>, String, String)>);

/// A word of a caption, with a map of the same frame as the picture that is laid over it.
#[derive(Debug, Clone, PartialEq)]
pub struct Word {
    /// The word.
    pub text: String,
    /// The address of the map: a `data:` URL of a picture.
    pub map: String,
    /// What stands below.
    pub note: String,
}

impl Plate {
    /// A picture of this width and height at an address, which is a `data:` URL.
    pub fn new(
        picture: impl Into<String>,
        size: (usize, usize),
        caption: impl Into<String>,
    ) -> Self {
        Self {
            picture: picture.into(),
            size,
            caption: caption.into(),
            ..Self::default()
        }
    }

    /// Sets the line below the caption.
    pub fn about(mut self, about: impl Into<String>) -> Self {
        self.about = about.into();
        self
    }

    /// Adds a number: its name, how long its bar is (1 for all of the room), and its text.
    pub fn bar(mut self, name: impl Into<String>, length: f64, text: impl Into<String>) -> Self {
        self.bars.push((name.into(), length, text.into()));
        self
    }

    /// Adds a word with its map.
    pub fn word(mut self, word: Word) -> Self {
        self.words.push(word);
        self
    }

    /// Sets the captions that were compared: a sentence with its verdict, and a verdict, if it has any, a text and a number
    /// for each.
    pub fn choice(
        mut self,
        verdict: Verdict,
        sentence: impl Into<String>,
        captions: impl IntoIterator<Item = (Option<Verdict>, String, String)>,
    ) -> Self {
        self.choice = Some((verdict, sentence.into(), captions.into_iter().collect()));
        self
    }

    pub(super) fn render(&self) -> Markup {
        let (width, height) = self.size;
        // It is written once, however often it is shown.
        let style = format!("--picture:url({});--ratio:{width}/{height}", self.picture);
        html! {
            article.plate style=(style) {
                div.shown role="img" aria-label=(self.caption) {}
                div.facts {
                    h3 { (self.caption) }
                    @if !self.about.is_empty() { p.about { (self.about) } }
                    @if !self.bars.is_empty() {
                        div.bars {
                            @for (name, length, text) in &self.bars {
                                span { (name) }
                                span.track { i style=(format!("width:{:.1}%", 100.0 * length.clamp(0.0, 1.0))) {} }
                                span.number { (text) }
                            }
                        }
                    }
                    @if let Some((verdict, sentence, captions)) = &self.choice {
                        details.choice {
                            summary class=(verdict.class()) { span.mark { (verdict.mark()) } " " (sentence) }
                            ol {
                                @for (verdict, text, number) in captions {
                                    li class=[verdict.map(Verdict::class)] {
                                        span { (text) @if let Some(verdict) = verdict { " " span.mark { (verdict.mark()) } } }
                                        span.number { (number) }
                                    }
                                }
                            }
                        }
                    }
                }
                @if !self.words.is_empty() {
                    div.words {
                        @for word in &self.words {
                            figure {
                                div.shown { img src=(word.map) alt=(format!("where {:?} looks", word.text)); }
                                figcaption { b { (word.text) } br; (word.note) }
                            }
                        }
                    }
                }
            }
        }
    }
}
