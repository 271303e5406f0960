//! The choice of the micro-kernel that computes products.

#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512, bf16};
use super::{scalar, tile::Kernel};
use crate::{Profile, cpu::isa::Isa};

/// The fastest kernel of `profile` that the processor and `isa` allow.
pub(super) fn kernel(isa: Isa, profile: Profile) -> &'static Kernel {
    // `Kernel::run` relies on this limit: the processor has the instructions of the chosen kernel.
    match isa.min(Isa::best()) {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 if profile == Profile::Fast && is_x86_feature_detected!("avx512bf16") => &bf16::KERNEL,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => &avx512::KERNEL,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => &avx2::KERNEL,
        _ => &scalar::KERNEL,
    }
}
