//! The times of one event as a table: design steps 0 to 11.

use std::fmt::Write;

use crate::core::{Hop, Trace};

/// One line for each step that was measured, and who measured it.
pub(super) fn table(trace: &Trace) -> String {
    let mut rows = vec![
        (
            trace.received_ns,
            "0",
            "the front door has the whole request".to_owned(),
            "agent",
        ),
        (
            trace.taken_ns,
            "1",
            "the agent's bus thread takes it".to_owned(),
            "agent",
        ),
        (
            trace.published_ns,
            "2",
            "published into the first grain's queue".to_owned(),
            "agent",
        ),
        (
            trace.backed_up_ns,
            "0",
            "its backup is durable".to_owned(),
            "agent",
        ),
    ];
    let last = trace.hops.len().saturating_sub(1);
    for (index, hop) in trace.hops.iter().enumerate() {
        rows.extend(of_hop(hop, index == 0, index == last));
        rows.extend(cold_start(hop, trace.received_ns));
    }
    rows.push((
        trace.finished_ns,
        "9-10",
        "answer and `finished` are durable".to_owned(),
        "agent",
    ));
    rows.push((
        trace.answered_ns,
        "11",
        "the front door answers".to_owned(),
        "agent",
    ));
    rows.retain(|(at_ns, ..)| *at_ns != 0);
    rows.sort_by_key(|(at_ns, ..)| *at_ns);
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{:>10} {:>10}  {:<5} {:<8} what",
        "at µs", "+ µs", "step", "by"
    );
    let mut before = trace.received_ns;
    for (at_ns, step, what, by) in rows {
        let micros = |ns: u64| ns as f64 / 1000.0;
        let at = micros(at_ns.saturating_sub(trace.received_ns));
        let more = micros(at_ns.saturating_sub(before));
        let _ = writeln!(text, "{at:>10.1} {more:>10.1}  {step:<5} {by:<8} {what}");
        before = at_ns;
    }
    if trace.hops.iter().any(|hop| hop.stamps.taken_ns == 0) {
        text.push_str("(steps without an instance's own times are missing: none came with them)\n");
    }
    text.push_str("A traced answer waits until it is durable; an untraced one does not.\n");
    text
}

type Row = (u64, &'static str, String, &'static str);

fn of_hop(hop: &Hop, first: bool, last: bool) -> [Row; 6] {
    let grain = &hop.grain;
    let stamps = &hop.stamps;
    let again = match stamps.attempt {
        0 | 1 => String::new(),
        attempt => format!(", attempt {attempt}: an instance died of it before"),
    };
    let (take, run) = if first { ("3", "4") } else { ("6c", "7") };
    let (publish, read) = if last { ("8", "9") } else { ("5", "6a") };
    let out = if last {
        "output published"
    } else {
        "output published, copy with it"
    };
    [
        (
            stamps.taken_ns,
            take,
            format!("{grain}: an instance takes it{again}"),
            "instance",
        ),
        (
            stamps.started_ns,
            run,
            format!("{grain}: the handler begins"),
            "instance",
        ),
        (
            stamps.ended_ns,
            run,
            format!("{grain}: the handler ends"),
            "instance",
        ),
        (
            stamps.published_ns,
            publish,
            format!("{grain}: {out}"),
            "instance",
        ),
        (
            hop.read_ns,
            read,
            format!("{grain}: the agent reads it"),
            "agent",
        ),
        (
            hop.backed_up_ns,
            "6b",
            format!("{grain}: the backup of it is durable"),
            "agent",
        ),
    ]
}

/// The start of the grain's worker, if the request waited for it.
fn cold_start(hop: &Hop, received_ns: u64) -> Vec<Row> {
    let (grain, stamps) = (&hop.grain, &hop.stamps);
    if stamps.worker_started_ns <= received_ns {
        return Vec::new();
    }
    vec![
        (
            stamps.worker_started_ns,
            "cold",
            format!("{grain}: its worker did not run and is started"),
            "init",
        ),
        (
            stamps.worker_loaded_ns,
            "cold",
            format!("{grain}: its worker has loaded the handler"),
            "worker",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Stamps;

    #[test]
    fn steps_stand_in_the_order_of_their_times_and_unmeasured_ones_are_left_out() {
        let stamps = Stamps {
            taken_ns: 3000,
            started_ns: 4000,
            ended_ns: 5000,
            published_ns: 6000,
            attempt: 3,
            worker_started_ns: 999,
            worker_loaded_ns: 2999,
        };
        let trace = Trace {
            received_ns: 1000,
            taken_ns: 1500,
            published_ns: 2000,
            hops: vec![Hop {
                grain: "g".into(),
                stamps,
                read_ns: 7000,
                ..Hop::default()
            }],
            answered_ns: 9000,
            ..Trace::default()
        };
        let table = table(&trace);
        assert!(
            table.contains("g: an instance takes it, attempt 3"),
            "{table}"
        );
        let steps: Vec<&str> = table
            .lines()
            .skip(1)
            .take_while(|line| !line.starts_with('A'))
            .map(|line| line.split_whitespace().nth(2).unwrap())
            .collect();
        assert_eq!(
            steps,
            ["0", "1", "2", "3", "4", "4", "8", "9", "11"],
            "{table}"
        );
        assert!(table.contains("8.0        2.0  11"), "{table}");
    }

    #[test]
    fn a_worker_that_was_started_after_the_request_came_is_a_cold_start() {
        let hop = |worker_started_ns| Hop {
            grain: "g".into(),
            stamps: Stamps {
                taken_ns: 3000,
                worker_started_ns,
                worker_loaded_ns: 2900,
                ..Stamps::default()
            },
            ..Hop::default()
        };
        let trace = |hop| Trace {
            received_ns: 1000,
            hops: vec![hop],
            ..Trace::default()
        };
        let cold = table(&trace(hop(1001)));
        let lines: Vec<&str> = cold.lines().filter(|line| line.contains("cold")).collect();
        assert!(lines[0].ends_with("g: its worker did not run and is started"));
        assert!(lines[1].ends_with("g: its worker has loaded the handler"));
        for warm in [0, 999, 1000] {
            assert!(!table(&trace(hop(warm))).contains("cold"));
        }
    }
}
