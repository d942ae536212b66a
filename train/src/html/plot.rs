//! Pictures as SVG, written by hand: lines over an axis, with what the style sheet and a reader without eyes or colours need.
//!
//! Colours are CSS variables, so that one picture serves light, dark and paper. The width is that of the column it stands in; the
//! style sheet makes the text larger where the column is narrow, and margins and tick counts leave room for that. Tooltips are SVG
//! titles: the page needs no script.

use super::curve::{Point, thin};
use super::scale::{Scale, labels, short};
use super::text::Text;
use std::fmt::Write;

/// Width of a picture in its own units, which are pixels where two columns fit.
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 38.0;
const BOTTOM: f64 = 50.0;

/// Intervals of the vertical axis at most. An axis that was opened to round numbers has a number at both ends.
pub const INTERVALS: usize = 7;

/// Points of a curve beyond which no more detail can be seen: two a unit of width, as [`thin`] keeps two a bucket.
const BUCKETS: usize = 240;

/// Strips with a tooltip in one picture: fine enough to follow a curve, few enough for a small file.
const STRIPS: usize = 40;

/// How a curve is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Look {
    /// Thin and pale: the raw values behind a smoothed curve.
    Faint,
    /// A line.
    Line,
    /// A line with a dot at each value.
    Dots,
    /// A heavy line with dots: what matters most.
    Heavy,
    /// A dashed line with dots.
    Dashed,
}

impl Look {
    fn class(self) -> &'static str {
        match self {
            Look::Faint => "faint",
            Look::Line => "line",
            Look::Dots => "line",
            Look::Heavy => "heavy",
            Look::Dashed => "line dashed",
        }
    }

    fn dots(self) -> bool {
        matches!(self, Look::Dots | Look::Heavy | Look::Dashed)
    }
}

/// A curve.
pub struct Curve {
    /// In tooltips, and in the legend unless there is a label. A curve without a name is in neither.
    pub name: String,
    /// Written at its right end, if given.
    pub label: Option<String>,
    /// Whether the legend has it, if there is no label.
    pub listed: bool,
    /// A CSS colour: `var(--run-0)`.
    pub color: String,
    /// How it is drawn.
    pub look: Look,
    /// In order of x.
    pub points: Vec<Point>,
}

/// A straight line across: at a step, or at a value.
pub struct Mark {
    /// The step or the value.
    pub at: f64,
    /// Written at its end; may be empty.
    pub label: String,
    /// A CSS colour.
    pub color: String,
}

/// A picture of curves.
pub struct Plot {
    /// Above it.
    pub title: String,
    /// A sentence below the title; may be empty.
    pub note: String,
    /// What lies on the axis below: `step`.
    pub x_name: &'static str,
    /// What the values are, with their unit.
    pub y_name: String,
    /// The axis below.
    pub x: Scale,
    /// The axis on the left.
    pub y: Scale,
    /// Appended to the numbers of the axis: ` %`.
    pub unit: &'static str,
    /// A second axis on the right: its name, and its value for 1 on the left.
    pub right: Option<(String, f64)>,
    /// Drawn in this order.
    pub curves: Vec<Curve>,
    /// Vertical lines.
    pub marks: Vec<Mark>,
    /// Horizontal lines.
    pub levels: Vec<Mark>,
}

/// The paper of a picture: where a value lies, and the axes.
pub struct Frame {
    x: Scale,
    y: Scale,
    right: f64,
}

impl Frame {
    /// Leaves `right` units of width beside the data.
    pub fn new(x: Scale, y: Scale, right: f64) -> Frame {
        Frame { x, y, right: WIDTH - right }
    }

    /// The place of an x in the picture.
    pub fn px(&self, x: f64) -> f64 {
        LEFT + self.x.place(x).clamp(-9.0, 9.0) * (self.right - LEFT)
    }

    /// The place of a y. Values far outside stay numbers that a viewer can hold.
    pub fn py(&self, y: f64) -> f64 {
        HEIGHT - BOTTOM - self.y.place(y).clamp(-9.0, 9.0) * (HEIGHT - BOTTOM - TOP)
    }

