//! Tensors as text.

use crate::{DType, Tensor};
use half::bf16;
use std::fmt;

/// Tensors with more elements than this are shortened.
const SHORTEN_ABOVE: usize = 1000;

/// How many are shown at each end of a shortened axis.
const EDGE: usize = 3;

impl fmt::Debug for Tensor {
    /// The type, the shape and the device, not the elements: `Tensor(f32 [2, 3] on cpu)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {}", self.dtype, self.shape)?;
        if !self.is_contiguous() {
            write!(f, " strides {}", self.strides)?;
        }
        write!(f, " on {:?})", self.device())
    }
}

/// The elements in nested brackets, as NumPy prints them, in columns of one width. Four digits behind the point, or as many
/// as the precision says (`{:.2}`); as powers of ten where numbers are too large, too small or too far apart for that. Of
/// more than 1000 elements the first and last three along each axis are shown.
impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.elements() == 0 {
            return f.write_str("[]");
        }
        let layout = Layout { shape: &self.shape, shortened: self.elements() > SHORTEN_ABOVE };
        let mut shown = Vec::new();
        layout.for_each_shown(0, 0, &mut |element| shown.push(element));
        let numbers = |at: &dyn Fn(usize) -> f32| {
            let shown: Vec<f32> = shown.iter().map(|&i| at(i)).collect();
            decimals(&shown, f.precision().unwrap_or(4))
        };
        let texts: Result<Vec<String>, _> = match self.dtype {
            DType::F32 => self.to_vec::<f32>().map(|data| numbers(&|i| data[i])),
            DType::Bf16 => self.to_vec::<bf16>().map(|data| numbers(&|i| data[i].to_f32())),
            DType::U32 => self.to_vec::<u32>().map(|data| shown.iter().map(|&i| data[i].to_string()).collect()),
        };
        match texts {
            Ok(texts) => layout.write(f, 0, &mut texts.iter(), texts.iter().map(String::len).max().unwrap_or(0)),
            Err(e) => write!(f, "{self:?}: {e}"), // the GPU failed
        }
    }
}

/// All numbers in one notation. The limits are NumPy's.
fn decimals(x: &[f32], precision: usize) -> Vec<String> {
    let sizes = || x.iter().map(|x| x.abs()).filter(|x| x.is_finite() && *x > 0.0);
    let (min, max) = (sizes().fold(f32::INFINITY, f32::min), sizes().fold(0.0, f32::max));
    let powers = max >= 1e8 || min < 1e-4 || max / min > 1000.0;
    let text = |x: &f32| match (x.is_finite(), powers) {
        (true, true) => format!("{x:.precision$e}"),
        (true, false) => format!("{x:.precision$}"),
        (false, _) => format!("{x}"),
    };
    x.iter().map(text).collect()
}

/// Which elements are shown, and where.
struct Layout<'a> {
    shape: &'a [usize],
    shortened: bool,
}

