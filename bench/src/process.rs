//! Processor time and memory of processes, as `/proc` tells.

use std::fs;

/// A process at a moment.
#[derive(Clone, Debug)]
pub struct Process {
    /// The command line; PostgreSQL's processes say there what they are.
    pub title: String,
    /// Processor time so far, in seconds.
    pub cpu: f64,
    /// Memory of its own, in bytes: without shared memory and files.
    pub own: u64,
    /// The most memory so far, in bytes, shared memory included.
    pub peak: u64,
}

/// Clock ticks per second in `/proc`: 100 on every Linux that PostgreSQL runs on.
const TICKS: f64 = 100.0;

/// Reads a process; none when it has ended.
pub fn read(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in brackets that may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kilobytes = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    let title = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(Process {
        title: String::from_utf8_lossy(&title).replace('\0', " ").trim().to_owned(),
        cpu: (ticks(11)? + ticks(12)?) / TICKS,
        own: kilobytes("RssAnon:")? * 1024,
        peak: kilobytes("VmHWM:")? * 1024,
    })
}

/// The processes of a server: its children.
pub fn children(parent: u32) -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
    pids.filter(|&pid| parent_of(pid) == Some(parent)).filter_map(read).collect()
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_is_found_among_its_parents_children() {
        let pid = std::process::id();
        let own = super::read(pid).expect("this process runs");
        assert!(own.peak >= own.own && own.own > 0);
        let parent = super::parent_of(pid).expect("it has a parent");
        assert!(super::children(parent).iter().any(|process| process.title == own.title));
    }
}
