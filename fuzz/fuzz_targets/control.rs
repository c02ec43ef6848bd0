//! The sandbox's control socket: requests that init parses, replies that an agent parses.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = sandpipe_sandbox::parse_packet(bytes);
});
