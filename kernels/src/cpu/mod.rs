//! The CPU backend.

/// The CPU.
#[derive(Debug)]
pub struct Cpu;

/// A buffer in main memory.
#[derive(Debug)]
pub struct CpuTensor;
