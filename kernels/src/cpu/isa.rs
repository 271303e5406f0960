//! Instruction sets: those the processor has and the environment allows.

use crate::{Error, Result};
use pulp::Arch;
use std::{env, sync::OnceLock};

/// The variable that names the largest set that may be used; read once.
const VARIABLE: &str = "SWARMLINE_ISA";

/// Instruction sets, each containing those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Isa {
    /// The instructions that every processor of the target has.
    Scalar,
    /// AVX2 and fused multiply-add. A processor with only one of the two counts as scalar: it would round differently.
    Avx2,
    /// AVX-512.
    Avx512,
}

impl Isa {
    /// The best set of this processor.
    pub(super) fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            let wide = is_x86_feature_detected!("avx512f");
            return if wide { Self::Avx512 } else { Self::Avx2 };
        }
        Self::Scalar
    }

    /// The best set of this processor that the environment allows. An unknown name is [`Error::Device`].
    pub(super) fn allowed() -> Result<Self> {
        static LIMIT: OnceLock<Option<String>> = OnceLock::new();
        let limit =
            LIMIT.get_or_init(|| env::var_os(VARIABLE).map(|name| name.to_string_lossy().into_owned()));
        match limit {
            Some(name) => Self::named(name).map(|isa| isa.min(Self::best())),
            None => Ok(Self::best()),
        }
    }

    /// The set for loops that are compiled once for each.
    pub(super) fn arch(self) -> Arch {
        if self == Self::best() {
            return Arch::new();
        }
        #[cfg(target_arch = "x86_64")]
        if self == Self::Avx2
            && let Some(set) = pulp::x86::V3::try_new()
        {
            return Arch::V3(set);
        }
        Arch::Scalar
    }

    /// Every set that this processor has and the environment allows.
    #[cfg(test)]
    pub(super) fn available() -> impl Iterator<Item = Self> {
        let widest = Self::allowed().unwrap();
        [Self::Scalar, Self::Avx2, Self::Avx512].into_iter().filter(move |&isa| isa <= widest)
    }

    fn named(name: &str) -> Result<Self> {
        match name {
            "scalar" => Ok(Self::Scalar),
            "avx2" => Ok(Self::Avx2),
            "avx512" => Ok(Self::Avx512),
            _ => Err(Error::Device(format!("{VARIABLE} is `{name}`, not `scalar`, `avx2` or `avx512`"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Isa, VARIABLE};

    #[test]
    fn the_environment_is_obeyed() {
        if let Ok(name) = std::env::var(VARIABLE) {
            assert_eq!(Isa::allowed().unwrap(), Isa::named(&name).unwrap().min(Isa::best()));
        }
    }

    #[test]
    fn a_name_limits_and_an_unknown_one_is_refused() {
        let names = ["scalar", "avx2", "avx512"];
        let sets = names.map(|name| Isa::named(name).unwrap());
        assert!(sets.is_sorted());
        assert!(Isa::named("AVX9").unwrap_err().to_string().contains("SWARMLINE_ISA"));
    }
}
