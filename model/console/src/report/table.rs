//! Tables, as text for a terminal through `Display`, and as part of a [`Page`](super::Page).

use std::fmt;

use maud::{Markup, html};

use super::Verdict;

/// A table with a title, column headings, rows of cells and a note.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table {
    title: String,
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
    note: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
struct Column {
    heading: String,
    number: bool,
}

/// The text of a cell, and its verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    text: String,
    verdict: Option<Verdict>,
}

impl Cell {
    /// A cell that is marked as good, notable or bad.
    pub fn judged(text: impl Into<String>, verdict: Verdict) -> Self {
        Self {
            text: text.into(),
            verdict: Some(verdict),
        }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self {
            text: text.into(),
            verdict: None,
        }
    }
}

impl Table {
    /// An empty table without columns; an empty title is not printed.
    pub fn new(title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            ..Self::default()
        }
    }

    /// A table without headings whose rows are a label, a number and a remark.
    pub fn figures<L: Into<String>>(
        title: impl Into<String>,
        rows: impl IntoIterator<Item = (L, String, String)>,
    ) -> Self {
        let table = Self::new(title).texts([""]).numbers([""]).texts([""]);
        rows.into_iter()
            .fold(table, |table, (label, number, remark)| {
                table.row([label.into().into(), number.into(), remark.into()])
            })
    }

    /// Adds columns of text, which are left-aligned. If all headings are empty, none are printed.
    pub fn texts<H: Into<String>>(self, headings: impl IntoIterator<Item = H>) -> Self {
        self.columns(headings, false)
    }

    /// Adds columns of numbers, which are right-aligned.
    pub fn numbers<H: Into<String>>(self, headings: impl IntoIterator<Item = H>) -> Self {
        self.columns(headings, true)
    }

    fn columns<H: Into<String>>(
        mut self,
        headings: impl IntoIterator<Item = H>,
        number: bool,
    ) -> Self {
        let columns = headings.into_iter().map(|heading| Column {
            heading: heading.into(),
            number,
        });
        self.columns.extend(columns);
        self
    }

    /// Adds a row; missing cells are empty.
    ///
    /// # Panics
    ///
    /// When it has more cells than the table has columns.
    pub fn row(mut self, cells: impl IntoIterator<Item = Cell>) -> Self {
        let mut cells: Vec<Cell> = cells.into_iter().collect();
        assert!(
            cells.len() <= self.columns.len(),
            "{} cells for {} columns",
            cells.len(),
            self.columns.len()
        );
        cells.resize(self.columns.len(), Cell::from(""));
        self.rows.push(cells);
        self
    }

    /// Sets the sentence below the table.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }

    /// Whether the table has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn has_headings(&self) -> bool {
        self.columns.iter().any(|column| !column.heading.is_empty())
    }

    pub(super) fn render(&self) -> Markup {
        html! {
            figure {
                @if !self.title.is_empty() { h3 { (self.title) } }
                div.scroll {
                    table {
                        @if self.has_headings() { thead { tr {
                            @for column in &self.columns { th class=[class(column, None)] scope="col" { (column.heading) } }
                        } } }
                        tbody {
                            @for row in &self.rows { tr {
                                @for (cell, column) in row.iter().zip(&self.columns) {
                                    td class=[class(column, cell.verdict)] { (cell.text) }
                                }
                            } }
                        }
                    }
                }
                @if let Some(note) = &self.note { figcaption { (note) } }
            }
        }
    }
}

fn class(column: &Column, verdict: Option<Verdict>) -> Option<String> {
    let classes = [
        column.number.then_some("number"),
        verdict.map(Verdict::class),
    ];
    let classes: Vec<&str> = classes.into_iter().flatten().collect();
    (!classes.is_empty()).then(|| classes.join(" "))
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.title.is_empty() {
            writeln!(formatter, "{}", self.title)?;
        }
        let width = |(number, column): (usize, &Column)| {
            let cells = self.rows.iter().map(|row| row[number].text.chars().count());
            cells
                .chain([column.heading.chars().count()])
                .max()
                .unwrap_or_default()
        };
        let widths: Vec<usize> = self.columns.iter().enumerate().map(width).collect();
        // Without headings, the indent sets the rows apart from the title.
        let indent = match self.has_headings() || self.title.is_empty() {
            true => "",
            false => "  ",
        };
        let line = |texts: &mut dyn Iterator<Item = &str>| {
            let cells = texts.zip(&widths).zip(&self.columns);
            let cells = cells.map(|((text, &width), column)| match column.number {
                true => format!("{text:>width$}"),
                false => format!("{text:<width$}"),
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            format!("{indent}{}", line.trim_end())
        };
        if self.has_headings() {
            let headings = line(&mut self.columns.iter().map(|column| column.heading.as_str()));
            writeln!(formatter, "{headings}")?;
        }
        for row in &self.rows {
            writeln!(
                formatter,
                "{}",
                line(&mut row.iter().map(|cell| cell.text.as_str()))
            )?;
        }
        match &self.note {
            Some(note) => writeln!(formatter, "{note}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        Table::new("Speed")
            .texts(["device"])
            .numbers(["tokens/s"])
            .row(["flex".into(), "1,831".into()])
            .row([
                Cell::judged("<wgpu>", Verdict::Bad),
                Cell::judged("0", Verdict::Bad),
            ])
    }

    #[test]
    fn columns_are_aligned_in_text() {
        assert_eq!(
            table().to_string(),
            "Speed\ndevice  tokens/s\nflex       1,831\n<wgpu>         0\n"
        );
    }

    #[test]
    fn figures_are_labels_numbers_and_remarks() {
        let row = |label, number: &str, remark: &str| (label, number.to_owned(), remark.to_owned());
        let table = Table::figures(
            "speed",
            [row("first", "9 ms", "alone"), row("all", "10 ms", "")],
        );
        assert_eq!(
            table.to_string(),
            "speed\n  first   9 ms  alone\n  all    10 ms\n"
        );
    }

    #[test]
    fn rows_without_headings_are_a_list() {
        let list = |title| {
            Table::new(title)
                .texts([""])
                .numbers(["", ""])
                .row(["norms".into(), "1".into()])
                .row(["head".into(), "10".into(), "9 %".into()])
        };
        assert_eq!(list("").to_string(), "norms   1\nhead   10  9 %\n");
        assert_eq!(
            list("parameters").to_string(),
            "parameters\n  norms   1\n  head   10  9 %\n"
        );
        assert!(!list("").render().into_string().contains("<thead>"));
    }

    #[test]
    fn cells_are_escaped_and_judged_on_a_page() {
        let markup = table().render().into_string();
        assert!(
            markup.contains(r#"<td class="bad">&lt;wgpu&gt;</td>"#),
            "{markup}"
        );
        assert!(
            markup.contains(r#"<td class="number bad">0</td>"#),
            "{markup}"
        );
        assert!(
            markup.contains(r#"<td class="number">1,831</td></tr>"#),
            "{markup}"
        );
    }
}
