//! `bench kernels`: operations against the peaks of this machine, the whole step against PyTorch.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde::Serialize;
use swarmline_kernels::Profile;

use super::comparison::{self, Comparison, ModeReport};
use super::machine::{self, Machine};
use super::operations::{self, OperationReport};
use super::peaks::{PeakPlan, Peaks};
use super::process::output;
use super::size::{SEQUENCES, Size};
use super::statistics::{Spread, median};
use super::step::StepReport;
use super::{BenchError, NO_FAST, Torch, cpu, flops};
use crate::error::Error;

/// Limit of one measurement of our step in a process of its own. A measurement takes seconds.
const STEP_LIMIT: Duration = Duration::from_secs(600);

/// Scope of a benchmark.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// The models, in order. Default: [`Size::S`].
    pub sizes: Vec<Size>,
    /// The arithmetic. Default: [`Profile::Repro`].
    pub profiles: Vec<Profile>,
    /// Threads that compute, in our process and in PyTorch's. Default 1.
    pub threads: usize,
    /// Measurements of the whole step. Default 3.
    pub rounds: usize,
    /// PyTorch, to run in turn with our step. Default: none.
    pub torch: Option<Torch>,
    /// The `swarmline` binary: its `bench step` measures the step in a fresh process.
    pub program: PathBuf,
}

impl Options {
    /// The defaults, with `program` as the `swarmline` binary.
    #[must_use]
    pub fn new(program: PathBuf) -> Self {
        Self {
            sizes: vec![Size::S],
            profiles: vec![Profile::Repro],
            threads: 1,
            rounds: 3,
            torch: None,
            program,
        }
    }
}

/// Every figure of a benchmark. In JSON, the letter of each model is a key beside these fields.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The machine that was measured.
    pub machine: Machine,
    /// Commit of the checkout that this program was built from; `None` without a checkout.
    pub commit: Option<String>,
    /// Peaks of products and of memory traffic.
    pub peaks: Peaks,
    /// Remarks, e.g. on a profile that does not run here.
    pub notes: Vec<String>,
    /// The models, by letter.
    #[serde(flatten)]
    pub sizes: BTreeMap<&'static str, SizeReport>,
}

/// Figures of one model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SizeReport {
    /// Ratio of our tokens per second to those of PyTorch's best mode: the median over runs next to each other.
    pub ratio_to_best_torch: ByProfile<f64>,
    /// Ratio of our tokens per second to those of PyTorch's best mode in f32, of [`SizeReport::profile`].
    pub ratio_to_torch_f32: Option<f64>,
    /// Share of the f32 product peak that the whole step reaches, of [`SizeReport::profile`].
    pub share_of_peak: Option<f64>,
    /// Most memory the process of the step had resident, MiB, of [`SizeReport::profile`].
    pub peak_mb: Option<f64>,
    /// The first profile that ran.
    pub profile: Option<&'static str>,
    /// Parameters of the model.
    pub parameters: usize,
    /// Sequences of a step.
    pub sequences: usize,
    /// Tokens of a step.
    pub tokens_per_step: usize,
    /// Floating-point operations of a step, counted as [`flops`] says.
    pub flops_per_step: f64,
    /// All figures, by profile.
    pub profiles: ByProfile<ProfileReport>,
}

/// Figures of one model in one profile.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProfileReport {
    /// Tokens per second of the whole step.
    pub tokens_per_s: Spread,
    /// Median seconds of a step.
    pub step_s: f64,
    /// Rate of the step, GFLOP/s.
    pub gflops: f64,
    /// Share of the f32 product peak, measured before and after each step.
    pub share_of_peak: f64,
    /// Most memory its process had resident, MiB.
    pub peak_mb: Option<f64>,
    /// Loss of its first step, nats a token.
    pub loss_first: f64,
    /// Loss of its last step, nats a token.
    pub loss_last: f64,
    /// PyTorch's figures; `None` where it did not run.
    pub torch: Option<Comparison>,
    /// Figures of every operation.
    pub operations: Vec<OperationReport>,
}

/// A figure for each profile; null for a profile that was not asked for or does not run here.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ByProfile<T> {
    /// Profile `repro`.
    pub repro: Option<T>,
    /// Profile `fast`.
    pub fast: Option<T>,
}

impl<T> ByProfile<T> {
    fn of(mut figure: impl FnMut(Profile) -> Option<T>) -> Self {
        Self { repro: figure(Profile::Repro), fast: figure(Profile::Fast) }
    }

