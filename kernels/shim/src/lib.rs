//! Builds a `libcuda.so` whose one device is the CPU, for tests of the CUDA backend on machines without a GPU.
//!
//! The library has the driver's interface and the kernels of `kernels/src/cuda/src`, compiled by the system's C++
//! compiler. A process that finds the library by [`Library::environment`] runs the whole CUDA backend: it looks for
//! devices, loads modules, allocates, copies, launches and waits.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
};

/// Variable: bytes of the device. Default: 1 GiB.
pub const MEMORY: &str = "CUDA_ON_CPU_MEMORY";
/// Variable: the CUDA version of the driver, as 1000 major + 10 minor. Default: 12000.
pub const DRIVER: &str = "CUDA_ON_CPU_DRIVER";
/// Variable: seed of the coin by which a stream works at once or as late as possible. Default: 1.
pub const SEED: &str = "CUDA_ON_CPU_SEED";
/// Variable: a path. The device fails as soon as a file exists there.
pub const BREAKS_WITH: &str = "CUDA_ON_CPU_BREAKS_WITH";
/// Variable: a path. The file there receives the name of every kernel at its first launch.
pub const LAUNCHED: &str = "CUDA_ON_CPU_LAUNCHED";
/// Variable: 1 runs every kernel in two orders of its threads and aborts the process if the results differ.
pub const BOTH_ORDERS: &str = "CUDA_ON_CPU_BOTH_ORDERS";

static BUILDING: Mutex<()> = Mutex::new(());

/// Errors of building or finding a library.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The C++ compiler cannot be run.
    #[error(
        "cannot run the C++ compiler {compiler:?} ({cause}): install g++ (Debian: apt-get install g++) or set CXX"
    )]
    NoCompiler {
        /// `$CXX`, or else `c++`.
        compiler: OsString,
        /// The error of the system.
        cause: io::Error,
    },
    /// The compiler refuses the sources; the text is the compiler's output.
    #[error("the C++ compiler refuses the kernels:\n{0}")]
    Refused(String),
    /// A file cannot be read or written.
    #[error("{}: {cause}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// The error of the system.
        cause: io::Error,
    },
}

/// The sanitizer a library is built with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sanitizer {
    /// No sanitizer: optimised, without checks of accesses.
    None,
    /// The address sanitizer: it ends the process at the first access outside an allocation.
    Address,
}

/// A built library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    folder: PathBuf,
    sanitizer: Sanitizer,
}

impl Library {
    /// The library, built unless a folder of its own under `folder` has it.
    ///
    /// # Errors
    ///
    /// If there is no compiler, the compiler refuses the sources, or files cannot be read or written.
    pub fn build(folder: &Path, sanitizer: Sanitizer) -> Result<Self, Error> {
        // Tests of one process run concurrently: the first builds the library, the others find it.
        let _turn = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
        let inputs = Inputs::read()?;
        let library = Self { folder: folder.join(inputs.digest(sanitizer)), sanitizer };
        if !library.file().exists() {
            fs::create_dir_all(&library.folder).map_err(|cause| failed(&library.folder, cause))?;
            inputs.generate(&library.folder)?;
            library.compile()?;
        }
        Ok(library)
    }

