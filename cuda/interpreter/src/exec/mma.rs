//! `mma.sync`.
//!
//! Products are exact; their sum with C is made in f64 in the order of k and rounded once to f32: within one rounding
//! of the exact result wherever f64 holds the sum. The device's order and its rounding inside are not specified (it cuts
//! sums off after aligning their terms), so results are compared within a bound that covers both, for each instruction
//! `(k + 4) 2^-23 (|c| + sum |a b|)`.
//!
//! Lanes, with `group = lane / 4` and `t = lane % 4`, `w` elements in a register (2 of 16 bits, 4 of 8, 1 of tf32):
//! - A `[16, k]`: register i holds row `group + 8 (i % 2)`, columns `w t + 4 w (i / 2) ..`
//! - B `[k, 8]`: register i holds column `group`, rows `w t + 4 w i ..`
//! - C, D `[16, 8]`: register i holds row `group + 8 (i / 2)`, column `2 t + i % 2`

use super::warp::Warp;
use crate::arithmetic::small_float::{bf16_value, f16_value};
use crate::arithmetic::{LANES, Lanes};
use crate::program::{Mma, MmaElement, Slot};

/// Rows of A, and the largest k.
const M: usize = 16;
const N: usize = 8;
const MAX_K: usize = 32;

fn elements_in_register(element: MmaElement) -> usize {
    match element {
        MmaElement::F16 | MmaElement::Bf16 => 2,
        MmaElement::Tf32 => 1,
        MmaElement::S8 | MmaElement::U8 => 4,
    }
}

/// Element `i` of a register; f64 holds each exactly.
fn element(kind: MmaElement, register: u64, i: usize) -> f64 {
    match kind {
        MmaElement::F16 => f16_value((register >> (16 * i)) as u16).into(),
        MmaElement::Bf16 => bf16_value((register >> (16 * i)) as u16).into(),
        // The low 13 bits of an f32 are not looked at.
        MmaElement::Tf32 => f32::from_bits(register as u32 & !0x1fff).into(),
        MmaElement::S8 => f64::from((register >> (8 * i)) as u8 as i8),
        MmaElement::U8 => f64::from((register >> (8 * i)) as u8),
    }
}

impl Warp {
    pub(super) fn mma(&mut self, mma: &Mma) {
        let (mut a, mut b) = ([[0.0; MAX_K]; M], [[0.0; MAX_K]; N]);
        let row = |slot: Slot| &self.registers[slot as usize];
        let width = elements_in_register(mma.a_element);
        for lane in 0..LANES {
            let (group, t) = (lane / 4, lane % 4);
            for (i, &slot) in mma.a.iter().enumerate() {
                let (row_of_a, first) = (group + 8 * (i % 2), width * (t + 4 * (i / 2)));
                for e in 0..width {
                    a[row_of_a][first + e] = element(mma.a_element, row(slot)[lane], e);
                }
            }
            for (i, &slot) in mma.b.iter().enumerate() {
                for e in 0..width {
                    b[group][width * (t + 4 * i) + e] = element(mma.b_element, row(slot)[lane], e);
                }
            }
        }
        let integral = matches!(mma.a_element, MmaElement::S8 | MmaElement::U8);
        let mut sums = [[0; LANES]; 4];
        for (i, sums) in sums.iter_mut().enumerate() {
            let c: &Lanes = row(mma.c[i]);
            for (lane, sum) in sums.iter_mut().enumerate() {
                let (a, b) = (&a[lane / 4 + 8 * (i / 2)], &b[2 * (lane % 4) + i % 2]);
                let products = a[..mma.k].iter().zip(&b[..mma.k]).map(|(a, b)| a * b);
                *sum = if integral {
                    // Sums of bytes are exact, and wrap as 32 bits do.
                    u64::from((c[lane] as u32).wrapping_add(products.sum::<f64>() as i64 as u32))
                } else {
                    let c = f64::from(f32::from_bits(c[lane] as u32));
                    let sum = products.fold(c, |sum, p| sum + p) as f32;
                    if sum.is_nan() { 0x7fff_ffff } else { sum.to_bits().into() }
                };
            }
        }
        for (to, sums) in mma.d.iter().zip(&sums) {
            self.write(*to, u32::MAX, sums);
        }
    }
}