    fn get(&self, profile: Profile) -> Option<&T> {
        match profile {
            Profile::Repro => self.repro.as_ref(),
            Profile::Fast => self.fast.as_ref(),
        }
    }
}

/// Runs a benchmark; `say` is called with a line before each part of it.
///
/// # Errors
/// The device fails, or our own step cannot be measured ([`BenchError`]).
pub fn measure(options: &Options, mut say: impl FnMut(&str)) -> Result<Report, Error> {
    let mut report = Report {
        machine: Machine::here(),
        commit: machine::commit(),
        peaks: Peaks::measure(options.threads, PeakPlan::here()),
        notes: Vec::new(),
        sizes: BTreeMap::new(),
    };
    let mut profiles = Vec::new();
    for &profile in &options.profiles {
        if cpu(profile, 1)?.is_some() {
            profiles.push(profile);
        } else {
            report.notes.push(NO_FAST.to_owned());
        }
    }
    for &size in &options.sizes {
        let mut measured = Vec::new();
        for &profile in &profiles {
            measured.push((profile, measure_profile(options, &report.peaks, size, profile, &mut say)?));
        }
        report.sizes.insert(size.letter(), SizeReport::new(size, measured));
    }
    Ok(report)
}

fn measure_profile(
    options: &Options,
    peaks: &Peaks,
    size: Size,
    profile: Profile,
    say: &mut impl FnMut(&str),
) -> Result<ProfileReport, Error> {
    let (letter, name) = (size.letter(), profile.name());
    say(&format!("configuration {letter}, {name}: the whole step"));
    let ours = || own_step(options, size, profile);
    let (steps, torch) = match &options.torch {
        None => ((0..options.rounds.max(1)).map(|_| ours()).collect::<Result<Vec<_>, _>>()?, None),
        Some(torch) => {
            let (steps, comparison) =
                comparison::run(torch.version(), options.rounds, ours, |mode, our, time_max| {
                    say(&format!("configuration {letter}, {name}: beside PyTorch {}", mode.name()));
                    torch.measure(size, mode, options.threads, our, time_max)
                })?;
            (steps, Some(comparison))
        }
    };
    say(&format!("configuration {letter}, {name}: operations"));
    let mut cpu = cpu(profile, options.threads)?.ok_or(BenchError::ProfileGone { profile: name })?;
    let operations = operations::measure(&mut cpu, size, peaks)?;
    let without_share = || BenchError::Report {
        size: letter,
        profile: name,
        cause: "its reports have no share of the peak".to_owned(),
    };
    Ok(ProfileReport::new(size, &steps, torch, operations).ok_or_else(without_share)?)
}

/// One measurement of our step, in a process of its own.
fn own_step(options: &Options, size: Size, profile: Profile) -> Result<StepReport, BenchError> {
    let (letter, name) = (size.letter(), profile.name());
    let mut command = Command::new(&options.program);
    command.args(["bench", "step", "--config", letter, "--profile", name]);
    command.args(["--threads", &options.threads.to_string()]);
    let printed = output(&mut command, STEP_LIMIT).map_err(|error| BenchError::Step {
        size: letter,
        profile: name,
        cause: error.to_string(),
    })?;
    serde_json::from_str(&printed).map_err(|error| BenchError::Report {
        size: letter,
        profile: name,
        cause: error.to_string(),
    })
}

impl ProfileReport {
    fn new(
        size: Size,
        steps: &[StepReport],
        torch: Option<Comparison>,
        operations: Vec<OperationReport>,
    ) -> Option<Self> {
        let speeds: Vec<f64> = steps.iter().map(|step| step.tokens_per_s).collect();
        let (tokens_per_s, last) = (Spread::of(&speeds)?, steps.last()?);
        let step_s = size.rows() as f64 / tokens_per_s.median;
        let shares: Vec<f64> = steps.iter().filter_map(|step| step.share_of_peak).collect();
        Some(Self {
            tokens_per_s,
            step_s,
            gflops: flops::step(size) / step_s / 1e9,
            share_of_peak: median(&shares)?,
            peak_mb: steps.iter().filter_map(|step| step.peak_rss_mb).reduce(f64::max),
            loss_first: last.loss_first,
            loss_last: last.loss_last,
            torch,
            operations,
        })
    }

