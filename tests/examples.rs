//! The classroom examples run, and what they show is so.

#[path = "../examples/attention_head.rs"]
mod attention_head;
#[allow(dead_code)] // its main
#[path = "../examples/stochastic_activation.rs"]
mod stochastic_activation;
#[allow(dead_code)] // its main
#[path = "../examples/two_moons.rs"]
mod two_moons;

#[test]
fn attention_by_hand_is_the_fused_op() {
    attention_head::main(); // which compares them
}

#[test]
fn two_moons_are_told_apart() {
    let accuracy = two_moons::train_and_draw();
    assert!(accuracy >= 0.99, "two_moons: accuracy {accuracy}");
}

/// A draw is RELU or SILU for x < 0 and the identity above, in value and gradient; their mean is the expectation.
#[test]
fn stochastic_activation_is_drawn_as_it_is() {
    let curves = stochastic_activation::curves();
    for panel in 0..2 {
        let [draws, relu, silu, expectation, mean] =
            curves.each_ref().map(|curve| curve[panel].to_vec::<f32>().unwrap());
        let rows = draws.len() / relu.len();
        for (i, &x) in stochastic_activation::grid().iter().enumerate() {
            let what = format!("stochastic_activation: panel {panel}, x = {x}");
            let column = || draws.iter().skip(i).step_by(relu.len());
            let on_silu = column().filter(|&&y| y == silu[i] && x < 0.0).count();
            let on_relu = column().filter(|&&y| y == relu[i]).count();
            assert_eq!(on_silu + on_relu, rows, "{what}: a draw is on neither curve");
            // Bernoulli draws with p = 1/2: five standard deviations of the mean, and the rounding of a sum of `rows` terms.
            let spread = if x < 0.0 { (silu[i] - relu[i]).abs() } else { 0.0 };
            let bound =
                5.0 * 0.5 * spread / (rows as f32).sqrt() + rows as f32 * f32::EPSILON * relu[i].abs().max(spread);
            let off = (mean[i] - expectation[i]).abs();
            assert!(off <= bound, "{what}: the mean is off by {off}, bound {bound}");
        }
    }
}
