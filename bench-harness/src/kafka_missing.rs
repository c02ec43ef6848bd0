//! What the Kafka rows say in a build without Kafka's client.

use crate::error::BenchError;
use crate::stats::Samples;

/// The topic that the rows would use.
pub const TOPIC: &str = "sandpipe-bench-5b";

fn missing() -> BenchError {
    BenchError::missing(
        "Kafka",
        "this sandpipe-bench was built without the feature kafka",
        "build it with: cargo build --release -p sandpipe-bench --features kafka",
    )
}

/// Whether Kafka's client is built in: it is not.
///
/// # Errors
/// Always [`BenchError::Missing`].
pub fn check() -> Result<(), BenchError> {
    Err(missing())
}

/// Nothing.
///
/// # Errors
/// Always [`BenchError::Missing`].
pub fn warm(_bootstrap: &str) -> Result<(), BenchError> {
    Err(missing())
}

/// Nothing.
///
/// # Errors
/// Always [`BenchError::Missing`].
pub fn one_way(_bootstrap: &str, _count: usize) -> Result<Samples, BenchError> {
    Err(missing())
}
