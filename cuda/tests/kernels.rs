//! Every check of `cuda_checks` as a test, in the interpreter; on a GPU with `KERNELS_CUDA_TEST=0`, where the large shapes are for, too:
//! `-- --include-ignored`.

use cuda_checks::{CHECKS, Size};
use cuda_testing::device;

macro_rules! tests {
    ($($family:ident: $($name:ident)+;)+) => {
        $(mod $family {
            $(#[test]
            fn $name() {
                super::passes(stringify!($family), stringify!($name), super::Size::Small);
            })+

            mod of_a_card {
                $(#[test]
                #[ignore = "a card's shapes take the interpreter minutes or hours: KERNELS_CUDA_TEST=0 cargo test --release -p cuda --test kernels -- --ignored"]
                fn $name() {
                    super::super::passes(stringify!($family), stringify!($name), super::super::Size::Card);
                })+
            }
        })+
    };
}
cuda_checks::with_checks!(tests);

#[track_caller]
fn passes(family: &str, name: &str, size: Size) {
    let check = CHECKS.iter().find(|check| (check.family, check.name) == (family, name)).expect("in the table");
    let outcome = check.run(&device(), size);
    outcome.unwrap();
    assert!(outcome.comparisons > 0, "{name} compares nothing");
}