    /// [`Library::build`] for a test that may be skipped: `None`, with the reason on standard error, on systems other
    /// than Linux, and without a compiler unless `SWARMLINE_REQUIRE_CXX` is 1.
    ///
    /// # Panics
    ///
    /// If the library cannot be built for another reason, or there is no compiler although it is required.
    #[must_use]
    #[expect(clippy::print_stderr, reason = "a skipped check should be seen")]
    pub fn for_test(folder: &Path, sanitizer: Sanitizer) -> Option<Self> {
        if !cfg!(target_os = "linux") {
            eprintln!("skipped: a driver for CUDA on the CPU is made for Linux alone");
            return None;
        }
        match Self::build(folder, sanitizer) {
            Ok(library) => Some(library),
            Err(missing @ Error::NoCompiler { .. }) => {
                let required = std::env::var_os("SWARMLINE_REQUIRE_CXX").is_some_and(|value| value == "1");
                assert!(!required, "{missing}");
                eprintln!("skipped: {missing}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn file(&self) -> PathBuf {
        self.folder.join("libcuda.so")
    }

    /// The variables with which a process finds this library before any other `libcuda.so`.
    ///
    /// # Errors
    ///
    /// If the compiler does not say where its sanitizer is.
    pub fn environment(&self) -> Result<Vec<(&'static str, OsString)>, Error> {
        let mut folders = self.folder.clone().into_os_string();
        if let Some(others) = std::env::var_os("LD_LIBRARY_PATH") {
            folders.push(":");
            folders.push(others);
        }
        let mut variables = vec![("LD_LIBRARY_PATH", folders)];
        if self.sanitizer == Sanitizer::Address {
            let said = run(Command::new(compiler()).arg("-print-file-name=libasan.so"))?;
            variables.push(("LD_PRELOAD", said.trim().into()));
            // The sanitizer does not see that fibers change stacks; a program that ends may leave memory behind.
            variables.push(("ASAN_OPTIONS", "detect_stack_use_after_return=0:detect_leaks=0".into()));
        }
        Ok(variables)
    }

    fn compile(&self) -> Result<(), Error> {
        // Several processes may build concurrently: each writes a file of its own, and the last rename wins.
        let fresh = self.folder.join(format!("libcuda.{}.so", std::process::id()));
        let mut command = Command::new(compiler());
        command
            // No contraction: an operation is fused where `fmaf` is written, as in the build for the device.
            .args(["-std=c++17", "-ffp-contract=off", "-fPIC", "-shared"])
            .args(["-Wall", "-Wextra", "-Werror", "-Wno-sign-compare"])
            .args(match self.sanitizer {
                Sanitizer::None => ["-O2", "-g0"].as_slice(),
                Sanitizer::Address => &["-O1", "-g1", "-fsanitize=address"],
            })
            .arg(format!("-I{}", self.folder.display()))
            .arg(shim().join("driver.cpp"))
            .arg("-o")
            .arg(&fresh);
        run(&mut command)?;
        fs::rename(&fresh, self.file()).map_err(|cause| failed(&fresh, cause))
    }
}

/// Names of all kernels of the sources.
///
/// # Errors
///
/// If the sources cannot be read.
pub fn kernels() -> Result<BTreeSet<String>, Error> {
    Ok(Inputs::read()?.kernels)
}

/// The sources of the library.
struct Inputs {
    sources: Vec<PathBuf>,
    kernels: BTreeSet<String>,
    texts: Vec<String>,
}

impl Inputs {
    fn read() -> Result<Self, Error> {
        let folder = shim().join("../src/cuda/src");
        let list = read(&folder.join("sources.txt"))?;
        let sources: Vec<_> = list.lines().map(|name| folder.join(name)).collect();
        let own = ["fiber.h", "device.h", "heap.h", "stream.h", "settings.h", "kernels.h", "driver.cpp"];
        let files = sources.iter().cloned().chain(own.map(|name| shim().join(name)));
        let texts = files.map(|path| read(&path)).collect::<Result<Vec<_>, _>>()?;
        let kernels = texts[..sources.len()].iter().flat_map(|text| kernel_names(text)).collect();
        Ok(Self { sources, kernels, texts })
    }

    fn digest(&self, sanitizer: Sanitizer) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{sanitizer:?} {:?}", compiler()).as_bytes());
        for text in &self.texts {
            hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        }
        hasher.finalize().to_hex()[..16].to_owned()
    }

    /// Writes the files that give the C++ code all sources and the names of all kernels.
    fn generate(&self, folder: &Path) -> Result<(), Error> {
        let includes = self.sources.iter().map(|source| format!("#include \"{}\"\n", source.display()));
        let names = self.kernels.iter().map(|name| format!("KERNEL({name})\n"));
        for (name, text) in [("kernels.inc", includes.collect()), ("names.inc", names.collect::<String>())] {
            let path = folder.join(name);
            fs::write(&path, text).map_err(|cause| failed(&path, cause))?;
        }
        Ok(())
    }
}

/// Names of the kernels that a source defines.
fn kernel_names(text: &str) -> impl Iterator<Item = String> {
    text.split("extern \"C\" __global__ void").skip(1).filter_map(|rest| {
        let rest = &rest[rest.find("swl_")?..];
        Some(rest[..rest.find('(')?].to_owned())
    })
}

/// The folder of the C++ files.
fn shim() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn compiler() -> OsString {
    std::env::var_os("CXX").unwrap_or_else(|| "c++".into())
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|cause| failed(path, cause))
}

fn failed(path: &Path, cause: io::Error) -> Error {
    Error::File { path: path.to_owned(), cause }
}

/// Runs the compiler and returns its output.
fn run(command: &mut Command) -> Result<String, Error> {
    match command.output() {
        Ok(run) if run.status.success() => Ok(String::from_utf8_lossy(&run.stdout).into_owned()),
        Ok(run) => Err(Error::Refused(String::from_utf8_lossy(&run.stderr).into_owned())),
        Err(cause) => Err(Error::NoCompiler { compiler: compiler(), cause }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_found_with_and_without_bounds() {
        let text = "extern \"C\" __global__ void swl_a(int x) {}\n\
            extern \"C\" __global__ void __launch_bounds__(64) swl_b(\n    int x\n) {}\n__device__ void swl_c() {}";
        assert_eq!(kernel_names(text).collect::<Vec<_>>(), ["swl_a", "swl_b"]);
    }
}
