//! Our step and PyTorch's run in turn, so that the load of the machine slows both.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::statistics::Spread;
use super::step::StepReport;
use super::torch::{TorchError, TorchMode};

/// Limit of a comparison, seconds, beside [`STEPS_MAX`] steps.
const TIME_MAX_S: f64 = 200.0;
/// Steps of ours whose time a comparison may take beside [`TIME_MAX_S`].
const STEPS_MAX: f64 = 20.0;
/// After the first round, modes slower than this share of the fastest do not run again; the best in f32 always does.
const CANDIDATE_SHARE: f64 = 0.75;

/// PyTorch's figures, mode by mode, beside ours.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Version of PyTorch.
    pub torch: String,
    /// The modes that ran.
    pub modes: Vec<ModeReport>,
    /// The modes that did not run.
    pub left_out: Vec<LeftOut>,
}

/// Figures of one mode beside ours.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModeReport {
    /// Name of the mode.
    pub mode: &'static str,
    /// Whether the mode computes in f32; otherwise in bf16.
    pub f32: bool,
    /// Tokens per second of the mode.
    pub tokens_per_s: Spread,
    /// Ratio of our tokens per second to those of the mode, of runs next to each other.
    pub ratio: Spread,
    /// Largest resident memory of its process, MiB; `None` where the system does not say.
    pub peak_mb: Option<f64>,
}

/// A mode that did not run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LeftOut {
    /// Name of the mode.
    pub mode: &'static str,
    /// The error of its run, or that no time was left.
    pub reason: String,
}

impl Comparison {
    /// The mode with the smallest ratio.
    #[must_use]
    pub fn best(&self) -> Option<&ModeReport> {
        self.smallest_ratio(|_| true)
    }

    /// The mode in f32, eager or compiled, with the smallest ratio.
    #[must_use]
    pub fn best_f32(&self) -> Option<&ModeReport> {
        self.smallest_ratio(|mode| mode.f32)
    }

    /// The mode of `among` with the smallest ratio. Modes that left after the first round do not count: their ratio
    /// comes from fewer rounds.
    fn smallest_ratio(&self, among: impl Fn(&ModeReport) -> bool) -> Option<&ModeReport> {
        let candidates = || self.modes.iter().filter(|mode| among(mode));
        let rounds = candidates().map(|mode| mode.ratio.count).max()?;
        candidates()
            .filter(|mode| mode.ratio.count == rounds)
            .min_by(|a, b| a.ratio.median.total_cmp(&b.ratio.median))
    }
}

/// Runs our step and every mode of PyTorch in turn, ours first, for `rounds` rounds, or fewer if time runs out. A mode
/// without time in the first round is left out. `theirs` gets the time that it may take. Returns the reports of our
/// steps, and the comparison.
///
/// # Errors
/// The error of `ours`. A mode of `theirs` that fails is left out.
pub fn run<E>(
    torch: &str,
    rounds: usize,
    mut ours: impl FnMut() -> Result<StepReport, E>,
    mut theirs: impl FnMut(TorchMode, &StepReport, Duration) -> Result<StepReport, TorchError>,
) -> Result<(Vec<StepReport>, Comparison), E> {
    let started = Instant::now();
    let (mut own, mut left_out) = (Vec::new(), Vec::new());
    let mut candidates: Vec<Candidate> = TorchMode::ALL.map(Candidate::new).into();
    for round in 0..rounds.max(1) {
        let round_time: Duration = candidates.iter().map(|candidate| candidate.time).sum();
        if round > 0 && time_left(&own, started).is_none_or(|left| left < round_time) {
            break;
        }
        for candidate in candidates.iter_mut().filter(|candidate| !candidate.is_out) {
            let began = Instant::now();
            let our = ours()?;
            own.push(our.clone());
            let left =
                time_left(&own, started).ok_or_else(|| TorchError::Run("no time was left for it".into()));
            match left.and_then(|left| theirs(candidate.mode, &our, left)) {
                Ok(their) => candidate.runs.push((our, their)),
                Err(error) => {
                    candidate.is_out = true;
                    left_out.push(LeftOut { mode: candidate.mode.name(), reason: error.to_string() });
                }
            }
            candidate.time = began.elapsed();
        }
        if round == 0 {
            drop_the_slow(&mut candidates);
        }
    }
    let modes = candidates.iter().filter_map(Candidate::report).collect();
    Ok((own, Comparison { torch: torch.to_owned(), modes, left_out }))
}

