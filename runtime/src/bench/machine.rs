//! The machine that a benchmark measures.

use std::path::Path;
use std::process::{Command, Stdio};

use serde::Serialize;

/// The machine, as the operating system describes it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Machine {
    /// Model name of the CPU; `None` where the system does not say.
    pub cpu: Option<String>,
    /// Instruction sets that matter to products, by their names in `/proc/cpuinfo`.
    pub features: Vec<String>,
    /// Cores that this process may use.
    pub cores: usize,
    /// Operating system and architecture.
    pub system: String,
}

/// Instruction sets that a product may use.
const FEATURES: &[&str] = &[
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_bf16",
    "asimd",
    "bf16",
    "sve",
];
/// Largest cache where the system does not say.
const CACHE_BYTES: usize = 32 << 20;

impl Machine {
    /// This machine.
    #[must_use]
    pub fn here() -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            cpu: field(&cpuinfo, "model name").map(str::to_owned),
            features: features(&cpuinfo),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }
}

/// The commit of the checkout this program was built from, as the checkout is now; `-dirty` if it has changes.
pub(super) fn commit() -> Option<String> {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new("git")
        .arg("-C")
        .arg(checkout)
        .args(["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let commit = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !commit.is_empty()).then_some(commit)
}

/// The most memory that this process has had resident so far, MiB; `None` where the system does not say.
pub(super) fn peak_resident_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib: f64 = field(&status, "VmHWM")?.trim_end_matches("kB").trim().parse().ok()?;
    Some(kib / 1024.0)
}

/// Bytes of the largest cache of the CPU.
pub(super) fn cache_bytes() -> usize {
    std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index3/size")
        .ok()
        .and_then(|size| size.trim().strip_suffix('K')?.parse::<usize>().ok())
        .map_or(CACHE_BYTES, |kib| kib << 10)
}

fn features(cpuinfo: &str) -> Vec<String> {
    let flags = field(cpuinfo, "flags").or_else(|| field(cpuinfo, "Features")).unwrap_or_default();
    let has = |name: &&&str| flags.split_whitespace().any(|flag| flag == **name);
    FEATURES.iter().filter(has).map(|&name| name.to_owned()).collect()
}

/// The value behind the first `name` and colon.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, value) =
        text.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == name)?;
    Some(value.trim())
}

#[cfg(test)]
mod tests {
    use super::{features, field};

    #[test]
    fn the_system_is_read_by_the_field() {
        let cpuinfo = "processor\t: 0\nmodel name\t: A CPU @ 2 GHz\nflags\t\t: fpu avx2 fma sse\n";
        assert_eq!(field(cpuinfo, "model name"), Some("A CPU @ 2 GHz"));
        assert_eq!(field(cpuinfo, "flag"), None);
        assert_eq!(features(cpuinfo), ["avx2", "fma"]);
        assert!(features("").is_empty());
    }
}
