//! Two programs in turn, so that what the machine does meanwhile happens to both.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::statistics::Spread;
use super::step::StepReport;
use super::torch::{Mode, PeerError};

/// Seconds a contest may take, besides steps.
const TIME_MAX_S: f64 = 200.0;
/// And so many of our steps.
const STEPS_MAX: f64 = 20.0;
/// After the first round, modes slower than this share of the fastest are not run again; the best in f32 always is.
const CONTENDER_SHARE: f64 = 0.75;

/// What PyTorch did, mode by mode, beside us.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Contest {
    /// Version of PyTorch.
    pub torch: String,
    /// The modes that ran.
    pub modes: Vec<ModeReport>,
    /// The modes that did not, and why.
    pub left_out: Vec<LeftOut>,
}

/// One mode beside us.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModeReport {
    /// Name of the mode.
    pub mode: &'static str,
    /// Whether it computes in f32.
    pub f32: bool,
    /// Its tokens per second.
    pub tokens_per_s: Spread,
    /// Ours to its, of runs next to each other.
    pub ratio: Spread,
    /// Its largest resident memory, MiB.
    pub peak_mb: Option<f64>,
}

/// A mode that did not run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LeftOut {
    /// Name of the mode.
    pub mode: &'static str,
    /// What went wrong.
    pub reason: String,
}

impl Contest {
    /// Ours to the mode that comes off best against us.
    #[must_use]
    pub fn best(&self) -> Option<&ModeReport> {
        self.strongest(|_| true)
    }

    /// Ours to the mode that comes off best against us in f32, eager or compiled.
    #[must_use]
    pub fn best_f32(&self) -> Option<&ModeReport> {
        self.strongest(|mode| mode.f32)
    }

    /// Among those that ran in most rounds: a mode that fell behind in the first was not run again.
    fn strongest(&self, among: impl Fn(&ModeReport) -> bool) -> Option<&ModeReport> {
        let candidates = || self.modes.iter().filter(|mode| among(mode));
        let rounds = candidates().map(|mode| mode.ratio.count).max()?;
        candidates()
            .filter(|mode| mode.ratio.count == rounds)
            .min_by(|a, b| a.ratio.median.total_cmp(&b.ratio.median))
    }
}

/// Runs us and every mode in turn, ours first, `rounds` times: fewer where time runs out, and a mode that has no time
/// left in the first round is left out. `theirs` hears how long it may take. Gives what we did, and the contest.
///
/// # Errors
/// If ours fails. A mode of theirs that fails is left out.
pub fn run<E>(
    torch: &str,
    rounds: usize,
    mut ours: impl FnMut() -> Result<StepReport, E>,
    mut theirs: impl FnMut(Mode, &StepReport, Duration) -> Result<StepReport, PeerError>,
) -> Result<(Vec<StepReport>, Contest), E> {
    let started = Instant::now();
    let (mut own, mut left_out) = (Vec::new(), Vec::new());
    let mut entries: Vec<Entry> = Mode::ALL.map(Entry::new).into();
    for round in 0..rounds.max(1) {
        let round_time: Duration = entries.iter().map(|entry| entry.time).sum();
        if round > 0 && time_left(&own, started).is_none_or(|left| left < round_time) {
            break;
        }
        for entry in entries.iter_mut().filter(|entry| !entry.out) {
            let began = Instant::now();
            let our = ours()?;
            own.push(our.clone());
            let left =
                time_left(&own, started).ok_or_else(|| PeerError::Run("no time was left for it".into()));
            match left.and_then(|left| theirs(entry.mode, &our, left)) {
                Ok(their) => entry.runs.push((our, their)),
                Err(error) => {
                    entry.out = true;
                    left_out.push(LeftOut { mode: entry.mode.name(), reason: error.to_string() });
                }
            }
            entry.time = began.elapsed();
        }
        if round == 0 {
            drop_the_slow(&mut entries);
        }
    }
    let modes = entries.iter().filter_map(Entry::report).collect();
    Ok((own, Contest { torch: torch.to_owned(), modes, left_out }))
}

/// What is left of the time of a contest; nothing if it is over.
fn time_left(own: &[StepReport], started: Instant) -> Option<Duration> {
    let step_s = own.first().map_or(0.0, |step| step.step_s_median);
    Duration::from_secs_f64(TIME_MAX_S + STEPS_MAX * step_s).checked_sub(started.elapsed())
}

/// A mode and its runs, each after one of ours.
struct Entry {
    mode: Mode,
    runs: Vec<(StepReport, StepReport)>,
    /// What its latest turn took.
    time: Duration,
    /// Not run again.
    out: bool,
}

impl Entry {
    fn new(mode: Mode) -> Self {
        Self { mode, runs: Vec::new(), time: Duration::ZERO, out: false }
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

fn drop_the_slow(entries: &mut [Entry]) {
    let fastest = |among: &[Entry], f32_only: bool| {
        let speeds = among.iter().filter(|entry| !f32_only || !entry.mode.bf16).map(Entry::speed);
        speeds.fold(0.0, f64::max)
    };
    let (best, best_f32) = (fastest(entries, false), fastest(entries, true));
    for entry in entries {
        let stays =
            entry.speed() >= CONTENDER_SHARE * best || (!entry.mode.bf16 && entry.speed() >= best_f32);
        if !stays {
            entry.out = true;
            entry.time = Duration::ZERO;
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
    fn each_of_theirs_runs_after_one_of_ours_and_the_slow_only_once() {
        let order = std::cell::RefCell::new(Vec::new());
        let ours = || {
            order.borrow_mut().push("ours");
            Ok::<_, ()>(at(300.0))
        };
        let theirs = |mode: Mode, our: &StepReport, left: Duration| {
            assert!(left.as_secs() > 100);
            assert_eq!(our.tokens_per_s, 300.0);
            order.borrow_mut().push(mode.name());
            match mode.name() {
                "eager f32" => Ok(at(100.0)),
                "compile f32" => Ok(at(150.0)),
                "compile bf16" => Ok(at(400.0)),
                _ => Err(PeerError::Run("no compiler".into())),
            }
        };
        let (own, contest) = run("2.0", 2, ours, theirs).unwrap();
        let first =
            ["ours", "eager f32", "ours", "compile f32", "ours", "compile bf16", "ours", "eager bf16"];
        assert_eq!(order.borrow()[..8], first);
        assert_eq!(order.borrow()[8..], ["ours", "compile f32", "ours", "compile bf16"]);
        assert_eq!(own.len(), 6);
        assert_eq!(contest.left_out, [LeftOut { mode: "eager bf16", reason: "no compiler".into() }]);
        let best = contest.best().unwrap();
        assert_eq!((best.mode, best.ratio.median, best.ratio.count), ("compile bf16", 0.75, 2));
        let f32 = contest.best_f32().unwrap();
        assert_eq!((f32.mode, f32.ratio.median), ("compile f32", 2.0));
    }

    #[test]
    fn ours_must_not_fail() {
        let outcome = run("2.0", 1, || Err("defect"), |_, _, _| Ok(at(1.0)));
        assert_eq!(outcome.unwrap_err(), "defect");
    }

    #[test]
    fn without_a_mode_that_runs_there_is_no_best() {
        let (_, contest) =
            run("2.0", 3, || Ok::<_, ()>(at(1.0)), |_, _, _| Err(PeerError::Run("no".into()))).unwrap();
        assert_eq!((contest.best(), contest.left_out.len()), (None, 4));
    }
}
