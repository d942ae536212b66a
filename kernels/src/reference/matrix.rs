use crate::{Mat, Weight};

/// Specification of [`gemm`](crate::gemm::gemm): returns `(A B, |A| |B|)`, row-major `[M, N]`.
pub fn gemm<A: Weight, B: Weight>(a: Mat<A>, b: Mat<B>) -> (Vec<f64>, Vec<f64>) {
    let (mut c, mut abs) = (Vec::new(), Vec::new());
    for i in 0..a.rows() {
        for j in 0..b.cols() {
            let terms = || (0..a.cols()).map(|k| a.at(i, k) as f64 * b.at(k, j) as f64);
            c.push(terms().sum());
            abs.push(terms().map(f64::abs).sum());
        }
    }
    (c, abs)
}

/// Specification of [`embedding`](crate::embedding::embedding).
pub fn embedding(table: &[f32], tokens: &[u32], d_model: usize) -> Vec<f64> {
    let row = |t: u32| &table[t as usize * d_model..][..d_model];
    tokens.iter().flat_map(|&t| row(t).iter().map(|&x| x as f64)).collect()
}

/// Specification of [`embedding_backward`](crate::embedding::embedding_backward): returns the gradient of a table of `vocab`
/// rows, and the sums of absolute values.
pub fn embedding_backward(d_out: &[f32], tokens: &[u32], d_model: usize, vocab: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut d_table, mut abs) = (vec![0.0; vocab * d_model], vec![0.0; vocab * d_model]);
    for (&t, d_out) in tokens.iter().zip(d_out.chunks(d_model)) {
        for (i, &d) in d_out.iter().enumerate() {
            d_table[t as usize * d_model + i] += d as f64;
            abs[t as usize * d_model + i] += d.abs() as f64;
        }
    }
    (d_table, abs)
}
