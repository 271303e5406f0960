//! The report of the processor.

use super::{isa::Isa, product::Products};
use crate::{Profile, report::CpuReport};

/// Cores and instruction sets of this machine, and the set that the loops use.
pub(crate) fn report() -> CpuReport {
    CpuReport {
        cores: std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get),
        instruction_sets: instruction_sets(),
        loops: loops(),
        fast: Products::new(isa(), Profile::Fast).profile() == Profile::Fast,
    }
}

#[cfg(target_arch = "x86_64")]
fn instruction_sets() -> Vec<&'static str> {
    let asked = [
        ("AVX2", is_x86_feature_detected!("avx2")),
        ("FMA", is_x86_feature_detected!("fma")),
        ("AVX-512F", is_x86_feature_detected!("avx512f")),
        ("AVX512-BF16", is_x86_feature_detected!("avx512bf16")),
    ];
    asked.into_iter().filter_map(|(name, found)| found.then_some(name)).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn instruction_sets() -> Vec<&'static str> {
    Vec::new()
}

/// The set of the loops; the best of the processor if the environment names an unknown set, which makes no backend.
fn isa() -> Isa {
    Isa::allowed().unwrap_or(Isa::best())
}

fn loops() -> &'static str {
    match isa() {
        Isa::Avx512 => "AVX-512",
        Isa::Avx2 => "AVX2 and FMA",
        Isa::Scalar => "baseline",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_are_compiled_for_what_the_processor_has() {
        let CpuReport { cores, instruction_sets, loops, fast } = report();
        assert!(cores > 0);
        assert!(loops != "AVX-512" || instruction_sets.contains(&"AVX-512F"));
        assert!(!fast || instruction_sets.contains(&"AVX512-BF16"));
        assert!(loops != "AVX2 and FMA" || instruction_sets.contains(&"FMA"));
    }
}