/// Time left of a comparison; `None` after its limit.
fn time_left(own: &[StepReport], started: Instant) -> Option<Duration> {
    let step_s = own.first().map_or(0.0, |step| step.step_s_median);
    Duration::from_secs_f64(TIME_MAX_S + STEPS_MAX * step_s).checked_sub(started.elapsed())
}

/// A mode of PyTorch and its runs, each paired with the run of ours before it.
struct Candidate {
    mode: TorchMode,
    runs: Vec<(StepReport, StepReport)>,
    /// Duration of its latest turn, ours included.
    time: Duration,
    /// Whether the mode does not run again.
    is_out: bool,
}

impl Candidate {
    fn new(mode: TorchMode) -> Self {
        Self { mode, runs: Vec::new(), time: Duration::ZERO, is_out: false }
    }

    fn speed(&self) -> f64 {
        self.runs.last().map_or(0.0, |(_, their)| their.tokens_per_s)
    }

    fn report(&self) -> Option<ModeReport> {
        let pairs: Vec<_> =
            self.runs.iter().map(|(our, their)| (our.tokens_per_s, their.tokens_per_s)).collect();
        let theirs: Vec<f64> = pairs.iter().map(|pair| pair.1).collect();
        Some(ModeReport {
            mode: self.mode.name(),
            f32: !self.mode.bf16,
            tokens_per_s: Spread::of(&theirs)?,
            ratio: Spread::of_ratios(&pairs)?,
            peak_mb: self.runs.iter().filter_map(|(_, their)| their.peak_rss_mb).reduce(f64::max),
        })
    }
}

fn drop_the_slow(candidates: &mut [Candidate]) {
    let fastest = |among: &[Candidate], f32_only: bool| {
        let speeds = among.iter().filter(|candidate| !f32_only || !candidate.mode.bf16).map(Candidate::speed);
        speeds.fold(0.0, f64::max)
    };
    let (best, best_f32) = (fastest(candidates, false), fastest(candidates, true));
    for candidate in candidates {
        let stays = candidate.speed() >= CANDIDATE_SHARE * best
            || (!candidate.mode.bf16 && candidate.speed() >= best_f32);
        if !stays {
            candidate.is_out = true;
            candidate.time = Duration::ZERO;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(tokens_per_s: f64) -> StepReport {
        StepReport {
            tokens_per_s,
            step_s_median: 1.0,
            peak_rss_mb: Some(100.0),
            batch: 16,
            params: 1,
            threads: 1,
            share_of_peak: None,
            loss_first: 5.0,
            loss_last: 4.0,
        }
    }

    #[test]
    fn each_mode_runs_after_one_of_our_steps_and_a_slow_mode_only_once() {
        let order = std::cell::RefCell::new(Vec::new());
        let ours = || {
            order.borrow_mut().push("ours");
            Ok::<_, ()>(at(300.0))
        };
        let theirs = |mode: TorchMode, our: &StepReport, left: Duration| {
            assert!(left.as_secs() > 100);
            assert_eq!(our.tokens_per_s, 300.0);
            order.borrow_mut().push(mode.name());
            match mode.name() {
                "eager f32" => Ok(at(100.0)),
                "compile f32" => Ok(at(150.0)),
                "compile bf16" => Ok(at(400.0)),
                _ => Err(TorchError::Run("no compiler".into())),
            }
        };
        let (own, comparison) = run("2.0", 2, ours, theirs).unwrap();
        let first =
            ["ours", "eager f32", "ours", "compile f32", "ours", "compile bf16", "ours", "eager bf16"];
        assert_eq!(order.borrow()[..8], first);
        assert_eq!(order.borrow()[8..], ["ours", "compile f32", "ours", "compile bf16"]);
        assert_eq!(own.len(), 6);
        assert_eq!(comparison.left_out, [LeftOut { mode: "eager bf16", reason: "no compiler".into() }]);
        let best = comparison.best().unwrap();
        assert_eq!((best.mode, best.ratio.median, best.ratio.count), ("compile bf16", 0.75, 2));
        let f32 = comparison.best_f32().unwrap();
        assert_eq!((f32.mode, f32.ratio.median), ("compile f32", 2.0));
    }

    #[test]
    fn an_error_of_ours_ends_the_comparison() {
        let outcome = run("2.0", 1, || Err("defect"), |_, _, _| Ok(at(1.0)));
        assert_eq!(outcome.unwrap_err(), "defect");
    }

    #[test]
    fn without_a_mode_that_runs_there_is_no_best() {
        let (_, comparison) =
            run("2.0", 3, || Ok::<_, ()>(at(1.0)), |_, _, _| Err(TorchError::Run("no".into()))).unwrap();
        assert_eq!((comparison.best(), comparison.left_out.len()), (None, 4));
    }
}
