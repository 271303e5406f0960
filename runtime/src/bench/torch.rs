//! The same model in PyTorch; each measurement is a process of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::process::{ProcessError, output};
use super::size::{SEQUENCES, Size};
use super::step::{StepReport, steps_for};

/// Limit of the check. On a cold disk the first import of PyTorch takes long.
const CHECK_LIMIT: Duration = Duration::from_secs(120);
/// Limit of a run beside its steps, seconds: start of the interpreter, initial weights.
const START_LIMIT_S: f64 = 30.0;
/// Limit of compilation, seconds.
const COMPILE_LIMIT_S: f64 = 90.0;
/// Steps of PyTorch may take this many times as long as ours; a slower mode cannot be the best.
const SLOWNESS_MAX: f64 = 4.0;
/// Steps of PyTorch before the measurement that do not count.
const WARM_UP_STEPS: usize = 3;

/// A way to run a model in PyTorch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TorchMode {
    /// `torch.compile`, or eager.
    pub compiled: bool,
    /// bf16 autocast, or f32.
    pub bf16: bool,
}

impl TorchMode {
    /// All modes, f32 first: on a CPU without instructions for bf16, a mode in bf16 takes all the time that is left.
    pub const ALL: [Self; 4] = [
        Self { compiled: false, bf16: false },
        Self { compiled: true, bf16: false },
        Self { compiled: true, bf16: true },
        Self { compiled: false, bf16: true },
    ];

    /// Name of the mode in tables and files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match (self.compiled, self.bf16) {
            (false, false) => "eager f32",
            (true, false) => "compile f32",
            (false, true) => "eager bf16",
            (true, true) => "compile bf16",
        }
    }
}

/// Reasons why PyTorch cannot be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TorchError {
    /// The script cannot be read.
    #[error("--against {path}: {error}; give the path of torch_llama.py")]
    Script {
        /// Path of the script.
        path: PathBuf,
        /// Error of the operating system.
        error: std::io::Error,
    },
    /// The interpreter does not start.
    #[error(
        "--against needs Python, and `{python}` does not start ({reason}); name an interpreter with --python"
    )]
    Python {
        /// Path or name of the interpreter.
        python: PathBuf,
        /// Error of the operating system.
        reason: String,
    },
    /// The interpreter starts and has no PyTorch.
    #[error(
        "--against needs PyTorch, and `{python}` has none ({reason}); `{python} -m pip install torch numpy`, or name \
         another interpreter with --python"
    )]
    Torch {
        /// Path or name of the interpreter.
        python: PathBuf,
        /// Last line of its standard error.
        reason: String,
    },
    /// A measurement failed.
    #[error("{0}")]
    Run(String),
}

/// An interpreter with PyTorch and the script it runs.
#[derive(Clone, Debug)]
pub struct Torch {
    python: PathBuf,
    script: PathBuf,
    version: String,
}

impl Torch {
    /// Checks that the script can be read and that `python` starts and has PyTorch.
    ///
    /// # Errors
    /// If not; the message names the remedy.
    pub fn find(python: &Path, script: &Path) -> Result<Self, TorchError> {
        let unusable = |error| TorchError::Script { path: script.to_owned(), error };
        if !std::fs::metadata(script).map_err(unusable)?.is_file() {
            return Err(unusable(std::io::Error::other("not a file")));
        }
        let mut command = Command::new(python);
        command.args(["-c", "import torch; print(torch.__version__)"]);
        let python = python.to_owned();
        match output(&mut command, CHECK_LIMIT) {
            Ok(version) => Ok(Self { python, script: script.to_owned(), version: version.trim().to_owned() }),
            Err(ProcessError::Start(error)) => Err(TorchError::Python { python, reason: error.to_string() }),
            Err(error) => Err(TorchError::Torch { python, reason: error.to_string() }),
        }
    }

    /// Version of PyTorch.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Measures PyTorch on `threads` threads, for as many steps as ours. The measurement may take `time_max`, and no
    /// longer than the time of our step allows.
    ///
    /// # Errors
    /// [`TorchError::Run`] if the process fails, takes too long, or measures another model.
    pub fn measure(
        &self,
        size: Size,
        mode: TorchMode,
        threads: usize,
        our: &StepReport,
        time_max: Duration,
    ) -> Result<StepReport, TorchError> {
        let steps = steps_for(our.step_s_median);
        let mut command = Command::new(&self.python);
        command.arg(&self.script).args(["speed", "--config", size.letter()]);
        command.args(["--dtype", if mode.bf16 { "bf16" } else { "f32" }]);
        command.args(["--threads", &threads.to_string(), "--steps", &steps.to_string()]);
        command.args(["--batch", &SEQUENCES.to_string()]);
        if mode.compiled {
            command.arg("--compile");
        }
        let printed = output(&mut command, limit(mode, steps, our.step_s_median).min(time_max))
            .map_err(|error| TorchError::Run(error.to_string()))?;
        let line = printed.lines().rev().find(|line| line.starts_with('{')).unwrap_or_default();
        let report: StepReport = serde_json::from_str(line)
            .map_err(|error| TorchError::Run(format!("its report cannot be read: {error}")))?;
        if (report.params, report.batch, report.threads) != (our.params, our.batch, our.threads) {
            return Err(TorchError::Run(format!(
                "it measured another model: {} parameters, batch {}, {} threads; ours has {}, {}, {}",
                report.params, report.batch, report.threads, our.params, our.batch, our.threads
            )));
        }
        Ok(report)
    }
}

fn limit(mode: TorchMode, steps: usize, our_step_s: f64) -> Duration {
    let steps_s = SLOWNESS_MAX * our_step_s * (steps + WARM_UP_STEPS) as f64;
    let compile_s = if mode.compiled { COMPILE_LIMIT_S } else { 0.0 };
    Duration::from_secs_f64(START_LIMIT_S + steps_s + compile_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_part_is_named_with_its_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("torch_llama.py");
        let find = |python: &str| Torch::find(Path::new(python), &script).unwrap_err().to_string();
        assert!(find("python3").contains("torch_llama.py"));
        std::fs::write(&script, "").unwrap();
        assert!(find("/nowhere/python").contains("--python"));
        // An interpreter that starts and fails.
        assert!(find("false").contains("pip install torch"));
    }

    #[test]
    fn only_compiling_has_time_to_compile() {
        let seconds = |mode| limit(mode, 1, 2.0).as_secs_f64();
        assert_eq!(seconds(TorchMode::ALL[0]), 30.0 + 4.0 * 2.0 * 4.0);
        assert_eq!(seconds(TorchMode::ALL[1]) - seconds(TorchMode::ALL[0]), 90.0);
    }
}
