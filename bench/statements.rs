//! Prints the SQL statements of the service as a JSON object, by their names: bench/run gives them to the other
//! contenders.

#![allow(
    missing_docs,
    clippy::print_stdout,
    reason = "a program of the measurements"
)]

use std::collections::BTreeMap;

use openim_group_mirror::store::Store;

fn main() -> serde_json::Result<()> {
    let statements: BTreeMap<&str, &str> = Store::statements().copied().collect();
    println!("{}", serde_json::to_string(&statements)?);
    Ok(())
}
