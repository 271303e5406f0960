//! `bench kernels`: operations against the peaks of this machine, the whole step against PyTorch.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde::Serialize;
use swarmline_kernels::Profile;

use super::comparison::{self, Contest, ModeReport};
use super::machine::{self, Machine};
use super::operations::{self, OperationReport};
use super::peaks::{PeakPlan, Peaks};
use super::process::output;
use super::size::{SEQUENCES, Size};
use super::statistics::{Spread, median};
use super::step::StepReport;
use super::{NO_FAST, Peer, cpu, flops};
use crate::error::Error;

/// One measurement of our step in a process of its own takes seconds; only a machine that hangs takes this long.
const STEP_LIMIT: Duration = Duration::from_secs(600);

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// The models, in order.
    pub sizes: Vec<Size>,
    /// The arithmetic.
    pub profiles: Vec<Profile>,
    /// Threads that compute, ours and theirs.
    pub threads: usize,
    /// Times the step is measured.
    pub rounds: usize,
    /// PyTorch, if it shall run beside us.
    pub peer: Option<Peer>,
    /// This program: `bench step` of it measures the step in a fresh process.
    pub program: PathBuf,
}

/// Everything that was measured. As JSON its keys are the letters of the models, besides these.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// Of the checkout this program was built from, if there is one.
    pub commit: Option<String>,
    /// The roofs.
    pub peaks: Peaks,
    /// What a reader must know.
    pub notes: Vec<String>,
    /// By letter.
    #[serde(flatten)]
    pub sizes: BTreeMap<&'static str, SizeReport>,
}

/// One model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SizeReport {
    /// Our tokens a second to those of PyTorch's best mode: median over neighbours.
    pub ratio_to_best_torch: ByProfile<f64>,
    /// Ours to PyTorch's best mode in f32, of [`SizeReport::profile`].
    pub ratio_to_torch_f32: Option<f64>,
    /// Share of the f32 product peak that the whole step reaches, of [`SizeReport::profile`].
    pub share_of_peak: Option<f64>,
    /// Most memory the process of the step had resident, MiB, of [`SizeReport::profile`].
    pub peak_mb: Option<f64>,
    /// The profile that really ran, the first one if there were several.
    pub profile: Option<&'static str>,
    /// Parameters of the model.
    pub parameters: usize,
    /// Sequences of a step.
    pub sequences: usize,
    /// Tokens of a step.
    pub tokens_per_step: usize,
    /// Floating-point operations of a step, counted as [`flops`] says.
    pub flops_per_step: f64,
    /// Everything, by profile.
    pub profiles: ByProfile<ProfileReport>,
}

/// One model in one profile.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProfileReport {
    /// Tokens a second of the whole step.
    pub tokens_per_s: Spread,
    /// Its median seconds.
    pub step_s: f64,
    /// Its rate in GFLOP/s.
    pub gflops: f64,
    /// Share of the f32 product peak, measured before and after each step.
    pub share_of_peak: f64,
    /// Most memory its process had resident, MiB.
    pub peak_mb: Option<f64>,
    /// Loss of its first step, nats a token.
    pub loss_first: f64,
    /// Loss of its last step, nats a token.
    pub loss_last: f64,
    /// Beside PyTorch.
    pub torch: Option<Contest>,
    /// The operations.
    pub operations: Vec<OperationReport>,
}

/// A figure for each profile; null for one that was not asked for or does not run here.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ByProfile<T> {
    /// The same bits everywhere.
    pub repro: Option<T>,
    /// Whatever is fastest.
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

/// Measures it all; `say` hears what is being done.
///
/// # Errors
/// If the device fails, or our own step does not run.
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
    let (steps, torch) = match &options.peer {
        None => ((0..options.rounds.max(1)).map(|_| ours()).collect::<Result<Vec<_>, _>>()?, None),
        Some(peer) => {
            let (steps, contest) =
                comparison::run(peer.version(), options.rounds, ours, |mode, our, time_max| {
                    say(&format!("configuration {letter}, {name}: beside PyTorch {}", mode.name()));
                    peer.measure(size, mode, options.threads, our, time_max)
                })?;
            (steps, Some(contest))
        }
    };
    say(&format!("configuration {letter}, {name}: operations"));
    let Some(mut cpu) = cpu(profile, options.threads)? else { return Err(gone(profile)) };
    let operations = operations::measure(&mut cpu, size, peaks)?;
    ProfileReport::new(size, &steps, torch, operations).ok_or_else(|| gone(profile))
}

/// One measurement of our step, in a process that does nothing else.
fn own_step(options: &Options, size: Size, profile: Profile) -> Result<StepReport, Error> {
    let mut command = Command::new(&options.program);
    command.args(["bench", "step", "--config", size.letter(), "--profile", profile.name()]);
    command.args(["--threads", &options.threads.to_string()]);
    let printed =
        output(&mut command, STEP_LIMIT).map_err(|error| Error::Defect(format!("the step: {error}")))?;
    serde_json::from_str(&printed).map_err(|error| Error::Defect(format!("the step: {error}")))
}

fn gone(profile: Profile) -> Error {
    Error::Defect(format!("profile {} ran before and does not now", profile.name()))
}

impl ProfileReport {
    fn new(
        size: Size,
        steps: &[StepReport],
        torch: Option<Contest>,
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

    /// Ours to the strongest mode of PyTorch.
    #[must_use]
    pub fn best_torch(&self) -> Option<&ModeReport> {
        self.torch.as_ref()?.best()
    }

    /// Ours to the strongest mode of PyTorch in f32.
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
    use crate::bench::{Mode, PeerError, step};

    /// A report of the trial model beside a peer that is twice as fast in bf16 and fails to compile.
    pub(in crate::bench) fn trial() -> Report {
        let peaks = Peaks::measure(1, PeakPlan { repeats: 1, rounds: 1000, array_bytes: 4096 });
        let mut cpu = Cpu::new(1).unwrap();
        let operations = operations::measure(&mut cpu, Size::T, &peaks).unwrap();
        let ours = || step::measure(Cpu::new(1).unwrap(), Size::T);
        let theirs = |mode: Mode, our: &StepReport, _: Duration| match mode {
            Mode { compiled: true, .. } => Err(PeerError::Run("no compiler".into())),
            Mode { bf16: true, .. } => Ok(StepReport { tokens_per_s: 2.0 * our.tokens_per_s, ..our.clone() }),
            Mode { .. } => Ok(our.clone()),
        };
        let (steps, contest) = comparison::run("2.0", 2, ours, theirs).unwrap();
        let profile = ProfileReport::new(Size::T, &steps, Some(contest), operations).unwrap();
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
