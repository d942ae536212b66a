//! What changes with the step: the learning rate, and psi.

use crate::config::TrainConfig;
use model::Psi;

/// Warm-up, then half a cosine from `lr` to `min_lr_ratio lr` over the rest of the run.
///
/// One schedule over the whole run: a switch of psi changes nothing here (arXiv 2509.22358).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    lr: f64,
    min_lr_ratio: f64,
    warmup_steps: usize,
    steps: usize,
}

impl LearningRate {
    /// That of a configuration.
    pub fn new(config: &TrainConfig) -> LearningRate {
        let t = &config.train;
        LearningRate { lr: t.lr, min_lr_ratio: t.min_lr_ratio, warmup_steps: t.warmup_steps, steps: t.steps }
    }

    /// Of step `s` (from 0): `lr (s + 1) / warmup_steps` while that is below `lr`; then
    /// `lr (r + (1 - r) (1 + cos(pi x)) / 2)`, x from 0 at the end of the warm-up to 1 at the last step, r `min_lr_ratio`.
    pub fn at(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.lr * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let last = self.steps.saturating_sub(1).max(self.warmup_steps);
        let x = if last == self.warmup_steps {
            0.0
        } else {
            (step - self.warmup_steps) as f64 / (last - self.warmup_steps) as f64
        };
        let cosine = (1.0 + (std::f64::consts::PI * x).cos()) / 2.0;
        self.lr * (self.min_lr_ratio + (1.0 - self.min_lr_ratio) * cosine)
    }
}

/// Which psi at which step, with or without Swi+FT(alpha).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Phases {
    first: Psi,
    switch: Option<(usize, Psi, f64)>,
    steps: usize,
    /// The alpha of a switch that was asked for and comes to less than half a step.
    none_for: Option<f64>,
}

impl Phases {
    /// Those of a configuration. The switch is at step `round((1 - alpha) steps)`; none if that is the end or psi is the same.
    pub fn new(config: &TrainConfig) -> Phases {
        let (first, steps) = (config.activation.psi(), config.train.steps);
        let asked = config.train.switch.filter(|s| first != Psi::from(s.to) && s.alpha > 0.0);
        let switch = asked.and_then(|s| {
            let at = ((1.0 - s.alpha) * steps as f64).round() as usize;
            (at < steps).then_some((at, Psi::from(s.to), s.alpha))
        });
        let none_for = asked.filter(|_| switch.is_none()).map(|s| s.alpha);
        Phases { first, switch, steps, none_for }
    }

    /// psi of step `s`, from 0.
    pub fn psi(&self, step: usize) -> Psi {
        match self.switch {
            Some((at, to, _)) if step >= at => to,
            _ => self.first,
        }
    }

    /// The first step after the switch, if there is one inside the run (not at its start).
    pub fn switch_step(&self) -> Option<usize> {
        self.switch.map(|(at, ..)| at).filter(|&at| at > 0)
    }
}

impl std::fmt::Display for Phases {
    /// `steps 0 to 899: StochA(0.5); steps 900 to 999: RELU (Swi+FT, alpha = 0.1)`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let part = |from: usize, to: usize, psi: Psi| {
            if from + 1 == to { format!("step {from}: {psi}") } else { format!("steps {from} to {}: {psi}", to - 1) }
        };
        match self.switch {
            None => {
                f.write_str(&part(0, self.steps, self.first))?;
                self.none_for.map_or(Ok(()), |alpha| write!(f, "; too few steps for Swi+FT with alpha = {alpha}"))
            }
            Some((at, to, alpha)) => {
                if at > 0 {
                    write!(f, "{}; ", part(0, at, self.first))?;
                }
                write!(f, "{} (Swi+FT, alpha = {alpha})", part(at, self.steps, to))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ActivationKind, ActivationSection};
    use model::{HiddenAct, Switch};

    fn config(kind: ActivationKind, p: Option<f64>, alpha: Option<f64>, steps: usize) -> TrainConfig {
        let activation = ActivationSection { kind, p, negative: None, positive: None };
        let mut config = TrainConfig { activation, ..TrainConfig::default() };
        config.train.steps = steps;
        config.train.switch = alpha.map(|alpha| Switch { to: HiddenAct::Relu, alpha });
        config
    }

    #[test]
    fn the_phases_in_words() {
        use ActivationKind::*;
        for (kind, p, alpha, steps, words) in [
            (
                Stochastic,
                Some(0.5),
                Some(0.1),
                1000,
                "steps 0 to 899: StochA(0.5); steps 900 to 999: RELU (Swi+FT, alpha = 0.1)",
            ),
            // round(9.5) = 10: the end
            (Silu, None, Some(0.05), 10, "steps 0 to 9: SILU; too few steps for Swi+FT with alpha = 0.05"),
            (Silu, None, Some(0.1), 10, "steps 0 to 8: SILU; step 9: RELU (Swi+FT, alpha = 0.1)"),
            (Silu, None, None, 7, "steps 0 to 6: SILU"),
            (Silu, None, Some(1.0), 7, "steps 0 to 6: RELU (Swi+FT, alpha = 1)"),
            (Silu, None, Some(0.0), 7, "steps 0 to 6: SILU"),
            (Relu, None, Some(0.5), 1, "step 0: RELU"),
        ] {
            let phases = Phases::new(&config(kind, p, alpha, steps));
            assert_eq!(phases.to_string(), words);
        }
        let phases = Phases::new(&config(Stochastic, Some(0.3), Some(0.2), 50));
        assert_eq!(phases.switch_step(), Some(40));
        assert_eq!((phases.psi(39), phases.psi(40)), (Psi::stochastic(0.3), Psi::Relu));
    }

    #[test]
    fn the_learning_rate_rises_then_falls_to_its_minimum() {
        let mut c = config(ActivationKind::Relu, None, None, 1000);
        c.train.warmup_steps = 100;
        let lr = LearningRate::new(&c);
        assert_eq!(lr.at(0), 2e-3 / 100.0);
        assert_eq!(lr.at(99), 2e-3);
        assert_eq!(lr.at(100), 2e-3);
        // Roundings of 2e-3, 0.1, their product and 2e-4: four halves of an ULP.
        assert!((lr.at(999) - 2e-4).abs() <= 2.0 * f64::EPSILON * 2e-4, "{}", lr.at(999));
        assert!((100..999).all(|s| lr.at(s + 1) < lr.at(s)));
        // A warm-up longer than the run, none at all, and a run of one step.
        for (warmup, steps) in [(100, 10), (0, 5), (0, 1), (1, 1), (1, 2)] {
            (c.train.warmup_steps, c.train.steps) = (warmup, steps);
            let lr = LearningRate::new(&c);
            assert!((0..steps).all(|s| (0.0..=2e-3).contains(&lr.at(s))), "{warmup} of {steps}");
        }
    }
}
