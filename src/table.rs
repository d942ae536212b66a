//! Rows of figures, and how they are written: a table to paste, values to plot, a record to keep.

use serde_json::{Map, Value, json};
use std::fmt::Write;
use train::html::text::Text;

/// How a report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Tables in Markdown
    Md,
    /// Values with a line of names; an empty line between tables
    Csv,
    /// Everything that is known
    Json,
}

/// The median of repetitions, and how far they went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle one; of an even number, the mean of two.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

impl Spread {
    /// Of `values`. Panics if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let n = values.len();
        let median = (values[(n - 1) / 2] + values[n / 2]) / 2.0;
        Spread { median, min: values[0], max: values[n - 1] }
    }
}

/// A value of a table.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Words.
    Text(String),
    /// A whole number.
    Count(u64),
    /// A measured or computed one.
    Number(f64),
    /// A repeated measurement: three columns but in Markdown.
    Spread(Spread),
    /// There is no such value.
    Absent,
}

impl From<&str> for Cell {
    fn from(text: &str) -> Cell {
        Cell::Text(text.to_string())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Cell {
        Cell::Text(text)
    }
}

impl From<usize> for Cell {
    fn from(n: usize) -> Cell {
        Cell::Count(n as u64)
    }
}

impl From<f64> for Cell {
    fn from(x: f64) -> Cell {
        Cell::Number(x)
    }
}

impl From<Spread> for Cell {
    fn from(spread: Spread) -> Cell {
        Cell::Spread(spread)
    }
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Cell {
        value.map_or(Cell::Absent, Into::into)
    }
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Number,
    Spread,
}

/// A name for programs, a heading for people, and what stands below. Both say the unit.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    key: &'static str,
    title: &'static str,
    kind: Kind,
}

impl Column {
    /// Words.
    pub const fn text(key: &'static str, title: &'static str) -> Column {
        Column { key, title, kind: Kind::Text }
    }

    /// Single values.
    pub const fn number(key: &'static str, title: &'static str) -> Column {
        Column { key, title, kind: Kind::Number }
    }

    /// Medians with their spread.
    pub const fn spread(key: &'static str, title: &'static str) -> Column {
        Column { key, title, kind: Kind::Spread }
    }
}

/// Rows of a kind, as a curve.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// What they have in common, as text.
    pub kind: Vec<String>,
    /// Points in the order of the rows.
    pub points: Vec<(f64, f64)>,
}

