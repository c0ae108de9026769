//! An HTML page with tables, charts and pictures.

use std::path::{Path, PathBuf};

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{Bars, Chart, HeatMap, Plate, Table};
use crate::durable::{self, FileError};

/// The assessment of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As expected.
    Good,
    /// Worth attention.
    Notable,
    /// A fault.
    Bad,
}

impl Verdict {
    /// The CSS class.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Notable => "notable",
            Self::Bad => "bad",
        }
    }

    /// The verdict as a character, readable without colour.
    pub fn mark(self) -> &'static str {
        match self {
            Self::Good => "✓",
            Self::Notable => "•",
            Self::Bad => "✗",
        }
    }
}

/// A self-contained HTML page. Parts appear in the order in which they are added; all text is escaped.
#[derive(Debug, Clone)]
pub struct Page {
    title: String,
    about: Vec<String>,
    summary: Vec<(Verdict, String)>,
    parts: Vec<Markup>,
}

impl Page {
    /// An empty page.
    pub fn new(title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            about: Vec::new(),
            summary: Vec::new(),
            parts: Vec::new(),
        }
    }

    /// Adds a line below the title: what was done, with what, when.
    pub fn about(mut self, text: impl Into<String>) -> Self {
        self.about.push(text.into());
        self
    }

    /// Adds a sentence to the summary at the top.
    pub fn summary(mut self, verdict: Verdict, text: impl Into<String>) -> Self {
        self.summary.push((verdict, text.into()));
        self
    }

    /// Adds a heading.
    pub fn section(self, heading: &str) -> Self {
        self.part(html! { h2 { (heading) } })
    }

    /// Adds a paragraph.
    pub fn text(self, text: &str) -> Self {
        self.part(html! { p { (text) } })
    }

    /// Adds a table.
    pub fn table(self, table: Table) -> Self {
        self.part(table.render())
    }

    /// Adds a chart.
    pub fn chart(self, chart: Chart) -> Self {
        self.part(chart.render())
    }

    /// Adds stacked bars.
    pub fn bars(self, bars: Bars) -> Self {
        self.part(bars.render())
    }

    /// Adds a heat map.
    pub fn heat_map(self, map: HeatMap) -> Self {
        self.part(map.render())
    }

    /// Adds pictures.
    pub fn plates(self, plates: impl IntoIterator<Item = Plate>) -> Self {
        let plates = plates.into_iter().map(|plate| plate.render());
        self.part(html! { div.plates { @for plate in plates { (plate) } } })
    }

    /// Adds preformatted text in a collapsed section.
    pub fn folded(self, heading: &str, text: &str) -> Self {
        self.part(html! { details { summary { (heading) } pre { (text) } } })
    }

    fn part(mut self, part: Markup) -> Self {
        self.parts.push(part);
        self
    }

    /// The page as HTML.
    pub fn render(&self) -> String {
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (self.title) }
                    style { (PreEscaped(include_str!("style.css"))) }
                }
                body {
                    header {
                        h1 { (self.title) }
                        @for line in &self.about { p.about { (line) } }
                    }
                    main {
                        @if !self.summary.is_empty() {
                            ul.summary {
                                @for (verdict, text) in &self.summary {
                                    li class=(verdict.class()) { span.mark { (verdict.mark()) } span { (text) } }
                                }
                            }
                        }
                        @for part in &self.parts { (part) }
                    }
                }
            }
        }
        .into_string()
    }

    /// Writes the page to a file.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), FileError> {
        durable::write(path, self.render())
    }
}

/// The path of a page as an argument gives it: one that ends in `.html`, so that a page takes the place of nothing else.
///
/// # Errors
///
/// What is wrong with another path.
pub fn page_path(argument: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(argument);
    match path
        .extension()
        .is_some_and(|extension| extension == "html")
    {
        true => Ok(path),
        false => Err("must end in .html, such as compare.html".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_self_contained() {
        let page = Page::new("A & B")
            .about("two devices")
            .summary(Verdict::Bad, "they <differ>")
            .section("Layers")
            .text("all of them")
            .folded("log", "line\nline");
        let text = page.render();
        assert!(
            !text.contains("http") && !text.contains("<script"),
            "{text}"
        );
        assert!(text.contains("<h1>A &amp; B</h1>"), "{text}");
        assert!(text.contains("they &lt;differ&gt;"), "{text}");
    }
}
