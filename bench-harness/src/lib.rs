//! Measures Sandpipe beside its floors, its peers and the values of the paper it follows.
//!
//! A *case* is one thing measured (a message over the local bus, say); cases that are compared run
//! back to back in a *block*, between two probes of the cores' placement; blocks are repeated in
//! interleaved *rounds*; a ratio is taken inside each block and its median over the rounds is
//! reported. Only ratios of one run compare: see docs/BENCHMARKS.md.

pub mod app;
pub mod bounds;
pub mod broker;
pub mod clock;
pub mod company;
pub mod crew;
pub mod error;
pub mod external;
pub mod figures;
pub mod host;
pub mod http;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(not(feature = "kafka"))]
#[path = "kafka_missing.rs"]
pub mod kafka;
pub mod links;
pub mod load;
pub mod machine;
pub mod pair;
pub mod paper;
pub mod placement;
pub mod port;
pub mod probes;
pub mod progress;
pub mod python;
pub mod raw;
pub mod report;
pub mod rounds;
pub mod stage;
pub mod stamps;
pub mod stats;
pub mod table;
pub mod trace;
pub mod validity;

pub use error::BenchError;
