//! Marks that say how far a run's numbers may be believed.

use crate::machine::{Machine, load_now, stolen_ticks};

/// Above this share of stolen time, in percent, the neighbours were measured too.
const STOLEN_PERCENT_MAX: f64 = 1.0;

/// Watches a run from its start to its end.
#[derive(Debug)]
pub struct Watch {
    stolen_at_start: (u64, u64),
}

impl Watch {
    /// Starts now.
    #[must_use]
    pub fn start() -> Watch {
        Watch {
            stolen_at_start: stolen_ticks(),
        }
    }

    /// What the run's circumstances say, once it has ended.
    #[must_use]
    pub fn marks(&self, machine: &Machine) -> Vec<String> {
        let (stolen, all) = stolen_ticks();
        let stolen = stolen.saturating_sub(self.stolen_at_start.0);
        let all = all.saturating_sub(self.stolen_at_start.1).max(1);
        #[expect(
            clippy::cast_precision_loss,
            reason = "ticks of one run stay below 2^53"
        )]
        let stolen_percent = stolen as f64 * 100.0 / all as f64;
        marks(machine, stolen_percent, load_now())
    }
}

fn marks(machine: &Machine, stolen_percent: f64, load_at_end: f64) -> Vec<String> {
    let mut marks = vec![
        "ratios taken inside this run compare; absolute values are an illustration of this machine"
            .to_owned(),
    ];
    let cpus = machine.cpus;
    if machine.virtualisation.starts_with("virtual machine") {
        marks.push(format!(
            "a shared virtual machine with {cpus} virtual CPUs: the host moves them and its other \
             guests take time from them ({})",
            machine.virtualisation
        ));
    }
    if cpus <= 2 {
        marks.push(format!(
            "{cpus} CPUs carry the measured processes, the harness and everything else"
        ));
    }
    if stolen_percent > STOLEN_PERCENT_MAX {
        marks.push(format!(
            "{stolen_percent:.1} % of all CPU time was stolen by other guests"
        ));
    }
    #[expect(clippy::cast_precision_loss, reason = "a number of CPUs")]
    let busy = machine.load_1min > cpus as f64 / 2.0;
    if busy {
        marks.push(format!(
            "other work ran at the start: load {:.1} on {cpus} CPUs (at the end {load_at_end:.1})",
            machine.load_1min
        ));
    }
    if machine.isolated_cpus.is_empty() {
        marks.push("no CPU is isolated from the scheduler".to_owned());
    }
    match machine.governor.as_str() {
        "performance" => {}
        "" => marks.push("the CPU's frequency governor is not visible".to_owned()),
        other => marks.push(format!(
            "the frequency governor is {other}, not performance"
        )),
    }
    if cfg!(debug_assertions) {
        marks.push("a debug build: its numbers mean nothing".to_owned());
    }
    marks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_two_core_machine_is_said_to_be_one() {
        let machine = Machine {
            cpus: 2,
            virtualisation: "virtual machine".into(),
            load_1min: 3.0,
            ..Machine::default()
        };
        let said = marks(&machine, 4.2, 1.0).join("\n");
        assert!(
            said.contains("a shared virtual machine with 2 virtual CPUs"),
            "{said}"
        );
        assert!(said.contains("4.2 % of all CPU time was stolen"), "{said}");
        assert!(said.contains("load 3.0 on 2 CPUs"), "{said}");
    }

    #[test]
    fn a_quiet_isolated_machine_gets_few_marks() {
        let machine = Machine {
            cpus: 64,
            virtualisation: "none seen".into(),
            isolated_cpus: "2-3".into(),
            governor: "performance".into(),
            ..Machine::default()
        };
        let said = marks(&machine, 0.0, 0.0);
        assert!(
            said.iter()
                .all(|mark| mark.contains("debug") || mark.contains("ratios"))
        );
    }
}
