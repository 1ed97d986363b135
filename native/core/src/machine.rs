//! The share of this machine's cores that the process may use.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Cores that this process can keep busy, at least one.
///
/// Counts the cores that the process may run on; the threads of one core count once. The CPU quota of the container
/// (Linux control groups, version 1 or 2) is an upper limit. More threads would only wait for each other.
pub fn usable_cores() -> usize {
    let cores: HashSet<String> = allowed_cpus().into_iter().map(siblings).collect();
    let quotas = quotas(Path::new("/proc/self/cgroup"), Path::new("/sys/fs/cgroup"));
    let least = quotas.into_iter().fold(cores.len() as f64, f64::min);
    (least as usize).max(1)
}

/// Gives memory that this process has freed back to the system, as far as its C library keeps it. That takes
/// milliseconds.
pub fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number of bytes to keep, and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn allowed_cpus() -> Vec<usize> {
    // SAFETY: the set is written by the call, and its size is the one that is passed.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) != 0 {
            let count = std::thread::available_parallelism().map_or(1, usize::from);
            return (0..count).collect();
        }
        (0..libc::CPU_SETSIZE as usize).filter(|cpu| libc::CPU_ISSET(*cpu, &set)).collect()
    }
}

/// The threads of a CPU's core; the CPU alone if the system does not tell them.
fn siblings(cpu: usize) -> String {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    fs::read_to_string(path).map_or_else(|_| cpu.to_string(), |list| list.trim().to_owned())
}

/// The CPU quota, in CPUs, of each control group around this process that has one.
fn quotas(own: &Path, root: &Path) -> Vec<f64> {
    let mut found = Vec::new();
    for line in fs::read_to_string(own).unwrap_or_default().lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { continue };
        let (root, limits): (PathBuf, &[&str]) = if controllers.is_empty() {
            (root.into(), &["cpu.max"])
        } else if controllers.split(',').any(|name| name == "cpu") {
            (root.join("cpu"), &["cpu.cfs_quota_us", "cpu.cfs_period_us"])
        } else {
            continue;
        };
        // Inside a container, its own group may be the root, without the path that the group has outside.
        for group in Path::new(group.trim_start_matches('/')).ancestors() {
            let read: Option<Vec<String>> =
                limits.iter().map(|limit| fs::read_to_string(root.join(group).join(limit)).ok()).collect();
            found.extend(read.and_then(|texts| quota(&texts.join(" "))));
        }
    }
    found
}

/// A quota from its two numbers: microseconds of CPU in a period, and the period's microseconds.
fn quota(text: &str) -> Option<f64> {
    let mut numbers = text.split_whitespace().map(|word| word.parse::<f64>().ok());
    let (quota, period) = (numbers.next()??, numbers.next()??);
    (quota >= 0.0 && period > 0.0).then(|| (quota / period).floor())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_core() {
        assert!(usable_cores() >= 1);
    }

    #[test]
    fn quotas_are_read_in_both_versions() {
        assert_eq!(quota("250000 100000"), Some(2.0));
        assert_eq!(quota("max 100000"), None);
        assert_eq!(quota("-1\n 100000"), None);
        assert_eq!(quota("50000 100000"), Some(0.0));
        let root = std::env::temp_dir().join(format!("fgclip-rt-groups-{}", std::process::id()));
        for (name, text) in [
            ("a/cpu.max", "max 100000"),
            ("cpu.max", "300000 100000"),
            ("cpu/b/cpu.cfs_quota_us", "200000\n"),
            ("cpu/b/cpu.cfs_period_us", "100000\n"),
        ] {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let own = root.join("own");
        fs::write(&own, "0::/a\n4:cpu,cpuacct:/b\n5:memory:/c\n").unwrap();
        assert_eq!(quotas(&own, &root), [3.0, 2.0]);
        fs::remove_dir_all(root).unwrap();
    }
}
