//! A classifier on `autograd` alone: two half-moons of points, a small network, gradient descent written out.
//!
//! `cargo run --release --example two_moons`

use autograd::{Gradients, Tape, Var};
use rand::{RngExt, SeedableRng};
use tensor::{Tensor, ops};

const POINTS: usize = 200;
const HIDDEN: usize = 16; // width of both hidden layers

fn main() {
    println!("{:.1} % of the points are on the right side", 100.0 * train_and_draw());
}

/// Trains and draws; returns the share of points on the right side.
pub fn train_and_draw() -> f64 {
    let mut rng = rand_xoshiro::Xoshiro256PlusPlus::seed_from_u64(0);
    let mut random = |n, size: f32| -> Vec<f32> { (0..n).map(|_| rng.random_range(-size..size)).collect() };

    // Two half circles, a point on each in turn, with noise. x [N, 2]; labels y [N, 1], +1 on the upper moon and -1 below.
    let moon = |i: usize| {
        let angle = std::f32::consts::PI * i as f32 / POINTS as f32;
        if i.is_multiple_of(2) { [angle.cos(), angle.sin()] } else { [1.0 - angle.cos(), 0.5 - angle.sin()] }
    };
    let noise = random(2 * POINTS, 0.2);
    let points: Vec<f32> = (0..POINTS).flat_map(moon).zip(noise).map(|(x, noise)| x + noise).collect();
    let labels = [1.0, -1.0].repeat(POINTS / 2);
    let (x, y) = (Tensor::from_slice(&points, [POINTS, 2]), Tensor::from_slice(&labels, [POINTS, 1]));

    // Weights [out, in] of a size that keeps the variance from layer to layer; biases [out], zero.
    let mut weight = |out, inner| Tensor::from_slice(&random(out * inner, (3.0 / inner as f32).sqrt()), [out, inner]);
    let (w1, w2, w3) = (weight(HIDDEN, 2), weight(HIDDEN, HIDDEN), weight(1, HIDDEN));
    let mut params = [w1, Tensor::zeros([HIDDEN]), w2, Tensor::zeros([HIDDEN]), w3, Tensor::zeros([1])];

    for step in 0..=400 {
        let tape = Tape::new();
        let leaves = params.each_ref().map(|p| tape.leaf(p.clone()));
        let [x, y] = [&x, &y].map(|data| tape.constant(data.clone()));
        // The probability of the right label is sigmoid(y score); the loss is the mean of -ln of it.
        let loss = -(y * network(&x, &leaves)).sigmoid().log().mean();
        if step % 100 == 0 {
            println!("step {step:3}  loss {:.4}", loss.value().item());
        }
        let mut grads = Gradients::default();
        loss.backward(&mut grads);
        for (param, leaf) in params.iter_mut().zip(&leaves) {
            *param = ops::sub(param, &ops::scale(0.5, grads.get(leaf).expect("the loss depends on every parameter")));
        }
    }

    let score = |x: &[f32]| -> Vec<f32> {
        let tape = Tape::without_gradients();
        let x = tape.constant(Tensor::from_slice(x, [x.len() / 2, 2]));
        network(&x, &params.each_ref().map(|p| tape.constant(p.clone()))).value().to_vec().expect("on the CPU")
    };
    draw(&points, &labels, score);
    score(&points).iter().zip(&labels).filter(|(score, label)| *score * *label > 0.0).count() as f64 / POINTS as f64
}

/// `relu(relu(x W1^T + b1) W2^T + b2) W3^T + b3`: a score [N, 1] for points [N, 2].
fn network<'t>(x: &Var<'t>, [w1, b1, w2, b2, w3, b3]: &[Var<'t>; 6]) -> Var<'t> {
    let h = (x.linear(w1) + b1).relu(); // [N, HIDDEN]
    let h = (h.linear(w2) + b2).relu(); // [N, HIDDEN]
    h.linear(w3) + b3 // [N, 1]
}

/// The two regions as `.` and blank, the points of the upper moon as `o` and of the lower as `x`.
fn draw(points: &[f32], labels: &[f32], score: impl Fn(&[f32]) -> Vec<f32>) {
    const COLUMNS: usize = 72;
    let centre = |i: usize| [(i % COLUMNS) as f32 / 20.0 - 1.3, 1.3 - (i / COLUMNS) as f32 / 11.0];
    let centres: Vec<f32> = (0..24 * COLUMNS).flat_map(centre).collect();
    let mut cells: Vec<char> = score(&centres).iter().map(|&s| if s > 0.0 { '.' } else { ' ' }).collect();
    for (p, &label) in points.chunks(2).zip(labels) {
        let (column, row) = ((p[0] + 1.3) * 20.0, (1.3 - p[1]) * 11.0);
        cells[row.round() as usize * COLUMNS + column.round() as usize] = if label > 0.0 { 'o' } else { 'x' };
    }
    cells.chunks(COLUMNS).for_each(|row| println!("{}", row.iter().collect::<String>()));
}
