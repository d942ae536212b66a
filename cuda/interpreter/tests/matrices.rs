//! `mma` and `ldmatrix`: which lane holds what.

mod common;

use common::run;
use half::{bf16, f16};

/// Every form of mma, on small integers that all element types hold, against a plain product.
#[test]
fn matrix_products_of_a_warp() {
    let bf = |x: i32| u32::from(bf16::from_f32(x as f32).to_bits());
    let hf = |x: i32| u32::from(f16::from_f32(x as f32).to_bits());
    // The low 13 bits are to be ignored.
    let tf = |x: i32| (x as f32).to_bits() | 0x1fff;
    let byte = |x: i32| u32::from(x as u8);
    type Encode<'a> = &'a dyn Fn(i32) -> u32;
    // Shape and types, k, elements in a register, and how to write one.
    let forms: [(&str, usize, usize, Encode); 9] = [
        ("m16n8k16.row.col.f32.bf16.bf16.f32", 16, 2, &bf),
        ("m16n8k8.row.col.f32.bf16.bf16.f32", 8, 2, &bf),
        ("m16n8k16.row.col.f32.f16.f16.f32", 16, 2, &hf),
        ("m16n8k8.row.col.f32.f16.f16.f32", 8, 2, &hf),
        ("m16n8k8.row.col.f32.tf32.tf32.f32", 8, 1, &tf),
        ("m16n8k4.row.col.f32.tf32.tf32.f32", 4, 1, &tf),
        ("m16n8k32.row.col.s32.s8.s8.s32", 32, 4, &byte),
        ("m16n8k16.row.col.s32.s8.s8.s32", 16, 4, &byte),
        ("m16n8k32.row.col.s32.u8.s8.s32", 32, 4, &byte),
    ];
    for (form, k, width, encode) in forms {
        let unsigned = form.contains(".u8");
        let a = |row: usize, at_k: usize| (row * 7 + at_k * 3) as i32 % 11 - if unsigned { 0 } else { 5 };
        let b = |at_k: usize, column: usize| (at_k * 5 + column * 4) as i32 % 13 - 6;
        let c = |row: usize, column: usize| (row * 8 + column) as i32;
        let integral = form.contains("s32");
        let sum_bits = |x: i32| if integral { x as u32 } else { (x as f32).to_bits() };
        // Registers that a lane has of A (rows 0 to 7 and 8 to 15, then the second half of K) and of B.
        let b_registers = k / 4 / width;
        let pack = |element: &dyn Fn(usize) -> i32| {
            (0..width).fold(0u64, |word, e| word | u64::from(encode(element(e))) << (32 / width * e))
        };
        let rows: Vec<Vec<u64>> = (0..32)
            .map(|lane| {
                let (group, t) = (lane / 4, lane % 4);
                let of_a = |i: usize| pack(&|e| a(group + i % 2 * 8, i / 2 * (k / 2) + width * t + e));
                let of_b = |i: usize| pack(&|e| b(i * (k / 2) + width * t + e, group));
                let of_c = |i: usize| u64::from(sum_bits(c(group + i / 2 * 8, 2 * t + i % 2)));
                let mut row: Vec<u64> = (0..2 * b_registers).map(of_a).collect();
                row.resize(4, 0);
                row.extend((0..b_registers).map(of_b));
                row.resize(6, 0);
                row.extend((0..4).map(of_c));
                row
            })
            .collect();
        let list = |from: usize, n: usize| {
            let names: Vec<_> = (from..from + n).map(|i| format!("%r{i}")).collect();
            format!("{{{}}}", names.join(", "))
        };
        let loads: String = (0..10).map(|i| format!("ld.global.u32 %r{i}, [%in+{}];\n", 8 * i)).collect();
        // Sums of bytes are in .b32 registers, others in either.
        let (a_list, b_list, c_list) = (list(0, 2 * b_registers), list(4, b_registers), list(6, 4));
        for i in 0..4 {
            let body = format!(
                "{loads}mma.sync.aligned.{form} {}, {a_list}, {b_list}, {c_list};\nmov.b64 %rd9, {{%r{}, 0}};\n\
                 st.global.u64 [%out], %rd9;",
                list(10, 4),
                10 + i
            );
            for (lane, result) in run(&body, &rows).into_iter().enumerate() {
                let (row, column) = (lane / 4 + i / 2 * 8, 2 * (lane % 4) + i % 2);
                let expected = c(row, column) + (0..k).map(|at_k| a(row, at_k) * b(at_k, column)).sum::<i32>();
                assert_eq!(result as u32, sum_bits(expected), "mma {form} ({row}, {column})");
            }
        }
    }
}

/// ldmatrix gives lane l the elements 2 (l % 4) and the next of row l / 4 of each matrix, or of its columns.
#[test]
fn matrices_from_shared_memory() {
    let before = ".shared .align 16 .b8 rows[512];";
    for (count, trans) in [(1, ""), (2, ""), (4, ""), (1, ".trans"), (2, ".trans"), (4, ".trans")] {
        // Thread t writes row t: its eight elements of 16 bits are 256 t + 0, 1, ....
        let registers: Vec<_> = (1..=count).map(|i| format!("%r{i}")).collect();
        for i in 0..count {
            let body = format!(
                "mov.u32 %r10, rows; shl.b32 %r11, %tid, 4; add.u32 %r10, %r10, %r11; mul.lo.u32 %r12, %tid, 0x01000100;\n\
                 add.u32 %r13, %r12, 0x00010000; add.u32 %r14, %r12, 0x00030002; add.u32 %r15, %r12, 0x00050004;\n\
                 add.u32 %r16, %r12, 0x00070006; st.shared.v4.u32 [%r10], {{%r13, %r14, %r15, %r16}}; bar.warp.sync -1;\n\
                 ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{}}}, [%r10];\n\
                 mov.b64 %rd3, {{%r{}, 0}}; st.global.u64 [%out], %rd3;",
                registers.join(", "),
                i + 1
            );
            let results = common::run_with(ptx::Options::default(), before, &body, &vec![vec![0]; 32]).unwrap().0;
            for (lane, result) in results.into_iter().enumerate() {
                let element = |row: usize, column: usize| {
                    let (row, column) = if trans.is_empty() { (row, column) } else { (column, row) };
                    (256 * (8 * i + row) + column) as u64
                };
                let (row, column) = (lane / 4, 2 * (lane % 4));
                let expected = element(row, column) | element(row, column + 1) << 16;
                assert_eq!(result, expected, "ldmatrix x{count}{trans} matrix {i} lane {lane}");
            }
        }
    }
}
