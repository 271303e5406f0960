//! From the sources of the kernels to code for a device.
//!
//! NVRTC makes machine code for exactly the capability of the device, which every driver loads. Without NVRTC the
//! driver translates the PTX built into this program.

use std::ffi::CString;

use cudarc::nvrtc::{result, sys};

use super::libraries;
use crate::report::Version;

/// PTX of the same sources for compute capability 8.0, from which the driver makes code for that and any later one.
/// Every driver from [`DRIVER_MIN`](libraries::DRIVER_MIN) on reads its version.
pub(super) const PRECOMPILED: &str = include_str!("fallback.sm_80.ptx");

/// The files of the one translation unit, in the order of `src/sources.txt`.
const SOURCES: &[(&str, &str)] = &[
    ("types.cuh", include_str!("src/types.cuh")),
    ("math.cuh", include_str!("src/math.cuh")),
    ("reduce.cuh", include_str!("src/reduce.cuh")),
    ("random.cuh", include_str!("src/random.cuh")),
    ("product.cu", include_str!("src/product.cu")),
    ("rope.cu", include_str!("src/rope.cu")),
    ("attention.cu", include_str!("src/attention.cu")),
    ("attention_bf16.cu", include_str!("src/attention_bf16.cu")),
    ("boundary.cu", include_str!("src/boundary.cu")),
    ("cross_entropy.cu", include_str!("src/cross_entropy.cu")),
    ("elementwise.cu", include_str!("src/elementwise.cu")),
    ("embedding.cu", include_str!("src/embedding.cu")),
    ("rmsnorm.cu", include_str!("src/rmsnorm.cu")),
    ("swiglu.cu", include_str!("src/swiglu.cu")),
    ("update.cu", include_str!("src/update.cu")),
];

/// The inputs of a compilation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Recipe {
    pub(super) source: String,
    pub(super) options: Vec<String>,
    pub(super) compiler: Version,
}

impl Recipe {
    /// All kernels, for a device of this capability, by this version of the compiler.
    pub(super) fn new(capability: Version, compiler: Version) -> Self {
        let options = vec![
            format!("--gpu-architecture=sm_{}{}", capability.major, capability.minor),
            // Only operations written as `fmaf` are fused.
            "--fmad=false".to_owned(),
            "--std=c++17".to_owned(),
        ];
        Self { source: source(), options, compiler }
    }

    /// A name for the result, in hexadecimal: equal recipes give equal code.
    pub(super) fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        // Each part has its length in front, so that different recipes give different bytes.
        for part in self.options.iter().chain([&self.source, &self.compiler.to_string()]) {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Machine code, or the messages of the compiler.
    pub(super) fn compile(&self) -> Result<Vec<u8>, String> {
        if libraries::compiler_version() != Some(self.compiler) {
            return Err("no NVRTC library found".to_owned());
        }
        let source = CString::new(self.source.as_str()).map_err(|error| error.to_string())?;
        let program = Program(
            result::create_program(&source, Some(c"swarmline.cu")).map_err(|error| error.to_string())?,
        );
        // SAFETY: the program is alive until the end of this function.
        if let Err(error) = unsafe { result::compile_program(program.0, &self.options) } {
            return Err(format!("{error}: {}", program.log()));
        }
        program.code().map_err(|error| error.to_string())
    }
}

/// The translation unit. Messages of the compiler name file and line.
fn source() -> String {
    SOURCES.iter().map(|(name, text)| format!("#line 1 \"{name}\"\n{text}\n")).collect()
}

struct Program(sys::nvrtcProgram);

impl Program {
    fn log(&self) -> String {
        // SAFETY: the program is alive.
        let log = unsafe { result::get_program_log(self.0) }.unwrap_or_default();
        let bytes: Vec<u8> = log.into_iter().map(|byte| byte as u8).take_while(|&byte| byte != 0).collect();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }

    fn code(&self) -> Result<Vec<u8>, result::NvrtcError> {
        let mut len = 0;
        // SAFETY: the program is alive; one length is written.
        unsafe { sys::nvrtcGetCUBINSize(self.0, &mut len) }.result()?;
        let mut code = vec![0_u8; len];
        // SAFETY: the buffer has the length the compiler asked for.
        unsafe { sys::nvrtcGetCUBIN(self.0, code.as_mut_ptr().cast()) }.result()?;
        Ok(code)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by `create_program` and destroyed nowhere else.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// File and text of every source.
    pub(in super::super) fn sources() -> impl Iterator<Item = (&'static str, &'static str)> {
        SOURCES.iter().copied()
    }

    #[test]
    fn the_translation_unit_is_that_of_sources_txt() {
        let listed: Vec<_> =
            include_str!("src/sources.txt").lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(sources().map(|(name, _)| name).collect::<Vec<_>>(), listed);
    }

    #[test]
    fn the_digest_depends_on_every_part() {
        let recipe = Recipe::new(Version { major: 9, minor: 0 }, Version { major: 12, minor: 9 });
        let changed = [
            Recipe { source: recipe.source.replacen("float", "double", 1), ..recipe.clone() },
            Recipe { options: recipe.options[1..].to_vec(), ..recipe.clone() },
            Recipe { options: vec![recipe.options.concat()], ..recipe.clone() },
            Recipe { compiler: Version { major: 12, minor: 8 }, ..recipe.clone() },
        ];
        assert_eq!(recipe.digest(), recipe.clone().digest());
        for other in changed {
            assert_ne!(recipe.digest(), other.digest());
        }
    }

    #[test]
    fn all_sources_compile_where_there_is_a_compiler() {
        let Some(compiler) = libraries::compiler_version() else {
            println!("skipped: no NVRTC library; pip install nvidia-cuda-nvrtc-cu12 and set LD_LIBRARY_PATH");
            return;
        };
        for major in [8, 9] {
            let code = Recipe::new(Version { major, minor: 0 }, compiler).compile().unwrap();
            assert!(code.starts_with(b"\x7fELF"));
        }
        let broken = Recipe {
            source: "int x = ;".to_owned(),
            ..Recipe::new(Version { major: 8, minor: 0 }, compiler)
        };
        let message = broken.compile().unwrap_err();
        assert!(message.contains("error"), "{message}");
    }
}
