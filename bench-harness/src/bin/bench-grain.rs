//! The harness's Rust grain: it appends its start and its end to the payload. With the argument
//! `floor` it is instead the floor of that grain: the same program and heap, woken and forked
//! without Sandpipe.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use sandpipe_bench::clock::now_ns;
use sandpipe_bench::probes::fork::{Heap, woken_until_child_runs};
use sandpipe_grain::Output;

/// MiB of heap that the grain touches when it is loaded.
const HEAP_VARIABLE: &str = "BENCH_GRAIN_HEAP_MIB";
/// Microseconds that a handler sleeps between its two stamps.
const PACE_VARIABLE: &str = "BENCH_GRAIN_PACE_US";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["floor", count, pause_us] => floor(count, pause_us),
        _ => grain(),
    }
}

fn heap_mib() -> usize {
    number(HEAP_VARIABLE)
}

/// The number that the environment gives; 0 if it gives none.
fn number<N: std::str::FromStr + Default>(variable: &str) -> N {
    let text = std::env::var(variable).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn floor(count: &str, pause_us: &str) -> ExitCode {
    let (Ok(count), Ok(pause_us)) = (count.parse(), pause_us.parse()) else {
        eprintln!("usage: bench-grain floor COUNT PAUSE_US");
        return ExitCode::from(2);
    };
    match woken_until_child_runs(heap_mib(), count, Duration::from_micros(pause_us)) {
        Ok(latencies) => {
            latencies.iter().for_each(|ns| println!("{ns}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench-grain: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Appends two little-endian words to the payload: the handler's first and last moment.
fn grain() -> ExitCode {
    let heap = Heap::touched(heap_mib());
    let pace = Duration::from_micros(number(PACE_VARIABLE));
    let ended = sandpipe_grain::run(move |event, _| {
        let start_ns = now_ns();
        if !pace.is_zero() {
            std::thread::sleep(pace);
        }
        let mut payload = event.data().to_vec();
        payload.extend_from_slice(&start_ns.to_le_bytes());
        payload.extend_from_slice(&now_ns().to_le_bytes());
        Ok(Output::from(payload))
    });
    heap.keep();
    ended
}
