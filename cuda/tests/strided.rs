//! Copies from windows and sums into them, in the interpreter, against the plainest loops.

use cuda::ops::strided::{add_to_range, gather};
use cuda_testing::{bits, device, on, stale};
use kernels::testing::uniform;

#[test]
fn gather_follows_the_strides() {
    let device = device();
    let words: Vec<u32> = (0..5000).collect();
    let src = on(&device, &words);
    let windows: [(&[usize], &[usize]); 8] = [
        (&[], &[]),
        (&[300], &[7]),
        (&[17, 31], &[1, 17]),
        (&[3, 1, 40], &[100, 9999, 2]),
        (&[2, 3, 4, 5], &[60, 20, 5, 1]),
        (&[2, 3, 2, 3, 2], &[1, 2, 6, 12, 36]),
        (&[4, 5, 6], &[0, 3, 0]),
        (&[4, 0, 6], &[1, 1, 1]),
    ];
    for (extents, strides) in windows {
        let expected: Vec<u32> = (0..extents.iter().product())
            .map(|mut i: usize| {
                let axes = extents.iter().zip(strides).rev();
                axes.map(|(n, stride)| (i % n * stride, i /= n).0).sum::<usize>() as u32
            })
            .collect();
        let mut dst = stale(&device, expected.len());
        gather(src.as_slice(), extents, strides, dst.as_mut()).unwrap();
        assert_eq!(dst.to_vec().unwrap(), expected, "gather {extents:?} {strides:?}");
    }
}

#[test]
#[should_panic(expected = "gather: extents [2, 3] with strides [3, 1] of 5 elements")]
fn gather_stays_inside() {
    let device = device();
    let _ = gather(on(&device, &[0u32; 5]).as_slice(), &[2, 3], &[3, 1], stale(&device, 6).as_mut());
}

#[test]
fn add_to_range_adds_rows_that_are_apart() {
    let device = device();
    for (rows, len, stride) in [(1, 5, 5), (3, 4, 4), (7, 5, 9), (300, 2, 3), (0, 2, 3)] {
        let (x, old) = (uniform(1, rows * len), uniform(2, (rows * stride).max(1)));
        let mut dst = on(&device, &old);
        add_to_range(on(&device, &x).as_slice(), len, stride, dst.as_mut()).unwrap();
        let mut expected = old;
        (0..x.len()).for_each(|i| expected[i / len * stride + i % len] += x[i]);
        assert_eq!(bits(&dst.to_vec().unwrap()), bits(&expected), "add_to_range {rows} rows of {len}, {stride} apart");
    }
}
