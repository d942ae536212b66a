use crate::adamw::AdamW;

/// Specification of [`adamw`](crate::adamw::adamw): returns the new `(param, m, v)`.
pub fn adamw(
    args: &AdamW,
    grad_scale: f32,
    param: &[f32],
    grad: &[f32],
    m: &[f32],
    v: &[f32],
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (b1, b2) = (args.beta1 as f64, args.beta2 as f64);
    let correction = |beta: f64| 1.0 - beta.powf(args.step as f64);
    let (mut param_new, mut m_new, mut v_new) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..param.len() {
        let g = grad[i] as f64 * grad_scale as f64;
        let m = b1 * m[i] as f64 + (1.0 - b1) * g;
        let v = b2 * v[i] as f64 + (1.0 - b2) * g * g;
        let update = (m / correction(b1)) / ((v / correction(b2)).sqrt() + args.eps as f64);
        let decayed = param[i] as f64 * (1.0 - args.lr as f64 * args.weight_decay as f64);
        param_new.push(decayed - args.lr as f64 * update);
        m_new.push(m);
        v_new.push(v);
    }
    (param_new, m_new, v_new)
}
