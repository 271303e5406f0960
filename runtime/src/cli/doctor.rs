//! `swarmline doctor`: devices and software of this machine, and the packages that would add more.

use std::fmt::Write as _;

use serde::Serialize;
use swarmline_kernels::device::{CpuReport, CudaReport, DeviceChoice, Version, cpu_report, cuda_report};

use super::{Failure, output};

/// Arguments of `swarmline doctor`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let findings = Findings::new(&cpu_report(), &cuda_report(), DeviceChoice::Auto);
    let mut text = String::new();
    if !arguments.json {
        for (subject, finding) in findings.rows() {
            let _ = writeln!(text, "{subject:<10} {finding}");
        }
    } else if let Ok(line) = serde_json::to_string(&findings) {
        let _ = writeln!(text, "{line}");
    }
    output::print(&text)
}

/// Findings, with the names that `--json` prints.
#[derive(Debug, PartialEq, Serialize)]
struct Findings {
    version: &'static str,
    cores: usize,
    instruction_sets: Vec<&'static str>,
    /// Instruction set of the loops on the CPU.
    cpu_loops: &'static str,
    /// Whether the CPU can do the profile `fast`.
    cpu_fast: bool,
    /// CUDA version of the driver.
    driver: Option<String>,
    /// Version of NVRTC.
    compiler: Option<String>,
    blas: bool,
    devices: Vec<Gpu>,
    /// Why `--device cuda` would be refused.
    cuda_unavailable: Option<String>,
    /// Device that `--device auto` chooses here.
    auto: String,
    cache: Option<String>,
    cache_entries: usize,
    cache_writable: bool,
}

#[derive(Debug, PartialEq, Serialize)]
struct Gpu {
    device: String,
    name: String,
    capability: String,
    memory_bytes: usize,
    /// Why the device cannot be used.
    unusable: Option<String>,
}

impl Findings {
    fn new(cpu: &CpuReport, cuda: &CudaReport, choice: DeviceChoice) -> Self {
        let text = |version: Version| version.to_string();
        let gpu = |(ordinal, device): (usize, &swarmline_kernels::device::CudaDevice)| Gpu {
            device: format!("cuda:{ordinal}"),
            name: device.name.clone(),
            capability: device.capability.to_string(),
            memory_bytes: device.memory_bytes,
            unusable: cuda.usable(ordinal).err().map(|reason| reason.to_string()),
        };
        Self {
            version: env!("CARGO_PKG_VERSION"),
            cores: cpu.cores,
            instruction_sets: cpu.instruction_sets.clone(),
            cpu_loops: cpu.loops,
            cpu_fast: cpu.fast,
            driver: cuda.driver.map(text),
            compiler: cuda.compiler.map(text),
            blas: cuda.blas,
            devices: cuda.devices.iter().enumerate().map(gpu).collect(),
            cuda_unavailable: cuda.usable(0).err().map(|reason| reason.to_string()),
            auto: choice
                .resolve_with(cuda)
                .map_or_else(|reason| reason.to_string(), |device| device.to_string()),
            cache: cuda.cache.folder.as_ref().map(|folder| folder.display().to_string()),
            cache_entries: cuda.cache.entries,
            cache_writable: cuda.cache.writable,
        }
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let sets = self.instruction_sets.join(", ");
        let driver =
            self.driver.as_ref().map_or("none found".to_owned(), |version| format!("CUDA {version}"));
        let blas = if self.blas { "cuBLASLt found" } else { "no cuBLASLt; own kernels multiply on a GPU" };
        let mut rows = vec![
            ("swarmline", self.version.to_owned()),
            ("cpu", format!("{} cores with {sets}; loops run with {}", self.cores, self.cpu_loops)),
            ("driver", driver),
            ("compiler", self.compiler_row()),
            ("products", blas.to_owned()),
        ];
        rows.extend(self.devices.iter().map(|gpu| {
            let usable =
                gpu.unusable.as_ref().map_or(String::new(), |reason| format!("; not usable: {reason}"));
            let (name, gigabytes) = (&gpu.name, gpu.memory_bytes as f64 / 1e9);
            let device = format!("{}, {name}, capability {}, {gigabytes:.1} GB", gpu.device, gpu.capability);
            ("gpu", device + &usable)
        }));
        if let Some(reason) = self.cuda_unavailable.as_ref().filter(|_| self.devices.is_empty()) {
            rows.push(("gpu", reason.clone()));
        }
        rows.push(("cache", self.cache_row()));
        rows.push(("auto", format!("--device auto means {}", self.auto)));
        rows.push(("profiles", self.profiles_row()));
        rows
    }

