//! What the kernels of the GPU are held to: each against the reference of its name in `kernels::reference`, with derived bounds, or against the bits of
//! the CPU's kernel.
//!
//! A [`Check`] runs on any [`cuda::Device`]. On one that runs kernels in the interpreter, as the tests of `cuda` do, it takes small shapes, odd ones;
//! on a card it takes those and large ones besides ([`Size`]). It goes on after a comparison that fails, so that one run says all that is wrong, and tells how near
//! the worst comparison came to its bound. `silurian check --device cuda` runs them all.
//!
//! A new check is a function in the file of its family and a name in [`with_checks`], which makes it a test of `cuda` too.

mod attention;
mod decode;
mod decode_batch;
mod device;
mod elementwise;
mod gated_activation;
mod gemm;
mod gemm_gated_activation;
mod rows;
mod run;
mod strided;

pub use run::{Check, Failed, Outcome, Run, Size};

/// Gives the names of all checks to a macro: a line for each family, `family: name name;`.
#[macro_export]
macro_rules! with_checks {
    ($then:ident) => {
        $then! {
            device:
                buffers_are_copied_and_taken_apart
                pinned_memory_is_copied_to_and_from
                events_are_in_order
                a_graph_does_its_work_each_time_it_runs_and_keeps_its_memory;
            elementwise:
                unary_operations_match_reference
                log_matches_reference
                binary_operations_match_reference
                axpy_and_scale_match_reference
                narrow_and_widen_round_as_the_cpu_does
                sums_with_bf16_are_rounded_once
                adamw_matches_reference
                clip_factor_is_that_of_the_cpu_and_nan_changes_nothing;
            gated_activation:
                gated_activation_matches_reference
                gated_activation_has_the_bits_of_the_cpu
                gated_activation_of_bf16_is_that_of_f32_rounded
                the_stochastic_mask_is_that_of_the_cpu_for_a_million_elements;
            rows:
                rms_norm_matches_reference
                rms_norm_backward_matches_reference
                rope_matches_reference
                rope_has_the_bits_of_the_cpu
                embedding_matches_reference
                an_unknown_token_is_nan_in_embedding_and_nothing_backward
                embedding_backward_has_the_bits_of_the_cpu
                sums_match_reference
                sum_rows_and_count_positive_match_reference
                first_non_finite_is_the_first
                softmax_loss_matches_reference
                softmax_loss_does_not_hide_nan_or_a_wrong_target
                lm_head_loss_matches_reference;
            strided:
                gather_follows_the_strides
                add_to_range_adds_rows_that_are_apart;
            gemm:
                gemm_bf16_matches_reference_in_all_transposes
                gemm_bf16_add_has_the_bits_of_adding_in_place
                gemm_bf16_takes_operands_that_begin_anywhere
                gemm_matches_reference_in_all_transposes;
            gemm_gated_activation:
                gemm_gated_activation_has_the_bits_of_both_kernels
                gemm_gated_activation_backward_has_the_bits_of_both_kernels;
            attention:
                attention_matches_reference_for_every_length
                attention_matches_reference_over_blocks
                attention_matches_reference_for_every_grouping
                attention_matches_reference_for_every_head_dim
                attention_matches_reference_for_heads_of_128
                attention_is_stable_for_large_scores
                attention_does_not_hide_nan
                attention_takes_operands_that_begin_anywhere;
            decode:
                gemv_matches_reference
                ffn_sparse_matches_reference_and_has_the_bits_of_ffn_dense
                ffn_dense_draws_as_the_cpu_does
                attention_cached_matches_reference
                a_recorded_attention_cached_follows_the_position;
            decode_batch:
                gemv_batch_has_the_bits_of_gemv
                a_token_of_ffn_batch_has_the_bits_that_it_has_alone
                ffn_batch_draws_for_each_token_what_it_draws_alone
                a_token_of_attention_cached_batch_has_the_bits_that_it_has_alone
                kv_append_turns_as_rope_and_writes_each_token_into_its_cache;
        }
    };
}

macro_rules! table {
    ($($family:ident: $($name:ident)+;)+) => {
        /// All checks, in the order in which they are run: what others rest on comes first.
        pub static CHECKS: &[Check] = &[$($(Check {
            family: stringify!($family),
            name: stringify!($name),
            run: $family::$name,
        },)+)+];
    };
}
with_checks!(table);
