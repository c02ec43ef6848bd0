//! What the handlers did outside the workflow, read from their own file.

use std::collections::{HashMap, HashSet};

use super::super::fleet::Fleet;

/// What an outside service knows of one grain's work on one request.
#[derive(Default)]
struct Effect {
    /// Idempotency keys: such a service does once what is asked for under one key.
    keys: HashSet<String>,
    /// How often it was asked.
    runs: usize,
}

/// Asserts that each text had its effect once in each grain of its application, and that nobody
/// else had one; how many times a handler ran again.
pub fn assert_once(fleet: &Fleet, letter: &str, texts: &[&str], grains: &[&str]) -> usize {
    let mut effects: HashMap<(String, String), Effect> = HashMap::new();
    let file = fleet.path(letter).join("notes.effects");
    for line in std::fs::read_to_string(file).unwrap().lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [grain, key, text] = words[..] else {
            panic!("a torn line: {line:?}")
        };
        let effect = effects.entry((grain.into(), text.into())).or_default();
        effect.keys.insert(key.to_owned());
        effect.runs += 1;
    }
    let mut again = 0;
    for text in texts {
        for grain in grains {
            let effect = effects.remove(&((*grain).into(), (*text).into()));
            let Effect { keys, runs } = effect.unwrap_or_default();
            assert_eq!(keys.len(), 1, "{text} in {grain}, {runs} runs: {keys:?}");
            again += runs - 1;
        }
    }
    let unasked: Vec<_> = effects.into_keys().collect();
    assert!(unasked.is_empty(), "nobody asked for {unasked:?}");
    again
}
