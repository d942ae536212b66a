//! Copies from windows and sums into them, against the plainest loops.

use crate::Run;
use cuda::Error;
use cuda::ops::strided::{add_to_range, gather};
use kernels::testing::uniform;

pub fn gather_follows_the_strides(run: &mut Run) -> Result<(), Error> {
    type Window = (&'static [usize], &'static [usize]);
    let small: [Window; 8] = [
        (&[], &[]),
        (&[300], &[7]),
        (&[17, 31], &[1, 17]),
        (&[3, 1, 40], &[100, 9999, 2]),
        (&[2, 3, 4, 5], &[60, 20, 5, 1]),
        (&[2, 3, 2, 3, 2], &[1, 2, 6, 12, 36]),
        (&[4, 5, 6], &[0, 3, 0]),
        (&[4, 0, 6], &[1, 1, 1]),
    ];
    let of_a_card: [Window; 2] = [(&[1000, 1300], &[1, 1000]), (&[3, 70, 50, 111], &[388_500, 111, 7770, 1])];
    let words: Vec<u32> = (0..run.sizes(&[5000], &[1_300_000]).iter().sum::<usize>() as u32).collect();
    let src = run.on(&words)?;
    let halves = run.on(&words.iter().map(|&word| word as u16).collect::<Vec<_>>())?;
    for (extents, strides) in run.sizes(&small, &of_a_card) {
        let expected: Vec<u32> = (0..extents.iter().product())
            .map(|mut i: usize| {
                let axes = extents.iter().zip(strides).rev();
                axes.map(|(n, stride)| (i % n * stride, i /= n).0).sum::<usize>() as u32
            })
            .collect();
        let mut dst = run.stale(expected.len())?;
        gather(src.as_slice(), extents, strides, dst.as_mut())?;
        run.same(&format!("gather {extents:?} {strides:?}"), &dst.to_vec()?, &expected);
        // Elements of two bytes.
        let mut dst = run.stale(expected.len())?;
        gather(halves.as_slice(), extents, strides, dst.as_mut())?;
        let expected: Vec<u16> = expected.into_iter().map(|word| word as u16).collect();
        run.same(&format!("gather of 16 bits {extents:?} {strides:?}"), &dst.to_vec()?, &expected);
    }
    Ok(())
}

pub fn add_to_range_adds_rows_that_are_apart(run: &mut Run) -> Result<(), Error> {
    let small = [(1, 5, 5), (3, 4, 4), (7, 5, 9), (300, 2, 3), (0, 2, 3)];
    for (rows, len, stride) in run.sizes(&small, &[(3001, 1001, 1007)]) {
        let (x, old) = (uniform(1, rows * len), uniform(2, (rows * stride).max(1)));
        let mut dst = run.on(&old)?;
        add_to_range(run.on(&x)?.as_slice(), len, stride, dst.as_mut())?;
        let mut expected = old;
        (0..x.len()).for_each(|i| expected[i / len * stride + i % len] += x[i]);
        run.same_bits(&format!("add_to_range {rows} rows of {len}, {stride} apart"), &dst.to_vec()?, &expected);
    }
    Ok(())
}
