//! Compiles the kernels with the system's C++ compiler and launches them in a process of their own, where the
//! address sanitizer can end it.

use bytemuck::{Pod, cast_slice, cast_slice_mut};
use std::{
    cell::RefCell,
    collections::BTreeSet,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// An argument of a kernel.
pub(crate) enum Arg<'a> {
    /// A buffer the kernel may write.
    Out(&'a mut [u8]),
    /// A buffer it may only read.
    In(&'a [u8]),
    Int(i32),
    Float(f32),
    Long(u64),
}

pub(crate) fn out<T: Pod>(x: &mut [T]) -> Arg<'_> {
    Arg::Out(cast_slice_mut(x))
}

pub(crate) fn input<T: Pod>(x: &[T]) -> Arg<'_> {
    Arg::In(cast_slice(x))
}

pub(crate) fn int(x: usize) -> Arg<'static> {
    Arg::Int(i32::try_from(x).unwrap())
}

/// Where and how wide a kernel runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Launch {
    pub(crate) grid: [usize; 3],
    pub(crate) block: [usize; 3],
    pub(crate) shared_bytes: usize,
}

impl Launch {
    /// One number, row or pair per thread.
    pub(crate) fn threads(count: usize, block: usize) -> Self {
        Self::blocks(count.div_ceil(block), block)
    }

    pub(crate) fn blocks(count: usize, block: usize) -> Self {
        Self::grid([count, 1, 1], block)
    }

    pub(crate) fn grid(grid: [usize; 3], block: usize) -> Self {
        Self { grid, block: [block, 1, 1], shared_bytes: 0 }
    }

    pub(crate) fn shared(self, shared_bytes: usize) -> Self {
        Self { shared_bytes, ..self }
    }
}

/// The process that runs kernels, and the kernels it has run.
pub(crate) struct Driver {
    child: Child,
    requests: ChildStdin,
    answers: ChildStdout,
    launched: RefCell<BTreeSet<String>>,
}