/// Rows under columns.
#[derive(Clone, Debug)]
pub struct Table {
    /// For programs.
    pub name: &'static str,
    /// A line above it, for people.
    pub title: String,
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// Without rows.
    pub fn new(name: &'static str, title: String, columns: &[Column]) -> Table {
        Table { name, title, columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Appends a row. Panics if it does not fit the columns: a mistake in the program.
    #[track_caller]
    pub fn push(&mut self, row: Vec<Cell>) {
        assert_eq!(row.len(), self.columns.len(), "table {}: cells of a row", self.name);
        for (cell, column) in row.iter().zip(&self.columns) {
            let fits = match cell {
                Cell::Text(_) => column.kind == Kind::Text,
                Cell::Count(_) | Cell::Number(_) => column.kind == Kind::Number,
                Cell::Spread(_) => column.kind == Kind::Spread,
                Cell::Absent => true,
            };
            assert!(fits, "table {}: {cell:?} under {:?}", self.name, column.title);
        }
        self.rows.push(row);
    }

    /// The values of two columns, a point for each row that has both; of a spread, the median. A series for each combination of the
    /// values of the columns `by`, in the order of the rows.
    ///
    /// Panics if there is no column of such a name.
    pub fn series(&self, by: &[&str], x: &str, y: &str) -> Vec<Series> {
        let place = |key: &str| self.columns.iter().position(|c| c.key == key).unwrap_or_else(|| panic!("no {key}"));
        let number = |cell: &Cell| match cell {
            Cell::Count(n) => Some(*n as f64),
            Cell::Number(x) => Some(*x),
            Cell::Spread(s) => Some(s.median),
            Cell::Text(_) | Cell::Absent => None,
        };
        let (by, x, y) = (by.iter().map(|key| place(key)).collect::<Vec<_>>(), place(x), place(y));
        let mut series: Vec<Series> = Vec::new();
        for row in &self.rows {
            let kind: Vec<String> = by.iter().map(|&i| shown(&row[i])).collect();
            let at = series.iter().position(|other| other.kind == kind).unwrap_or_else(|| {
                series.push(Series { kind, points: Vec::new() });
                series.len() - 1
            });
            series[at].points.extend(number(&row[x]).zip(number(&row[y])));
        }
        series
    }

    /// As Markdown: numbers at three digits or more, spreads as `median [min..max]`.
    pub fn markdown(&self) -> String {
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let mut text = line(self.columns.iter().map(|c| c.title.to_string()).collect());
        let rules = self.columns.iter().map(|c| if c.kind == Kind::Text { "---" } else { "---:" });
        writeln!(text, "|{}|", rules.collect::<Vec<_>>().join("|")).expect("writing to a string");
        for row in &self.rows {
            text += &line(row.iter().map(shown).collect());
        }
        text
    }

    /// As HTML: the figures of [`markdown`](Table::markdown).
    pub fn html(&self) -> String {
        let class = |kind| if kind == Kind::Text { "" } else { " class=\"number\"" };
        let mut html = String::from("<table><thead><tr>");
        for column in &self.columns {
            html += &format!("<th{}>{}</th>", class(column.kind), Text(column.title));
        }
        html += "</tr></thead>\n<tbody>\n";
        for row in &self.rows {
            let cells = row.iter().zip(&self.columns);
            let cells = cells.map(|(cell, column)| format!("<td{}>{}</td>", class(column.kind), Text(shown(cell))));
            html += &format!("<tr>{}</tr>\n", cells.collect::<String>());
        }
        html + "</tbody></table>"
    }

    /// As CSV with a line of names, in which a spread is `key`, `key_min` and `key_max`.
    pub fn csv(&self) -> String {
        let mut out = csv::Writer::from_writer(Vec::new());
        let mut write = |record: Vec<String>| out.write_record(record).expect("records of one length, to memory");
        write(self.columns.iter().flat_map(|c| keys(*c)).collect());
        for row in &self.rows {
            let cells = row.iter().zip(&self.columns).flat_map(|(cell, &column)| values(cell, column));
            write(cells.map(|value| value.as_str().map_or_else(|| plain(&value), str::to_string)).collect());
        }
        String::from_utf8(out.into_inner().expect("writing to memory")).expect("made of strings")
    }

    /// As JSON: an object for each row, with the keys of CSV.
    pub fn json(&self) -> Value {
        let row = |row: &Vec<Cell>| -> Value {
            let cells = row.iter().zip(&self.columns);
            let pairs = cells.flat_map(|(cell, &column)| keys(column).into_iter().zip(values(cell, column)));
            Value::Object(pairs.collect::<Map<_, _>>())
        };
        json!({ "name": self.name, "title": self.title, "rows": self.rows.iter().map(row).collect::<Vec<_>>() })
    }
}

fn keys(column: Column) -> Vec<String> {
    match column.kind {
        Kind::Text | Kind::Number => vec![column.key.to_string()],
        Kind::Spread => ["", "_min", "_max"].map(|end| format!("{}{end}", column.key)).to_vec(),
    }
}

fn values(cell: &Cell, column: Column) -> Vec<Value> {
    match cell {
        Cell::Text(text) => vec![json!(text)],
        Cell::Count(n) => vec![json!(n)],
        Cell::Number(x) => vec![json!(rounded(*x))],
        Cell::Spread(s) => vec![json!(rounded(s.median)), json!(rounded(s.min)), json!(rounded(s.max))],
        Cell::Absent => vec![Value::Null; keys(column).len()],
    }
}

/// A number or nothing, for CSV.
fn plain(value: &Value) -> String {
    if value.is_null() { String::new() } else { value.to_string() }
}

/// Six significant digits: more than any timing has.
fn rounded(x: f64) -> f64 {
    format!("{x:.5e}").parse().unwrap_or(x)
}

fn shown(cell: &Cell) -> String {
    match cell {
        Cell::Text(text) => text.clone(),
        Cell::Count(n) => n.to_string(),
        Cell::Number(x) => figures(*x),
        Cell::Spread(s) => format!("{} [{}..{}]", figures(s.median), figures(s.min), figures(s.max)),
        Cell::Absent => "-".to_string(),
    }
}

/// Three significant digits, and all digits before the point.
fn figures(x: f64) -> String {
    let decimals = match x.abs() {
        99.95.. => 0,
        9.995.. => 1,
        _ => 2,
    };
    format!("{x:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let columns = [Column::text("shape", "shape"), Column::number("k", "K"), Column::spread("gflops", "GFLOP/s")];
        let mut table = Table::new("gemm", "Products".to_string(), &columns);
        table.push(vec!["a, \"b\"".into(), 7.into(), Spread::of([245.2, 9.5, 1000.0]).into()]);
        table.push(vec!["c".into(), Cell::Absent, Cell::Absent]);
        table
    }

    #[test]
    fn markdown_csv_and_json() {
        let markdown = "| shape | K | GFLOP/s |\n|---|---:|---:|\n| a, \"b\" | 7 | 245 [9.50..1000] |\n| c | - | - |\n";
        assert_eq!(table().markdown(), markdown);
        let csv = "shape,k,gflops,gflops_min,gflops_max\n\"a, \"\"b\"\"\",7,245.2,9.5,1000.0\nc,,,,\n";
        assert_eq!(table().csv(), csv);
        let html = table().html();
        assert!(html.contains("<th>shape</th><th class=\"number\">K</th>"), "{html}");
        assert!(html.contains("<td>a, &quot;b&quot;</td><td class=\"number\">7</td>"), "{html}");
        let rows = json!([
            { "shape": "a, \"b\"", "k": 7, "gflops": 245.2, "gflops_min": 9.5, "gflops_max": 1000.0 },
            { "shape": "c", "k": null, "gflops": null, "gflops_min": null, "gflops_max": null },
        ]);
        assert_eq!(table().json()["rows"], rows);
    }

    #[test]
    fn series_are_the_rows_of_each_kind() {
        let columns =
            [Column::text("weights", "weights"), Column::number("k", "K"), Column::spread("gflops", "GFLOP/s")];
        let mut table = Table::new("gemm", "Products".to_string(), &columns);
        for (weights, k, rate) in [("f32", 1, 5.0), ("bf16", 1, 9.0), ("f32", 2, 6.0)] {
            table.push(vec![weights.into(), k.into(), Spread::of([rate, 0.0, 100.0]).into()]);
        }
        table.push(vec!["bf16".into(), 2.into(), Cell::Absent]);
        let expected = [("f32", vec![(1.0, 5.0), (2.0, 6.0)]), ("bf16", vec![(1.0, 9.0)])];
        let expected = expected.map(|(weights, points)| Series { kind: vec![weights.to_string()], points }).to_vec();
        assert_eq!(table.series(&["weights"], "k", "gflops"), expected);
    }

    #[test]
    fn medians_and_digits() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(
            [1234.5, 99.96, 99.94, 9.996, 9.994, 0.0].map(figures),
            ["1234", "100", "99.9", "10.0", "9.99", "0.00"]
        );
        assert_eq!(rounded(1.0 / 3.0), 0.333333);
    }

    #[test]
    #[should_panic(expected = "table gemm: Count(1) under \"shape\"")]
    fn a_row_that_does_not_fit() {
        table().push(vec![1.into(), 1.into(), Cell::Absent]);
    }
}
