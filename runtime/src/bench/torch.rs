//! The peer: the same model in PyTorch, each measurement a process of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::process::{ProcessError, output};
use super::size::{SEQUENCES, Size};
use super::step::{StepReport, steps_for};

/// Importing PyTorch for the first time on a cold disk takes a while.
const CHECK_LIMIT: Duration = Duration::from_secs(120);
/// A run may take this long besides its steps: start of the interpreter, initial weights.
const START_LIMIT_S: f64 = 30.0;
/// And this long to compile.
const COMPILE_LIMIT_S: f64 = 90.0;
/// And its steps so many times as long as ours; a mode that is slower is not the best one.
const SLOWNESS_MAX: f64 = 4.0;
/// Steps of the peer that do not count.
const WARM_UP_STEPS: usize = 3;

/// How PyTorch runs a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// `torch.compile`, or eager.
    pub compiled: bool,
    /// bf16 autocast, or f32.
    pub bf16: bool,
}

impl Mode {
    /// All of them: first those that run well everywhere. Without instructions for it bf16 may take so long that
    /// nothing has time after it.
    pub const ALL: [Self; 4] = [
        Self { compiled: false, bf16: false },
        Self { compiled: true, bf16: false },
        Self { compiled: true, bf16: true },
        Self { compiled: false, bf16: true },
    ];

    /// As in tables and files.
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

/// Why PyTorch cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// There is no such script.
    #[error("--against {path}: {error}; give the path of torch_llama.py")]
    Script {
        /// Where it was looked for.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The interpreter does not start.
    #[error(
        "--against needs Python, and `{python}` does not start ({reason}); name an interpreter with --python"
    )]
    Python {
        /// What was started.
        python: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// It starts and has no PyTorch.
    #[error(
        "--against needs PyTorch, and `{python}` has none ({reason}); `{python} -m pip install torch numpy`, or name \
         another interpreter with --python"
    )]
    Torch {
        /// The interpreter.
        python: PathBuf,
        /// What it said.
        reason: String,
    },
    /// One measurement came to nothing.
    #[error("{0}")]
    Run(String),
}

/// An interpreter with PyTorch and the script it runs.
#[derive(Clone, Debug)]
pub struct Peer {
    python: PathBuf,
    script: PathBuf,
    version: String,
}

impl Peer {
    /// Makes sure that both are there.
    ///
    /// # Errors
    /// If one is not; the message says what to do.
    pub fn find(python: &Path, script: &Path) -> Result<Self, PeerError> {
        let unusable = |error| PeerError::Script { path: script.to_owned(), error };
        if !std::fs::metadata(script).map_err(unusable)?.is_file() {
            return Err(unusable(std::io::Error::other("it is no file")));
        }
        let mut command = Command::new(python);
        command.args(["-c", "import torch; print(torch.__version__)"]);
        let python = python.to_owned();
        match output(&mut command, CHECK_LIMIT) {
            Ok(version) => Ok(Self { python, script: script.to_owned(), version: version.trim().to_owned() }),
            Err(ProcessError::Start(error)) => Err(PeerError::Python { python, reason: error.to_string() }),
            Err(error) => Err(PeerError::Torch { python, reason: error.to_string() }),
        }
    }

    /// Version of PyTorch.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// One measurement on so many threads, of as many steps as our own, which also bounds how long it may take,
    /// and `time_max` at most.
    ///
    /// # Errors
    /// If it fails, takes too long, or is not of the same model.
    pub fn measure(
        &self,
        size: Size,
        mode: Mode,
        threads: usize,
        our: &StepReport,
        time_max: Duration,
    ) -> Result<StepReport, PeerError> {
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
            .map_err(|error| PeerError::Run(error.to_string()))?;
        let line = printed.lines().rev().find(|line| line.starts_with('{')).unwrap_or_default();
        let report: StepReport = serde_json::from_str(line)
            .map_err(|error| PeerError::Run(format!("what it printed cannot be read: {error}")))?;
        if (report.params, report.batch, report.threads) != (our.params, our.batch, our.threads) {
            return Err(PeerError::Run(format!(
                "it did not measure the same: {} parameters, batch {}, {} threads, and ours {}, {}, {}",
                report.params, report.batch, report.threads, our.params, our.batch, our.threads
            )));
        }
        Ok(report)
    }
}

fn limit(mode: Mode, steps: usize, our_step_s: f64) -> Duration {
    let steps_s = SLOWNESS_MAX * our_step_s * (steps + WARM_UP_STEPS) as f64;
    let compile_s = if mode.compiled { COMPILE_LIMIT_S } else { 0.0 };
    Duration::from_secs_f64(START_LIMIT_S + steps_s + compile_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("torch_llama.py");
        let find = |python: &str| Peer::find(Path::new(python), &script).unwrap_err().to_string();
        assert!(find("python3").contains("torch_llama.py"));
        std::fs::write(&script, "").unwrap();
        assert!(find("/nowhere/python").contains("--python"));
        // An interpreter that starts and fails.
        assert!(find("false").contains("pip install torch"));
    }

    #[test]
    fn only_compiling_has_time_to_compile() {
        let seconds = |mode| limit(mode, 1, 2.0).as_secs_f64();
        assert_eq!(seconds(Mode::ALL[0]), 30.0 + 4.0 * 2.0 * 4.0);
        assert_eq!(seconds(Mode::ALL[1]) - seconds(Mode::ALL[0]), 90.0);
    }
}
