//! Where a measurement was made, what else ran there meanwhile, and whether a benchmark fits into the memory.
//!
//! Linux says most of it in files under `/proc` and `/sys`; what a system does not say is left out.

use crate::terminal::bytes;
use anyhow::ensure;
use kernels::Level;
use kernels::limits::Dot;
use serde_json::{Value, json};
use std::fs;
use std::time::{Instant, SystemTime};

/// The machine, in the words that belong beside a figure.
pub struct Machine {
    cpu: String,
    cores: usize,
    memory: Option<u64>,
    caches: Vec<String>,
    huge_pages: Option<String>,
    system: String,
    hypervisor: bool,
    instructions: Vec<String>,
}

impl Machine {
    /// This one.
    pub fn this() -> Machine {
        let cpuinfo = read("/proc/cpuinfo");
        let levels = Level::available().map(|level| level.to_string());
        let dots = Dot::ALL.into_iter().filter(|dot| dot.is_present()).map(|dot| dot.name().to_string());
        Machine {
            cpu: cpu_name(&cpuinfo),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory: meminfo("MemTotal"),
            caches: caches(),
            huge_pages: selected(&read("/sys/kernel/mm/transparent_hugepage/enabled")),
            system: match read("/proc/sys/kernel/osrelease").trim() {
                "" => std::env::consts::OS.to_string(),
                release => format!("Linux {release}"),
            },
            hypervisor: field(&cpuinfo, "flags").is_some_and(|flags| flags.split(' ').any(|f| f == "hypervisor")),
            instructions: levels.chain(dots).collect(),
        }
    }

    /// A sentence.
    pub fn in_words(&self) -> String {
        let mut parts = vec![self.cpu.clone(), format!("{} cores", self.cores)];
        parts.extend(self.memory.map(|n| format!("{} of memory", bytes(n))));
        parts.extend(self.caches.iter().cloned());
        parts.extend(self.huge_pages.iter().map(|mode| format!("transparent huge pages {mode}")));
        parts.push(self.system.clone() + if self.hypervisor { ", a virtual machine" } else { "" });
        format!("{}. It has {}.", parts.join(", "), self.instructions.join(", "))
    }

    /// An object.
    pub fn json(&self) -> Value {
        json!({
            "cpu": self.cpu,
            "cores": self.cores,
            "memory_bytes": self.memory,
            "caches": self.caches,
            "transparent_huge_pages": self.huge_pages,
            "system": self.system,
            "virtual": self.hypervisor,
            "instructions": self.instructions,
        })
    }
}

/// The time now, in UTC: `2026-11-22T08:30:00Z`.
pub fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// Fails if the system has less than this left, in a sentence that begins with `what`. Where it does not say, all fits.
pub fn require_memory(what: &str, needed: u64) -> anyhow::Result<()> {
    let available = available_memory().unwrap_or(u64::MAX);
    ensure!(
        needed <= available,
        "{what}: takes {} of memory, and {} are available here",
        bytes(needed),
        bytes(available)
    );
    Ok(())
}

/// Of the machine or of the group that the process is confined to, whichever has less.
fn available_memory() -> Option<u64> {
    let group = |name: &str| read(&format!("/sys/fs/cgroup/{name}")).trim().parse::<u64>().ok();
    let left = group("memory.max").zip(group("memory.current")).map(|(max, current)| max.saturating_sub(current));
    meminfo("MemAvailable").map(|machine| left.map_or(machine, |group| group.min(machine)))
}

