//! A GPU for machines without one: the CPU, behind a driver of our own.

use std::ffi::OsString;
use std::path::Path;

use swarmline_cuda_on_cpu::{Library, Sanitizer};

use crate::process::Process;

/// What processes need in their environment to find the GPU.
pub(crate) struct Gpu {
    environment: Vec<(&'static str, OsString)>,
}

impl Gpu {
    /// Nothing, with the reason printed, where no C++ compiler is found and none is required.
    pub(crate) fn find() -> Option<Self> {
        let library = Library::for_test(Path::new(env!("CARGO_TARGET_TMPDIR")), Sanitizer::None)?;
        Some(Self { environment: library.environment().unwrap() })
    }

    /// The same with a property, one of those the crate of the driver names.
    pub(crate) fn with(mut self, property: &'static str, value: impl Into<OsString>) -> Self {
        self.environment.push((property, value.into()));
        self
    }

    /// Starts a `swarmline` that finds it.
    pub(crate) fn start<'a>(&self, name: &str, arguments: impl IntoIterator<Item = &'a str>) -> Process {
        Process::start_in(&self.environment, name, arguments)
    }
}