    fn profiles_row(&self) -> String {
        let fast = if self.cpu_fast {
            "this CPU has it"
        } else {
            "this CPU has no AVX512-BF16 and runs repro instead"
        };
        format!("repro on a CPU, fast on a GPU unless --profile says otherwise; fast: {fast}")
    }

    fn compiler_row(&self) -> String {
        match &self.compiler {
            Some(version) => format!("NVRTC {version}"),
            None => {
                "no NVRTC; a GPU runs the kernels that came along. For kernels made for it: `pip install \
                     nvidia-cuda-nvrtc-cu12` and add the folder of its libnvrtc.so.12 to LD_LIBRARY_PATH"
                    .to_owned()
            }
        }
    }

    fn cache_row(&self) -> String {
        let Some(folder) = &self.cache else {
            return "no folder for caches; kernels are compiled at every start".to_owned();
        };
        let state =
            if self.cache_writable { "" } else { "; not writable: kernels are compiled at every start" };
        format!("{folder}, {} compiled kernels{state}", self.cache_entries)
    }
}

#[cfg(test)]
mod tests {
    use swarmline_kernels::device::{CudaDevice, Unavailable};

    use super::*;

    const CPU: CpuReport =
        CpuReport { cores: 4, instruction_sets: Vec::new(), loops: "baseline", fast: false };

    fn findings(cuda: &CudaReport) -> (String, serde_json::Value) {
        let findings = Findings::new(&CPU, cuda, DeviceChoice::Auto);
        let text = findings.rows().into_iter().map(|(subject, row)| format!("{subject}: {row}\n")).collect();
        (text, serde_json::to_value(&findings).unwrap())
    }

    #[test]
    fn a_machine_without_a_gpu_hears_cause_and_remedy() {
        let (text, json) = findings(&CudaReport::nothing(Unavailable::NoDriver));
        for part in [
            "driver: none",
            "pip install nvidia-cuda-nvrtc-cu12",
            "gpu: no NVIDIA driver",
            "auto means cpu",
            "runs repro",
        ] {
            assert!(text.contains(part), "{text} without {part:?}");
        }
        assert_eq!(json["auto"], "cpu");
        assert!(json["cuda_unavailable"].is_string() && json["driver"].is_null());
    }

    #[test]
    fn every_gpu_is_listed_with_what_is_wrong_with_it() {
        let device = |major| CudaDevice {
            name: format!("model {major}"),
            capability: Version { major, minor: 0 },
            memory_bytes: 16_000_000_000,
        };
        let version = |major, minor| Some(Version { major, minor });
        let cuda = CudaReport {
            driver: version(12, 4),
            compiler: version(12, 9),
            devices: vec![device(9), device(7)],
            unavailable: None,
            ..CudaReport::nothing(Unavailable::NoDriver)
        };
        let (text, json) = findings(&cuda);
        assert!(text.contains("cuda:0, model 9, capability 9.0, 16.0 GB\n"), "{text}");
        assert!(text.contains("cuda:1, model 7") && text.contains("not usable"), "{text}");
        assert_eq!((&json["auto"], &json["compiler"]), (&"cuda:0".into(), &"12.9".into()));
        assert!(json["cuda_unavailable"].is_null());
    }
}
