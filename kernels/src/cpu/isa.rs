//! Which instructions the loops run on. The choice changes the speed, never the results.

use pulp::Arch;
use std::sync::OnceLock;

/// Names the widest set to use: `scalar`, `avx2` or `avx512`. It cannot ask for more than the machine has.
const VARIABLE: &str = "SWARMLINE_ISA";

/// Instruction sets, narrow to wide. Each machine has all up to its widest.
///
/// On processors other than x86-64, everything above `Scalar` stands for what the processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Isa {
    Scalar,
    Avx2,
    Avx512,
}

/// The set to use: the widest of this machine that the environment allows. Read once.
///
/// # Panics
///
/// If the variable names no set.
pub(super) fn isa() -> Isa {
    static CHOSEN: OnceLock<Isa> = OnceLock::new();
    *CHOSEN.get_or_init(|| match std::env::var(VARIABLE) {
        Ok(name) => match Isa::named(&name) {
            Some(allowed) => allowed.min(Isa::widest()),
            None => panic!("{VARIABLE} is scalar, avx2 or avx512, not {name:?}"),
        },
        Err(_) => Isa::widest(),
    })
}

impl Isa {
    fn named(name: &str) -> Option<Self> {
        match name {
            "scalar" => Some(Self::Scalar),
            "avx2" => Some(Self::Avx2),
            "avx512" => Some(Self::Avx512),
            _ => None,
        }
    }

    /// The widest set of this machine.
    #[cfg(target_arch = "x86_64")]
    fn widest() -> Self {
        match Arch::new() {
            Arch::V4(_) => Self::Avx512,
            Arch::V3(_) => Self::Avx2,
            _ => Self::Scalar,
        }
    }

    /// The widest set of this machine.
    #[cfg(not(target_arch = "x86_64"))]
    fn widest() -> Self {
        Self::Avx512
    }

    /// The set as `pulp` knows it, or the next narrower one this machine has.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn arch(self) -> Arch {
        match (self, Arch::new()) {
            (Self::Avx2, Arch::V4(simd)) => Arch::V3(*simd),
            (Self::Scalar, _) => Arch::Scalar,
            (_, widest) => widest,
        }
    }

    /// The set as `pulp` knows it.
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) fn arch(self) -> Arch {
        if self == Self::Scalar { Arch::Scalar } else { Arch::new() }
    }
}

/// Every set up to [`isa`].
#[cfg(test)]
pub(super) fn available() -> impl Iterator<Item = Isa> {
    [Isa::Scalar, Isa::Avx2, Isa::Avx512].into_iter().filter(|&set| set <= isa())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_have_names() {
        assert_eq!(Isa::named("scalar"), Some(Isa::Scalar));
        assert_eq!(Isa::named("avx2"), Some(Isa::Avx2));
        assert_eq!(Isa::named("avx512"), Some(Isa::Avx512));
        assert_eq!(Isa::named("AVX-512"), None);
    }

    #[test]
    fn the_environment_is_obeyed() {
        match std::env::var(VARIABLE) {
            Ok(name) => assert!(isa() <= Isa::named(&name).unwrap()),
            Err(_) => assert_eq!(isa(), Isa::widest()),
        }
    }
}
