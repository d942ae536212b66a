//! StochA(p) and its gradient (arXiv 2509.22358), drawn: single draws, and the mean of many against the expectation.
//!
//! `cargo run --release --example stochastic_activation` writes the picture stochastic_activation.svg.

use autograd::{Gradients, Tape, Var};
use tensor::{Activation, MaskSite, Tensor, ops};

const P: f64 = 0.5; // the probability of SILU for x < 0
const DRAWS: usize = 4000;
const GRID: usize = 74;

fn main() -> std::io::Result<()> {
    println!("{DRAWS} draws at each of {GRID} points: open stochastic_activation.svg");
    std::fs::write("stochastic_activation.svg", picture(&curves()))
}

/// The points x, from -5.95 to 1.35: never at 0, where psi has a kink.
pub fn grid() -> Vec<f32> {
    (0..GRID).map(|i| i as f32 / 10.0 - 5.95).collect()
}

/// `f(x)` and, from the tape, `f'(x)`, over the grid. Shapes: [rows, GRID], where a stochastic f draws each row anew.
fn value_and_gradient(rows: usize, f: impl for<'t> Fn(&Var<'t>) -> Var<'t>) -> [Tensor; 2] {
    let tape = Tape::new();
    let x = tape.leaf(Tensor::from_slice(&grid(), [GRID]).broadcast_to([rows, GRID]));
    let y = f(&x);
    let mut grads = Gradients::default();
    y.sum().backward(&mut grads); // each element of y depends on its own x alone
    [y.into_value(), grads.get(&x).expect("y depends on x").clone()]
}

/// The draws [DRAWS, GRID], and RELU, SILU, expectation and mean of the draws [1, GRID]: values and gradients.
pub fn curves() -> [[Tensor; 2]; 5] {
    let site = MaskSite { seed: 0, first_token: 0, layer: 0, stream: 0, step: 0 };
    // The op of the transformer's FFN: psi(g) * u, here with u = 1.
    let draws = value_and_gradient(DRAWS, |g| {
        let u = g.tape().constant(Tensor::full(1.0, g.value().shape()));
        g.gated_activation(&u, Activation::stochastic(P, site))
    });
    let mean = draws.each_ref().map(|y| ops::scale(1.0 / DRAWS as f32, &ops::sum_to(y, [1, GRID])));
    // For x >= 0 psi is the identity. Below, RELU is 0, so (1 - p) RELU + p SILU is p SILU; and min(x, 0) = x - relu(x).
    let expectation = value_and_gradient(1, |x| x.relu() + (x - x.relu()).silu().scale(P as f32));
    [draws, value_and_gradient(1, |x| x.relu()), value_and_gradient(1, |x| x.silu()), expectation, mean]
}

/// Two panels of SVG, values and gradients.
fn picture(curves: &[[Tensor; 2]; 5]) -> String {
    // In the order of drawing. A line goes from point to point; a dot is a line of no length with round ends.
    let looks = [
        ("single draws", "h0M", "stroke='#ccc' stroke-width='9'"),
        ("RELU", "L", "stroke='#0072b2' stroke-width='2'"),
        ("SILU", "L", "stroke='#d55e00' stroke-width='2'"),
        ("expectation of psi", "L", "stroke='black' stroke-width='2'"),
        ("mean of all draws", "h0M", "stroke='#f0b000' stroke-width='4'"),
    ];
    let place = |panel: usize, x: f32, y: f32| (390.0 + 480.0 * panel as f32 + 58.0 * x, 298.0 - 170.0 * y);
    let text = |panel, x, y, text: &str| {
        let (x, y) = place(panel, x, y);
        format!("<text x='{x}' y='{y}'>{text}</text>\n")
    };
    let path = |panel, points: &[(f32, f32)], to: &str, look: &str| {
        let places = points.iter().map(|&(x, y)| place(panel, x, y)).map(|(x, y)| format!("{x:.1} {y:.1}"));
        format!("<path d='M{}h0' fill='none' stroke-linecap='round' {look}/>\n", places.collect::<Vec<_>>().join(to))
    };
    let mut svg = "<rect width='970' height='400' fill='white'/>\n".to_string();
    for (panel, title) in [format!("StochA({P}): value"), format!("StochA({P}): gradient")].iter().enumerate() {
        let ticks = [(-6.0, -0.5, "-6"), (-3.0, -0.5, "-3"), (0.0, -0.5, "0"), (1.45, 0.0, "0"), (1.45, 1.0, "1")];
        svg += &(text(panel, -6.0, 1.55, title) + &ticks.map(|(x, y, tick)| text(panel, x, y, tick)).concat());
        svg += &path(panel, &[(-6.0, 0.0), (1.4, 0.0), (0.0, 0.0), (0.0, 1.4), (0.0, -0.4)], "L", "stroke='#bbb'");
        for (i, (name, to, look)) in looks.into_iter().enumerate() {
            let y = curves[i][panel].to_vec::<f32>().expect("on the CPU");
            let points: Vec<_> = grid().into_iter().cycle().zip(y).take(3 * GRID).collect(); // of the draws, three rows
            let y = 1.35 - 0.13 * i as f32;
            svg += &path(panel, &points, to, look);
            svg += &(path(panel, &[(-6.0, y + 0.03), (-5.6, y + 0.03)], to, look) + &text(panel, -5.4, y, name));
        }
    }
    format!("<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 970 400' font-family='sans-serif'>\n{svg}</svg>\n")
}
