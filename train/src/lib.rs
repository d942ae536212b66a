//! x
pub mod almanac;
