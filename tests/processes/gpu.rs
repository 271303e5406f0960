//! The CPU behind a CUDA driver of our own, in place of a GPU.

use std::ffi::OsString;
use std::path::Path;

use swarmline_cuda_on_cpu::{Library, Sanitizer};

use crate::process::Process;

/// Environment in which a process finds the GPU.
pub(crate) struct Gpu {
    environment: Vec<(&'static str, OsString)>,
}

impl Gpu {
    /// The GPU; `None`, with the reason printed, if there is no C++ compiler and none is required.
    pub(crate) fn find() -> Option<Self> {
        let library = Library::for_test(Path::new(env!("CARGO_TARGET_TMPDIR")), Sanitizer::None)?;
        Some(Self { environment: library.environment().unwrap() })
    }

    /// The GPU with a property, one of the variables of the driver's crate.
    pub(crate) fn with(mut self, property: &'static str, value: impl Into<OsString>) -> Self {
        self.environment.push((property, value.into()));
        self
    }

    /// Starts a `swarmline` that finds the GPU.
    pub(crate) fn start<'a>(&self, name: &str, arguments: impl IntoIterator<Item = &'a str>) -> Process {
        Process::start_in(&self.environment, name, arguments)
    }
}
