//! The rules of the domain: pure functions over values.

mod apply;
mod changes;
mod folding;
mod ids;
mod records;