impl Layout<'_> {
    /// The positions along an axis; `None` stands for those left out.
    fn along(&self, axis: usize) -> impl Iterator<Item = Option<usize>> {
        let n = self.shape[axis];
        let left_out = if self.shortened && n > 2 * EDGE { EDGE..n - EDGE } else { n..n };
        let gap = (!left_out.is_empty()).then_some(None);
        (0..left_out.start).map(Some).chain(gap).chain((left_out.end..n).map(Some))
    }

    /// The shown elements, as row-major positions; `first` is that of the part at hand.
    fn for_each_shown(&self, axis: usize, first: usize, f: &mut impl FnMut(usize)) {
        if axis == self.shape.len() {
            return f(first);
        }
        let stride: usize = self.shape[axis + 1..].iter().product();
        for i in self.along(axis).flatten() {
            self.for_each_shown(axis + 1, first + i * stride, f);
        }
    }

    /// Writes the part from `axis` on, taking the texts in order.
    fn write<'t>(
        &self,
        f: &mut fmt::Formatter<'_>,
        axis: usize,
        texts: &mut impl Iterator<Item = &'t String>,
        width: usize,
    ) -> fmt::Result {
        let behind = self.shape.len() - axis;
        if behind == 0 {
            return texts.next().map_or(Ok(()), |text| write!(f, "{text:>width$}"));
        }
        f.write_str("[")?;
        for (i, position) in self.along(axis).enumerate() {
            match (i, behind) {
                (0, _) => {}
                (_, 1) => f.write_str(" ")?,
                _ => write!(f, "{:\n<lines$}{:indent$}", "", "", lines = behind - 1, indent = axis + 1)?,
            }
            match position {
                Some(_) => self.write(f, axis + 1, texts, width)?,
                None => f.write_str("...")?,
            }
        }
        f.write_str("]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting(shape: &[usize]) -> Tensor {
        let n = shape.iter().product::<usize>();
        Tensor::from_slice(&(0..n as u32).collect::<Vec<_>>(), shape)
    }

    #[test]
    fn elements_stand_in_columns() {
        let x = Tensor::from_slice(&[1.0f32, -0.5, 10.25, f32::NAN, f32::INFINITY, 0.0], [2, 3]);
        assert_eq!(x.to_string(), "[[ 1.0000 -0.5000 10.2500]\n [    NaN     inf  0.0000]]");
        assert_eq!(format!("{x:.1}"), "[[ 1.0 -0.5 10.2]\n [ NaN  inf  0.0]]");
        assert_eq!(x.t().to_string(), "[[ 1.0000     NaN]\n [-0.5000     inf]\n [10.2500  0.0000]]");
        let rounded = Tensor::from_slice(&[1.0f32, 0.3].map(bf16::from_f32), [2]);
        assert_eq!(format!("{rounded} {rounded:?}"), "[1.0000 0.3008] Tensor(bf16 [2] on cpu)");
        assert_eq!(Tensor::scalar(2.5).to_string(), "2.5000");
        assert_eq!(Tensor::zeros([3, 0]).to_string(), "[]");
        assert_eq!(counting(&[4]).to_string(), "[0 1 2 3]");
        assert_eq!(counting(&[2, 1, 2]).to_string(), "[[[0 1]]\n\n [[2 3]]]");
    }

    #[test]
    fn numbers_far_apart_are_powers_of_ten() {
        let text = |x: &[f32]| Tensor::from_slice(x, [x.len()]).to_string();
        assert_eq!(text(&[1.0, 1e-5]), "[ 1.0000e0 1.0000e-5]");
        assert_eq!(text(&[1.0, 2000.0]), "[1.0000e0 2.0000e3]");
        assert_eq!(text(&[0.0, 1000.0]), "[   0.0000 1000.0000]");
    }

    #[test]
    fn many_elements_are_shortened_along_every_long_axis() {
        assert_eq!(counting(&[1001]).to_string(), "[   0    1    2 ...  998  999 1000]");
        let x = counting(&[300, 4]);
        let rows = ["[[   0    1    2    3]", " [   4    5    6    7]", " [   8    9   10   11]", " ..."];
        let last = [" [1188 1189 1190 1191]", " [1192 1193 1194 1195]", " [1196 1197 1198 1199]]"];
        assert_eq!(x.to_string(), [&rows[..], &last[..]].concat().join("\n"));
        assert!(!counting(&[1000]).to_string().contains("..."));
    }

    #[test]
    fn debug_names_type_shape_strides_and_device() {
        let x = Tensor::zeros([2, 3]);
        assert_eq!(format!("{x:?}"), "Tensor(f32 [2, 3] on cpu)");
        assert_eq!(format!("{:?}", x.t()), "Tensor(f32 [3, 2] strides [1, 3] on cpu)");
        assert_eq!(format!("{:?}", counting(&[1])), "Tensor(u32 [1] on cpu)");
    }
}