/// Begins to count [`peak_resident`] anew. False if the system cannot.
pub fn reset_peak_resident() -> bool {
    // proc(5): 5 resets the high-water mark.
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// The most memory that the process had at once, in bytes.
pub fn peak_resident() -> Option<u64> {
    kibibytes(&read("/proc/self/status"), "VmHWM")
}

/// What other processes and other guests took of the CPUs since it was made.
pub struct Disturbance {
    start: Instant,
    before: Option<[f64; 2]>,
}

impl Disturbance {
    /// From now on.
    pub fn watch() -> Disturbance {
        Disturbance { start: Instant::now(), before: ticks() }
    }

    /// CPUs that other processes used, and CPUs that the hypervisor gave to others, on average.
    pub fn cores(&self) -> Option<[f64; 2]> {
        // Clock ticks of proc(5) come 100 a second on every Linux of today.
        let total = 100.0 * self.start.elapsed().as_secs_f64();
        let (before, after) = self.before.zip(ticks())?;
        Some([0, 1].map(|i| ((after[i] - before[i]) / total).max(0.0)))
    }
}

/// Ticks of all CPUs so far: of processes other than this one, and stolen.
fn ticks() -> Option<[f64; 2]> {
    let stat = read("/proc/stat");
    let cpu: Vec<f64> = stat.lines().next()?.split_whitespace().skip(1).map_while(|n| n.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    let [user, nice, system, _, _, irq, softirq, steal, ..] = cpu[..] else { return None };
    let own = read("/proc/self/stat");
    // The name, in brackets, may hold anything; utime and stime are the 12th and 13th behind it.
    let own: Vec<&str> = own.rsplit_once(')')?.1.split_whitespace().collect();
    let own: f64 = own.get(11)?.parse::<f64>().ok()? + own.get(12)?.parse::<f64>().ok()?;
    Some([user + nice + system + irq + softirq - own, steal])
}

/// The file's text; empty if there is none.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// `name : value` of the first line that has it.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(key, value)| (key.trim(), value.trim())).find(|(key, _)| *key == name).map(|(_, value)| value)
}

fn kibibytes(text: &str, name: &str) -> Option<u64> {
    field(text, name)?.strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|n| n << 10)
}

fn meminfo(name: &str) -> Option<u64> {
    kibibytes(&read("/proc/meminfo"), name)
}

fn cpu_name(cpuinfo: &str) -> String {
    let Some(name) = field(cpuinfo, "model name") else { return format!("{} CPU", std::env::consts::ARCH) };
    match (field(cpuinfo, "cpu family"), field(cpuinfo, "model")) {
        (Some(family), Some(model)) => format!("{name} (family {family}, model {model})"),
        _ => name.to_string(),
    }
}

/// Those of the first core: `L2 1024K`.
fn caches() -> Vec<String> {
    let at = |index: usize, what: &str| {
        let text = read(&format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{what}"));
        (!text.is_empty()).then(|| text.trim().to_string())
    };
    let caches = (0..8).map_while(|i| Some((at(i, "level")?, at(i, "type")?, at(i, "size")?)));
    let data = caches.filter(|(_, kind, _)| kind != "Instruction");
    data.map(|(level, _, size)| format!("L{level} {size}")).collect()
}

/// The choice in brackets: `always [madvise] never`.
fn selected(choices: &str) -> Option<String> {
    Some(choices.split_once('[')?.1.split_once(']')?.0.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_system() {
        let cpuinfo =
            "processor\t: 0\nmodel\t\t: 2\nmodel name\t: AMD EPYC\ncpu family\t: 26\nflags\t\t: fpu hypervisor\n";
        assert_eq!(cpu_name(cpuinfo), "AMD EPYC (family 26, model 2)");
        assert_eq!(cpu_name(""), format!("{} CPU", std::env::consts::ARCH));
        assert_eq!(kibibytes("VmPeak:\t 9 kB\nVmHWM:\t  2048 kB\n", "VmHWM"), Some(2 << 20));
        assert_eq!(selected("always [madvise] never\n").as_deref(), Some("madvise"));
        assert_eq!(selected(""), None);
    }

    #[test]
    fn memory_that_is_not_there() {
        assert!(require_memory("bench", 0).is_ok());
        if cfg!(target_os = "linux") {
            let message = require_memory("bench gemm", 1 << 60).unwrap_err().to_string();
            assert!(message.starts_with("bench gemm: takes 1048576.0 TiB of memory, and "), "{message}");
        }
    }
}