impl Driver {
    /// `None`, with the reason printed, where no C++ compiler is found and none is required.
    pub(crate) fn start() -> Option<Self> {
        let program = build()?;
        let mut child = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (requests, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Some(Self { child, requests, answers, launched: RefCell::default() })
    }

    /// Runs `kernel` to its end. A launch without blocks does nothing, as the host must not launch it.
    #[track_caller]
    pub(crate) fn launch(&mut self, kernel: &str, launch: Launch, arguments: &mut [Arg<'_>]) {
        if launch.grid.contains(&0) {
            return;
        }
        self.launched.borrow_mut().insert(kernel.to_owned());
        self.requests
            .write_all(&encode(kernel, launch, arguments))
            .expect("the process of the kernels is gone");
        self.requests.flush().unwrap();
        for argument in arguments {
            match argument {
                Arg::Out(bytes) => self.read(kernel, bytes),
                Arg::In(bytes) => {
                    let mut after = vec![0; bytes.len()];
                    self.read(kernel, &mut after);
                    assert!(after == *bytes, "{kernel} wrote into an input");
                }
                Arg::Int(_) | Arg::Float(_) | Arg::Long(_) => {}
            }
        }
    }

    fn read(&mut self, kernel: &str, bytes: &mut [u8]) {
        if self.answers.read_exact(bytes).is_err() {
            let status = self.child.wait().unwrap();
            panic!("{kernel} ended its process: {status}; its message is above");
        }
    }

    /// Kernels of the sources that were never launched.
    pub(crate) fn never_launched(&self) -> Vec<String> {
        let launched = self.launched.borrow();
        kernels().into_iter().filter(|kernel| !launched.contains(kernel)).collect()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn encode(kernel: &str, launch: Launch, arguments: &[Arg<'_>]) -> Vec<u8> {
    let mut request = Vec::new();
    let number = |request: &mut Vec<u8>, x: usize| {
        request.extend(u32::try_from(x).unwrap().to_le_bytes());
    };
    number(&mut request, kernel.len());
    request.extend(kernel.as_bytes());
    for x in launch.grid.into_iter().chain(launch.block) {
        number(&mut request, x);
    }
    number(&mut request, launch.shared_bytes);
    number(&mut request, arguments.len());
    let buffer = |request: &mut Vec<u8>, bytes: &[u8]| {
        request.push(0);
        number(request, bytes.len());
        request.extend(bytes);
    };
    for argument in arguments {
        match argument {
            Arg::Out(bytes) => buffer(&mut request, bytes),
            Arg::In(bytes) => buffer(&mut request, bytes),
            Arg::Int(x) => {
                request.push(1);
                request.extend(x.to_le_bytes());
            }
            Arg::Float(x) => {
                request.push(2);
                request.extend(x.to_le_bytes());
            }
            Arg::Long(x) => {
                request.push(3);
                request.extend(x.to_le_bytes());
            }
        }
    }
    request
}

/// The files of the kernels, in their order.
fn sources() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda/src");
    let list = std::fs::read_to_string(folder.join("sources.txt")).unwrap();
    list.lines().map(|name| folder.join(name)).collect()
}

/// Names of all kernels.
fn kernels() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for source in sources() {
        let text = std::fs::read_to_string(source).unwrap();
        for rest in text.split("extern \"C\" __global__ void").skip(1) {
            let rest = &rest[rest.find("swl_").unwrap()..];
            names.insert(rest[..rest.find('(').unwrap()].to_owned());
        }
    }
    names
}

/// Builds the driver, unless it is newer than all it is made from.
fn build() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda_on_cpu");
    std::fs::create_dir_all(&folder).unwrap();
    let program = folder.join("driver");
    let shim = Path::new(env!("CARGO_MANIFEST_DIR")).join("shim");
    let includes: String =
        sources().iter().map(|source| format!("#include \"{}\"\n", source.display())).collect();
    let names: String = kernels().iter().map(|name| format!("KERNEL({name})\n")).collect();
    let mut inputs = sources();
    inputs.extend(["device.h", "fiber.h", "driver.cpp"].map(|name| shim.join(name)));
    let modified = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    let fresh = modified(&program);
    let unchanged = |name: &str, text: &str| {
        std::fs::read_to_string(folder.join(name)).is_ok_and(|before| before == text)
    };
    if unchanged("kernels.inc", &includes)
        && unchanged("names.inc", &names)
        && fresh.is_some()
        && inputs.iter().all(|input| modified(input) < fresh)
    {
        return Some(program);
    }
    std::fs::write(folder.join("kernels.inc"), includes).unwrap();
    std::fs::write(folder.join("names.inc"), names).unwrap();
    compile(&shim.join("driver.cpp"), &program, [&folder, &shim])
}

fn compile(source: &Path, program: &Path, headers: [&Path; 2]) -> Option<PathBuf> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let run = Command::new(&compiler)
        // No contraction: an operation is fused where `fmaf` is written, as in the build for the device.
        .args(["-std=c++17", "-O1", "-g1", "-ffp-contract=off", "-fsanitize=address"])
        .args(["-Wall", "-Wextra", "-Werror", "-Wno-sign-compare"])
        .args(headers.iter().map(|folder| format!("-I{}", folder.display())))
        .arg(source)
        .arg("-o")
        .arg(program)
        .output();
    match run {
        Ok(run) => {
            assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
            Some(program.to_owned())
        }
        Err(error) => {
            missing(&format!(
                "cannot run the C++ compiler {compiler:?} ({error}): install g++ (Debian: apt-get install g++) \
                 or set CXX"
            ));
            None
        }
    }
}

#[expect(clippy::print_stderr, reason = "who runs the tests should know what they did not check")]
fn missing(why: &str) {
    assert!(std::env::var_os("SWARMLINE_REQUIRE_CXX").is_none_or(|value| value != "1"), "{why}");
    eprintln!("skipped: {why}");
}
