//! How long it takes from the end of one handler to the start of the next, for a look by hand:
//! `cargo test --release -p sandpipe-grain --test latency -- --ignored --nocapture`.

mod sandbox;

use std::time::Duration;

use sandbox::{Sandbox, chain, settings};
use sandpipe_grain::Mode;

#[test]
#[ignore = "measures; asserts nothing"]
fn from_the_end_of_one_handler_to_the_start_of_the_next() {
    for round in 0..3 {
        for (name, mode, spares) in [
            ("on demand", Mode::Fork, 0),
            ("forked ahead", Mode::Fork, 4),
            ("pool", Mode::Pool, 0),
        ] {
            let mut sandbox = Sandbox::start(chain(2, &settings(mode, 1, spares)));
            std::thread::sleep(Duration::from_millis(100));
            let mut times = Vec::new();
            for id in 1..=500 {
                let text = sandbox.ask(id, "stamp").text;
                times.push(text.parse::<u64>().unwrap() as f64 / 1000.0);
                std::thread::sleep(Duration::from_millis(3));
            }
            let mut times = times.split_off(10);
            times.sort_by(f64::total_cmp);
            let at = |share: f64| times[(times.len() as f64 * share) as usize];
            let (p50, p99) = (at(0.5), at(0.99));
            eprintln!("round {round}: {name:12} p50 {p50:7.1} us, p99 {p99:7.1} us");
            sandbox.finish();
        }
    }
}
