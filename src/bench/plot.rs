//! The curves of a benchmark as a page of its own.

use super::{Report, command, machine};
use crate::table::Table;
use machine::Machine;
use std::path::Path;
use train::html::plot::{Curve, INTERVALS, Look, Mark, Plot};
use train::html::scale::Scale;
use train::html::text::Text;
use train::html::{self, Figures, PageError, document, section};

/// Which curves a table is drawn as: pictures side by side, one for each combination of the values of the columns `by`.
pub(super) struct Picture {
    /// The heading of the pictures.
    pub(super) title: &'static str,
    pub(super) by: &'static [&'static str],
    /// The column along the axis below, and its name there.
    pub(super) x: (&'static str, &'static str),
    /// The name of the axis on the left.
    pub(super) y: &'static str,
    /// Columns, and what they are called.
    pub(super) curves: &'static [(&'static str, &'static str, Look)],
}

/// Curves of one kind with their ceiling: the same colour.
const COLORS: [&str; 3] = ["var(--run-0)", "var(--run-1)", "var(--run-2)"];

impl Picture {
    fn plots(&self, table: &Table) -> Vec<Plot> {
        let curves: Vec<_> = self.curves.iter().map(|(key, ..)| table.series(self.by, self.x.0, key)).collect();
        let kinds = curves.first().map_or(0, Vec::len);
        let all = || curves.iter().flatten().flat_map(|series| series.points.iter().copied());
        // One height for all, so that pictures side by side compare.
        let (x, y) = (Scale::round(all().map(|p| p.0), 5), Scale::round(all().map(|p| p.1).chain([0.0]), INTERVALS));
        let plot = |kind: usize| {
            let named = self.by.iter().zip(&curves[0][kind].kind).map(|(by, value)| said(by, value));
            let curve = |(i, (_, name, look)): (usize, &(&str, &str, Look))| Curve {
                name: name.to_string(),
                label: None,
                listed: true,
                color: COLORS[i / 2 % COLORS.len()].to_string(),
                look: *look,
                points: curves[i][kind].points.clone(),
            };
            Plot {
                title: named.collect::<Vec<_>>().join(", "),
                note: String::new(),
                x_name: self.x.1,
                y_name: self.y.to_string(),
                x,
                y,
                unit: "",
                right: None,
                curves: self.curves.iter().enumerate().map(curve).collect(),
                marks: Vec::new(),
                levels: vec![Mark { at: 1.0, label: String::new(), color: "var(--quiet)".to_string() }],
            }
        };
        (0..kinds).map(plot).collect()
    }
}

/// A value of a column in words.
fn said(column: &str, value: &str) -> String {
    match (column, value) {
        ("threads", "1") => "1 thread".to_string(),
        ("threads", n) => format!("{n} threads"),
        _ => value.to_string(),
    }
}

const GENERATOR: &str = "silurian bench";

/// Fails if the page could not be written, before anything is measured.
pub(super) fn check(path: &Path) -> Result<(), PageError> {
    html::check(path, GENERATOR)
}

/// Writes the page; an earlier one is replaced, any other file is kept.
pub(super) fn page(report: &Report, path: &Path) -> Result<(), PageError> {
    let (now, machine) = (machine::now(), Machine::this().in_words());
    let mut body = format!(
        "<header>\n<p class=\"kicker\">silurian bench</p>\n<h1>{}</h1>\n<p>{}, {}</p>\n<p class=\"quiet\">{}</p>\n</header>\n",
        Text(command()),
        Text(now),
        Text(machine),
        Text(&report.method)
    );
    let mut figures = Figures::default();
    for (name, picture) in &report.pictures {
        for table in report.tables.iter().filter(|table| table.name == *name) {
            body += &section(picture.title, &figures.all(picture.plots(table)));
        }
    }
    for table in &report.tables {
        body += &format!("<h2>{}</h2>\n<div class=\"wide\">{}</div>\n", Text(&table.title), table.html());
    }
    html::write(path, GENERATOR, &document(GENERATOR, command(), "", &body))
}
