//! HTML reports: a self-contained [`Page`] with tables, charts and pictures, which follows the reader's light or dark setting and
//! can be printed.
//!
//! ```
//! use firebox_console::report::{Chart, Page, Scale, Series, Table, Verdict};
//!
//! let table = Table::new("Speed").texts(["device"]).numbers(["tokens/s"]).row(["flex".into(), "1,831".into()]);
//! let chart = Chart::new("Loss", "step", "nats per token", Scale::Linear)
//!     .series(Series::new("flex", [(1.0, 6.2), (2.0, 5.9)]));
//! let page = Page::new("Two devices").summary(Verdict::Good, "they agree").table(table.clone()).chart(chart);
//! assert!(page.render().starts_with("<!DOCTYPE html>"));
//! assert!(table.to_string().contains("tokens/s"));
//! ```

mod axis;
mod bars;
mod chart;
mod heat_map;
mod page;
mod plate;
mod table;

pub use axis::Scale;
pub use bars::Bars;
pub use chart::{Chart, Series};
pub use heat_map::HeatMap;
pub use page::{Page, Verdict, page_path};
pub use plate::{Plate, Word};
pub use table::{Cell, Table};