    /// Grid, numbers and names of the axes.
    pub fn axes(&self, x_name: &str, y_name: &str, unit: &str) -> String {
        let mut svg = String::new();
        let bottom = HEIGHT - BOTTOM;
        let ticks = self.y.ticks(INTERVALS, 0.0);
        for (&tick, label) in ticks.iter().zip(labels(&ticks)) {
            let y = self.py(tick);
            let _ = write!(svg, r#"<line class="grid" x1="{LEFT}" x2="{:.1}" y1="{y:.1}" y2="{y:.1}"/>"#, self.right);
            let _ = write!(svg, r#"<text class="end" x="{}" y="{y:.1}" dy=".35em">{label}{unit}</text>"#, LEFT - 8.0);
        }
        let _ = write!(svg, r#"<line class="axis" x1="{LEFT}" x2="{:.1}" y1="{bottom}" y2="{bottom}"/>"#, self.right);
        let ticks = self.x.ticks(5, 1.0);
        for (&tick, label) in ticks.iter().zip(labels(&ticks)) {
            let x = self.px(tick);
            let _ = write!(svg, r#"<line class="axis" x1="{x:.1}" x2="{x:.1}" y1="{bottom}" y2="{}"/>"#, bottom + 4.0);
            let _ = write!(svg, r#"<text class="mid" x="{x:.1}" y="{}" dy="1em">{label}</text>"#, bottom + 6.0);
        }
        let _ = write!(svg, r#"<text class="name" x="4" y="14">{}</text>"#, Text(y_name));
        let _ =
            write!(svg, r#"<text class="name end" x="{:.1}" y="{}">{}</text>"#, self.right, HEIGHT - 6.0, Text(x_name));
        svg
    }

    /// A second axis on the right for the same heights.
    fn right_axis(&self, name: &str, factor: f64) -> String {
        let (low, high) = self.y.ends();
        let scale = Scale::Linear { low: low * factor, high: high * factor };
        let ticks = scale.ticks(INTERVALS, 0.0);
        let mut svg = String::new();
        for (&tick, label) in ticks.iter().zip(labels(&ticks)) {
            let (x, y) = (self.right, self.py(tick / factor));
            let _ = write!(svg, r#"<line class="axis" x1="{x:.1}" x2="{:.1}" y1="{y:.1}" y2="{y:.1}"/>"#, x + 4.0);
            let _ = write!(svg, r#"<text x="{:.1}" y="{y:.1}" dy=".35em">{label}</text>"#, x + 8.0);
        }
        let _ = write!(svg, r#"<text class="name end" x="{}" y="14">{}</text>"#, WIDTH - 2.0, Text(name));
        svg
    }

    /// Transparent strips across the picture, one for each place, that say something when a pointer rests on them.
    pub fn strips(&self, places: &[f64], say: impl Fn(f64) -> String) -> String {
        let mut svg = String::new();
        for (i, &place) in places.iter().enumerate() {
            let x = self.px(place);
            let before = if i > 0 { (self.px(places[i - 1]) + x) / 2.0 } else { LEFT };
            let after = if i + 1 < places.len() { (self.px(places[i + 1]) + x) / 2.0 } else { self.right };
            let (height, bottom) = (HEIGHT - BOTTOM - TOP, HEIGHT - BOTTOM);
            let _ = write!(
                svg,
                r#"<g class="tip"><rect x="{before:.1}" y="{TOP}" width="{:.1}" height="{height}"/><path d="M{x:.1} {TOP}V{bottom}"/><title>{}</title></g>"#,
                (after - before).max(0.0),
                Text(say(place))
            );
        }
        svg
    }
}

impl Plot {
    /// A figure: title, note, legend, picture. `id` is one that no other picture of the page has.
    pub fn figure(&self, id: usize) -> String {
        let right =
            match (&self.right, self.curves.iter().filter_map(|c| c.label.as_ref()).map(|l| l.chars().count()).max()) {
                (Some(_), _) => 58.0,
                (None, Some(chars)) => 14.0 + 6.8 * chars as f64,
                (None, None) => RIGHT,
            };
        let frame = Frame::new(self.x, self.y, right);
        let mut svg = frame.axes(self.x_name, &self.y_name, self.unit);
        if let Some((name, factor)) = &self.right {
            svg.push_str(&frame.right_axis(name, *factor));
        }
        for mark in &self.marks {
            let x = frame.px(mark.at);
            let (before, class) = if x > (LEFT + frame.right) / 2.0 { (-5.0, "end") } else { (5.0, "start") };
            let bottom = HEIGHT - BOTTOM;
            let _ = write!(svg, r#"<path class="mark" style="stroke:{}" d="M{x:.1} {TOP}V{bottom}"/>"#, mark.color);
            let _ = write!(
                svg,
                r#"<text class="note {class}" x="{:.1}" y="{}">{}</text>"#,
                x + before,
                TOP - 6.0,
                Text(&mark.label)
            );
        }
        for level in &self.levels {
            let y = frame.py(level.at);
            let _ = write!(
                svg,
                r#"<path class="mark" style="stroke:{}" d="M{LEFT} {y:.1}H{:.1}"/>"#,
                level.color, frame.right
            );
            let _ = write!(
                svg,
                r#"<text class="note end" x="{:.1}" y="{:.1}">{}</text>"#,
                frame.right - 4.0,
                y - 5.0,
                Text(&level.label)
            );
        }
        let _ = write!(
            svg,
            r#"<clipPath id="clip-{id}"><rect x="{LEFT}" y="{}" width="{:.1}" height="{}"/></clipPath><g clip-path="url(#clip-{id})">"#,
            TOP - 4.0,
            frame.right - LEFT + 5.0,
            HEIGHT - BOTTOM - TOP + 8.0
        );
        for curve in &self.curves {
            svg.push_str(&drawn(&frame, curve));
        }
        svg.push_str("</g>");
        svg.push_str(&self.end_labels(&frame));
        svg.push_str(&frame.strips(&self.places(), |x| self.tip(x)));
        figure(&self.title, &self.note, &self.legend(), &svg, HEIGHT)
    }

    fn legend(&self) -> String {
        let named: Vec<&Curve> = self.curves.iter().filter(|c| c.listed && c.label.is_none()).collect();
        if named.is_empty() || self.curves.len() < 2 {
            return String::new();
        }
        let mut html = String::from("<ul class=\"legend\">");
        for curve in named {
            let _ = write!(
                html,
                "<li><span class=\"key {}\" style=\"border-color:{}\"></span><bdi>{}</bdi></li>",
                curve.look.class(),
                curve.color,
                Text(&curve.name)
            );
        }
        html + "</ul>"
    }

    /// Names at the right ends of the curves, moved apart where they would lie on each other.
    fn end_labels(&self, frame: &Frame) -> String {
        const APART: f64 = 14.0;
        let mut ends: Vec<(f64, &Curve, &String)> = self
            .curves
            .iter()
            .filter_map(|curve| {
                let (last, label) = (curve.points.last()?, curve.label.as_ref()?);
                Some((frame.py(last.1).clamp(TOP, HEIGHT - BOTTOM - 2.0), curve, label))
            })
            .collect();
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut places: Vec<f64> = ends.iter().map(|e| e.0).collect();
        for i in 1..places.len() {
            places[i] = places[i].max(places[i - 1] + APART);
        }
        // What was pushed out below moves the others up.
        let mut floor = HEIGHT - BOTTOM - 2.0;
        for place in places.iter_mut().rev() {
            *place = place.min(floor);
            floor = *place - APART;
        }
        let mut svg = String::new();
        for ((_, curve, label), y) in ends.iter().zip(places) {
            let _ = write!(
                svg,
                r#"<text class="direct" style="fill:{}" x="{:.1}" y="{y:.1}" dy=".35em">{}</text>"#,
                curve.color,
                frame.right + 8.0,
                Text(label)
            );
        }
        svg
    }

    /// Where tooltips are: at the values if they are few, else evenly.
    fn places(&self) -> Vec<f64> {
        let (low, high) = self.x.ends();
        let named = self.curves.iter().filter(|c| !c.name.is_empty());
        let mut all: Vec<f64> =
            named.flat_map(|c| c.points.iter().map(|p| p.0)).filter(|x| (low..=high).contains(x)).collect();
        all.sort_by(f64::total_cmp);
        all.dedup();
        if all.len() <= STRIPS {
            return all;
        }
        (0..STRIPS).map(|i| all[i * (all.len() - 1) / (STRIPS - 1)]).collect()
    }

    /// What is known at a place: of each curve the nearest value, unless that is further than to the next strip.
    fn tip(&self, x: f64) -> String {
        let (low, high) = self.x.ends();
        let near = (high - low) / STRIPS as f64;
        let mut text = format!("{} {}", self.x_name, short(x));
        for curve in self.curves.iter().filter(|c| !c.name.is_empty()) {
            let after = curve.points.partition_point(|p| p.0 < x);
            let beside = [after.checked_sub(1), Some(after)].into_iter().flatten().filter_map(|i| curve.points.get(i));
            let nearest = beside.min_by(|a, b| (a.0 - x).abs().total_cmp(&(b.0 - x).abs()));
            if let Some(&(at, y)) = nearest.filter(|p| (p.0 - x).abs() <= near) {
                let _ = write!(text, "\n{}: {}{}", curve.name, short(y), self.unit);
                if (at - x).abs() > 0.5 {
                    let _ = write!(text, " (at {})", short(at));
                }
            }
        }
        text
    }
}

/// A curve within the frame.
fn drawn(frame: &Frame, curve: &Curve) -> String {
    let (mut svg, color) = (String::new(), &curve.color);
    let (low, high) = frame.x.ends();
    // One beyond each end, so that the line leaves the frame where it should.
    let from = curve.points.partition_point(|p| p.0 < low).saturating_sub(1);
    let to = (curve.points.partition_point(|p| p.0 <= high) + 1).min(curve.points.len());
    let seen = &curve.points[from..to.max(from)];
    let mut line = String::new();
    for (x, y) in thin(seen, BUCKETS) {
        let _ = write!(line, "{}{:.1},{:.1}", if line.is_empty() { "" } else { " " }, frame.px(x), frame.py(y));
    }
    let _ = write!(svg, r#"<polyline class="{}" style="stroke:{color}" points="{line}"/>"#, curve.look.class());
    if curve.look.dots() && seen.len() <= 2 * STRIPS {
        let radius = if curve.look == Look::Heavy { 3.5 } else { 2.6 };
        for &(x, y) in seen {
            let (x, y) = (frame.px(x), frame.py(y));
            let _ = write!(svg, r#"<circle style="fill:{color}" cx="{x:.1}" cy="{y:.1}" r="{radius}"/>"#);
        }
    }
    svg
}

/// A figure around the inside of a picture of this height.
pub fn figure(title: &str, note: &str, legend: &str, svg: &str, height: f64) -> String {
    let (title, note) = (Text(title), if note.is_empty() { String::new() } else { format!("<p>{}</p>", Text(note)) });
    format!(
        "<figure><figcaption><h3>{title}</h3>{note}</figcaption>{legend}\
         <svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}\">{svg}</svg></figure>\n"
    )
}

/// A bar that lies.
pub struct Bar {
    /// Above it.
    pub label: String,
    /// Its length, in the unit of the end that [`bars`] is given.
    pub value: f64,
    /// The value as text, with its unit.
    pub text: String,
    /// A CSS colour.
    pub color: String,
    /// A value to compare with, and its name.
    pub reference: Option<(f64, String)>,
}

/// Bars below each other, from 0 to `end`.
pub fn bars(title: &str, note: &str, bars: &[Bar], end: f64) -> String {
    const ROW: f64 = 66.0;
    const LONGEST: f64 = WIDTH - 4.0;
    let length = |value: f64| (value / end).clamp(0.0, 1.0) * LONGEST;
    let mut svg = String::new();
    for (i, bar) in bars.iter().enumerate() {
        let y = i as f64 * ROW;
        let (color, wide, right) = (&bar.color, length(bar.value), LONGEST + 2.0);
        let _ = write!(svg, r#"<text x="2" y="{}">{}</text>"#, y + 18.0, Text(&bar.label));
        let _ = write!(svg, r#"<text class="value end" x="{right}" y="{}">{}</text>"#, y + 18.0, Text(&bar.text));
        let _ = write!(svg, r#"<rect class="track" x="2" y="{}" width="{LONGEST}" height="14"/>"#, y + 25.0);
        let _ = write!(svg, r#"<rect style="fill:{color}" x="2" y="{}" width="{wide:.1}" height="14"/>"#, y + 25.0);
        if let Some((value, name)) = &bar.reference {
            let x = 2.0 + length(*value);
            let (class, beside) = if x > WIDTH / 2.0 { ("end", -5.0) } else { ("start", 5.0) };
            let _ = write!(svg, r#"<path class="reference" d="M{x:.1} {}v30"/>"#, y + 25.0);
            let _ = write!(
                svg,
                r#"<text class="note {class}" x="{:.1}" y="{}">{}</text>"#,
                x + beside,
                y + 54.0,
                Text(name)
            );
        }
    }
    figure(title, note, "", &svg, bars.len() as f64 * ROW)
}

/// Distributions beside each other: for each layer, the norms at [`NORM_QUANTILES`](crate::metrics::NORM_QUANTILES), as a line from
/// the smallest to the largest, a pale bar over 90 % of the rows, a bar over half of them, and the median.
/// `largest` is the end of the axis at least.
pub fn distributions(title: &str, note: &str, layers: &[[f64; 9]], largest: f64) -> String {
    let x = Scale::Linear { low: -0.6, high: layers.len() as f64 - 0.4 };
    let y = Scale::round(layers.iter().flatten().copied().chain([0.0, largest]), INTERVALS);
    let frame = Frame::new(x, y, RIGHT);
    let mut svg = frame.axes("layer", "norm", "");
    let slot = frame.px(1.0) - frame.px(0.0);
    for (layer, q) in layers.iter().enumerate() {
        let (x, color) = (frame.px(layer as f64), format!("var(--layer-{layer})"));
        let (low, high) = (frame.py(q[0]), frame.py(q[8]));
        let _ = write!(svg, r#"<path class="line" style="stroke:{color}" d="M{x:.1} {low:.1}V{high:.1}"/>"#);
        for (from, to, width, opacity) in [(2, 6, 0.3 * slot, 0.35), (3, 5, 0.5 * slot, 1.0)] {
            let (width, top) = (width.min(48.0), frame.py(q[to]));
            let _ = write!(
                svg,
                r#"<rect style="fill:{color};opacity:{opacity}" x="{:.1}" y="{top:.1}" width="{width:.1}" height="{:.1}"/>"#,
                x - width / 2.0,
                (frame.py(q[from]) - top).max(0.5)
            );
        }
        let half = (0.3 * slot).min(28.0);
        let _ = write!(svg, r#"<path class="median" d="M{:.1} {:.1}h{:.1}"/>"#, x - half, frame.py(q[4]), 2.0 * half);
    }
    let places: Vec<f64> = (0..layers.len()).map(|layer| layer as f64).collect();
    svg.push_str(&frame.strips(&places, |place| {
        let q = &layers[place as usize];
        format!(
            "layer {place}\nlargest {}\n95 % below {}\nmedian {}\n5 % below {}\nsmallest {}",
            short(q[8]),
            short(q[6]),
            short(q[4]),
            short(q[2]),
            short(q[0])
        )
    }));
    figure(title, note, "", &svg, HEIGHT)
}
