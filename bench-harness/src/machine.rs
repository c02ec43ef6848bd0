//! The fingerprint of the machine: what a number depends on besides the code.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::clock::usable_cpus;

/// What was found; an empty text means that the system does not say.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Machine {
    /// The CPU's name.
    pub cpu: String,
    /// Vendor, family, model and stepping, which a hypervisor's "name" often hides.
    pub cpu_id: String,
    /// CPUs that this process may use.
    pub cpus: u64,
    /// Whether two threads share a core: on, off, notsupported…
    pub smt: String,
    /// NUMA nodes online.
    pub numa_nodes: String,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// The kernel's release.
    pub kernel: String,
    /// CPUs taken out of the scheduler (isolcpus), empty if none.
    pub isolated_cpus: String,
    /// Frequency governor of the first CPU.
    pub governor: String,
    /// What holds the machine: a hypervisor's name, a container, or nothing.
    pub virtualisation: String,
    /// The kernel's clock source.
    pub clocksource: String,
    /// What an idle CPU does (cpuidle's governor): a halted virtual CPU wakes slowly.
    pub idle_governor: String,
    /// Transparent huge pages for private memory.
    pub thp: String,
    /// Transparent huge pages for shared memory.
    pub thp_shmem: String,
    /// Load average over one minute at the start.
    pub load_1min: f64,
    /// Mitigations that are switched on, by vulnerability.
    pub mitigations: BTreeMap<String, String>,
}

impl Machine {
    /// Reads the fingerprint of this machine from /proc and /sys; never fails.
    #[must_use]
    pub fn read() -> Machine {
        let cpuinfo = read("/proc/cpuinfo");
        let field = |name: &str| cpuinfo_field(&cpuinfo, name);
        Machine {
            cpu: field("model name"),
            cpu_id: format!(
                "{} family {} model {} stepping {}",
                field("vendor_id"),
                field("cpu family"),
                field("model"),
                field("stepping")
            ),
            cpus: usable_cpus().len() as u64,
            smt: read("/sys/devices/system/cpu/smt/control"),
            numa_nodes: read("/sys/devices/system/node/online"),
            memory_mib: memory_mib(&read("/proc/meminfo")),
            kernel: read("/proc/sys/kernel/osrelease"),
            isolated_cpus: read("/sys/devices/system/cpu/isolated"),
            governor: read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            virtualisation: virtualisation(&cpuinfo),
            clocksource: read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            idle_governor: read("/sys/devices/system/cpu/cpuidle/current_governor_ro"),
            thp: chosen(&read("/sys/kernel/mm/transparent_hugepage/enabled")),
            thp_shmem: chosen(&read("/sys/kernel/mm/transparent_hugepage/shmem_enabled")),
            load_1min: load(&read("/proc/loadavg")),
            mitigations: mitigations(),
        }
    }

    /// A short name for a directory: the host's name, or `machine`.
    #[must_use]
    pub fn short_name() -> String {
        let name = read("/proc/sys/kernel/hostname");
        let plain: String = name
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
            .collect();
        if plain.is_empty() {
            "machine".into()
        } else {
            plain
        }
    }
}

/// Time that other guests took from this machine's CPUs, and all time, in ticks since boot.
#[must_use]
pub fn stolen_ticks() -> (u64, u64) {
    stolen(&read("/proc/stat"))
}

/// The load average over one minute now.
#[must_use]
pub fn load_now() -> f64 {
    load(&read("/proc/loadavg"))
}

fn read(path: &str) -> String {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

fn cpuinfo_field(cpuinfo: &str, name: &str) -> String {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim().to_owned())
        .unwrap_or_default()
}

fn memory_mib(meminfo: &str) -> u64 {
    let line = meminfo.lines().find(|line| line.starts_with("MemTotal:"));
    line.and_then(|line| line.split_whitespace().nth(1))
        .and_then(|kib| kib.parse::<u64>().ok())
        .map_or(0, |kib| kib / 1024)
}

fn virtualisation(cpuinfo: &str) -> String {
    let guest = cpuinfo_field(cpuinfo, "flags")
        .split(' ')
        .any(|flag| flag == "hypervisor");
    let product = read("/sys/class/dmi/id/product_name");
    let container = ["/.dockerenv", "/run/.containerenv"]
        .iter()
        .any(|p| Path::new(p).exists());
    let mut said = match (guest, product.is_empty()) {
        (true, true) => "virtual machine".to_owned(),
        (true, false) => format!("virtual machine ({product})"),
        (false, _) => "none seen".to_owned(),
    };
    if container {
        said.push_str(", in a container");
    }
    said
}

/// `always [madvise] never` → `madvise`.
fn chosen(choice: &str) -> String {
    choice
        .split(' ')
        .find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
        .unwrap_or(choice)
        .to_owned()
}

fn load(loadavg: &str) -> f64 {
    loadavg
        .split(' ')
        .next()
        .and_then(|first| first.parse().ok())
        .unwrap_or(0.0)
}

fn mitigations() -> BTreeMap<String, String> {
    let Ok(files) = fs::read_dir("/sys/devices/system/cpu/vulnerabilities") else {
        return BTreeMap::new();
    };
    files
        .flatten()
        .map(|file| {
            let name = file.file_name().to_string_lossy().into_owned();
            (name, read(&file.path().to_string_lossy()))
        })
        .filter(|(_, state)| !state.is_empty() && state != "Not affected")
        .collect()
}

fn stolen(stat: &str) -> (u64, u64) {
    let Some(line) = stat.lines().find(|line| line.starts_with("cpu ")) else {
        return (0, 0);
    };
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .flat_map(str::parse)
        .collect();
    // user nice system idle iowait irq softirq steal; guest time is counted in user already.
    (
        ticks.get(7).copied().unwrap_or(0),
        ticks.iter().take(8).sum(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_proc_are_read() {
        let cpuinfo = "processor\t: 0\nmodel name\t: A CPU @ 2 GHz\nflags\t\t: fpu hypervisor\n";
        assert_eq!(cpuinfo_field(cpuinfo, "model name"), "A CPU @ 2 GHz");
        assert_eq!(cpuinfo_field(cpuinfo, "absent"), "");
        assert!(virtualisation(cpuinfo).starts_with("virtual machine"));
        assert_eq!(
            memory_mib("MemTotal:       24576000 kB\nMemFree: 1 kB"),
            24000
        );
        assert_eq!(chosen("always [madvise] never"), "madvise");
        assert_eq!(load("1.25 0.50 0.10 1/100 4242"), 1.25);
        assert_eq!(stolen("cpu  10 0 20 60 5 1 2 2 7 0\ncpu0 1"), (2, 100));
    }

    #[test]
    fn this_machine_has_a_cpu_memory_and_a_kernel() {
        let machine = Machine::read();
        assert!(machine.cpus >= 1 && machine.memory_mib > 0 && !machine.kernel.is_empty());
    }
}