    /// PyTorch's best mode.
    #[must_use]
    pub fn best_torch(&self) -> Option<&ModeReport> {
        self.torch.as_ref()?.best()
    }

    /// PyTorch's best mode in f32.
    #[must_use]
    pub fn best_torch_f32(&self) -> Option<&ModeReport> {
        self.torch.as_ref()?.best_f32()
    }
}

impl SizeReport {
    fn new(size: Size, measured: Vec<(Profile, ProfileReport)>) -> Self {
        let profile = measured.first().map(|(profile, _)| *profile);
        let mut measured: BTreeMap<Profile, ProfileReport> = measured.into_iter().collect();
        let profiles = ByProfile::of(|profile| measured.remove(&profile));
        let first = profile.and_then(|profile| profiles.get(profile));
        Self {
            ratio_to_best_torch: ByProfile::of(|profile| {
                Some(profiles.get(profile)?.best_torch()?.ratio.median)
            }),
            ratio_to_torch_f32: first.and_then(ProfileReport::best_torch_f32).map(|mode| mode.ratio.median),
            share_of_peak: first.map(|first| first.share_of_peak),
            peak_mb: first.and_then(|first| first.peak_mb),
            profile: profile.map(Profile::name),
            parameters: size.parameters(),
            sequences: SEQUENCES,
            tokens_per_step: size.rows(),
            flops_per_step: flops::step(size),
            profiles,
        }
    }

    /// The profiles that ran.
    pub fn ran(&self) -> impl Iterator<Item = (Profile, &ProfileReport)> {
        [Profile::Repro, Profile::Fast]
            .into_iter()
            .filter_map(|profile| Some((profile, self.profiles.get(profile)?)))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use swarmline_kernels::Cpu;

    use super::*;
    use crate::bench::{TorchError, TorchMode, step};

    /// A report of the trial model beside a PyTorch that is twice as fast in bf16 and fails to compile.
    pub(in crate::bench) fn trial() -> Report {
        let peaks = Peaks::measure(1, PeakPlan { repeats: 1, rounds: 1000, array_bytes: 4096 });
        let mut cpu = Cpu::new(1).unwrap();
        let operations = operations::measure(&mut cpu, Size::T, &peaks).unwrap();
        let ours = || step::measure(Cpu::new(1).unwrap(), Size::T);
        let theirs = |mode: TorchMode, our: &StepReport, _: Duration| match mode {
            TorchMode { compiled: true, .. } => Err(TorchError::Run("no compiler".into())),
            TorchMode { bf16: true, .. } => {
                Ok(StepReport { tokens_per_s: 2.0 * our.tokens_per_s, ..our.clone() })
            }
            TorchMode { .. } => Ok(our.clone()),
        };
        let (steps, comparison) = comparison::run("2.0", 2, ours, theirs).unwrap();
        let profile = ProfileReport::new(Size::T, &steps, Some(comparison), operations).unwrap();
        Report {
            machine: Machine::here(),
            commit: None,
            peaks,
            notes: vec![NO_FAST.to_owned()],
            sizes: BTreeMap::from([("t", SizeReport::new(Size::T, vec![(Profile::Repro, profile)]))]),
        }
    }

    #[test]
    fn the_file_is_keyed_by_configuration() {
        let json = serde_json::to_value(trial()).unwrap();
        let t = &json["t"];
        assert_eq!(t["ratio_to_best_torch"], serde_json::json!({ "repro": 0.5, "fast": null }));
        assert_eq!(t["ratio_to_torch_f32"], 1.0);
        assert_eq!(t["profile"], "repro");
        assert_eq!(t["tokens_per_step"], 512);
        assert!(t["share_of_peak"].as_f64().unwrap() > 0.0);
        assert_eq!(t["peak_mb"].is_number(), cfg!(target_os = "linux"));
        let repro = &t["profiles"]["repro"];
        assert_eq!(repro["torch"]["modes"][0]["mode"], "eager f32");
        assert_eq!(repro["torch"]["left_out"][0]["reason"], "no compiler");
        assert_eq!(repro["operations"][0]["name"], "linear wq");
        assert!(repro["operations"][0]["work"]["flops"].is_number());
        assert!(t["profiles"]["fast"].is_null());
        assert!(json["machine"]["cores"].is_number() && json["peaks"]["product_gflops"].is_number());
        assert!(json["commit"].is_null());
    }
}
