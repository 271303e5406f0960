//! A workload: its size, its churn and its seed.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::router::Policy;
use crate::sim::{FrameBytes, Links, Report, Scenario, Uplinks, Violation, Wan, World};
use crate::{Admission, Duration};

use super::churn::Churn;
use super::peers::{self, Peer};
use super::regions::paths;
use super::trace::Trace;

/// Microbatches of an optimizer epoch.
pub const EPOCH: u64 = 256;
/// Length of a run.
const LENGTH: Duration = Duration::from_secs(40 * 60);
/// The first fifth of a run is not measured.
const CUT: u32 = 5;
/// Length of the state of a replica, bytes: parameters and both moments.
const STATE_BYTES: u64 = 50_000_000;
/// Fragments that the parameters of a stage are divided into, and numbers of each in the simulated world.
const FRAGMENTS: u64 = 20;
const NUMBERS: u64 = 8;
/// Microbatches between two averaging rounds. Narrow uplinks carry one an epoch.
const AVERAGING_INTERVAL: u64 = 32;
/// A job of an averaging round takes this many thousandths of a forward: the optimizer step of all parameters takes an
/// eighth of one, and a job reads or moves a fragment of them.
const AVERAGING_PER_MILLE: u32 = 125 / FRAGMENTS as u32;
/// An activation of 4,096 tokens with 256 bytes each, and two bytes of each id.
const TENSOR_BYTES: u64 = 4_096 * 256;
const IDS_BYTES: u64 = 4_096 * 2;
/// The window in multiples of the microbatches that keep every replica busy.
const WINDOWS: f64 = 3.0;
/// Mean one-way time of a frame between two regions.
const WAY: f64 = 0.1;
/// Messages take up to this much longer than their way.
const JITTER: Duration = Duration::from_millis(4);
/// Frames that may wait for one receiver, as in production.
const QUEUE_MAX: usize = 1_024;
/// More than the window: what production would allow a device with enough memory.
const SLOTS: usize = 256;
/// How long a run may take to finish what is in flight at its end: a stage may be empty for a while.
const STOP_WITHIN: Duration = Duration::from_secs(600);

/// The size of a swarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    /// Stages of the pipeline.
    pub stages: u16,
    /// Peers for each stage.
    pub replicas: u16,
}

impl Shape {
    /// 8 stages of 8: the size of the figures that count.
    pub const MAIN: Self = Self { stages: 8, replicas: 8 };
    /// 6 stages of 3.
    pub const SMALL: Self = Self { stages: 6, replicas: 3 };
    /// 32 stages of 8.
    pub const LARGE: Self = Self { stages: 32, replicas: 8 };

    /// Peers in all.
    #[must_use]
    pub fn peers(self) -> usize {
        usize::from(self.stages) * usize::from(self.replicas)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.stages, self.replicas)
    }
}

/// A text that is no shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no shape; say stages x replicas, such as 8x8, with 1 to 64 of each")]
pub struct ShapeError {
    /// The text.
    pub text: String,
}

impl FromStr for Shape {
    type Err = ShapeError;

    fn from_str(text: &str) -> Result<Self, ShapeError> {
        let side = |side: &str| side.parse().ok().filter(|count| (1..=64).contains(count));
        let sides = text.split_once('x').and_then(|(stages, replicas)| side(stages).zip(side(replicas)));
        let (stages, replicas) = sides.ok_or_else(|| ShapeError { text: text.to_owned() })?;
        Ok(Self { stages, replicas })
    }
}

/// A swarm, and what befalls it.
///
/// ```
/// use swarmline_scheduler::Duration;
/// use swarmline_scheduler::router::Policy;
/// use swarmline_scheduler::sim::dropout::{Churn, Shape, Workload};
///
/// let mut workload = Workload::new(Shape { stages: 2, replicas: 2 }, Churn::Crashes(10), 11);
/// workload.length = Duration::from_secs(120);
/// let report = workload.play(Policy::LeastOutstanding)?;
/// assert_eq!(report.counts.lost, 0);
/// println!("{}", report.account);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Workload {
    /// Its size.
    pub shape: Shape,
    /// What befalls it.
    pub churn: Churn,
    /// Peers, strikes and all draws of the world follow from it.
    pub seed: u64,
    /// Virtual time of the run; the first fifth is not measured. Default 40 minutes.
    pub length: Duration,
}

impl Workload {
    /// The seeds of the benchmark.
    pub const SEEDS: [u64; 4] = [11, 7_930, 15_849, 23_768];

    /// A workload of the usual length.
    #[must_use]
    pub fn new(shape: Shape, churn: Churn, seed: u64) -> Self {
        Self { shape, churn, seed, length: LENGTH }
    }

    /// Its peers.
    #[must_use]
    pub fn peers(&self) -> Vec<Peer> {
        peers::draw(self.seed, self.shape.peers())
    }

    /// Microbatches a second that its peers can compute, if they are spread evenly over the stages.
    #[must_use]
    pub fn capacity(&self) -> f64 {
        let rates = self.peers().iter().map(|peer| 1.0 / (3.0 * peer.forward.as_secs_f64())).sum::<f64>();
        rates / f64::from(self.shape.stages)
    }

    /// What befalls the peers.
    #[must_use]
    pub fn trace(&self) -> Trace {
        let epoch = Duration::from_secs_f64(EPOCH as f64 / self.capacity());
        Trace::draw(self.churn, self.seed, self.shape.peers(), epoch, self.length)
    }

    /// Microbatches in flight: every peer computes one, and each way to and fro has what the swarm computes in its time;
    /// three times that, so that no replica waits because others have a long queue by chance.
    #[must_use]
    pub fn window(&self) -> u32 {
        let ways = 2.0 * f64::from(self.shape.stages) * WAY * self.capacity();
        (WINDOWS * (self.shape.peers() as f64 + ways)).round() as u32
    }

    /// The workload as a scenario of a simulated world.
    #[must_use]
    pub fn scenario(&self, router: Policy) -> Scenario {
        let Shape { stages, replicas } = self.shape;
        let (peers, is_narrow) = (self.peers(), self.churn == Churn::NarrowUplinks);
        let admission = Admission::Asynchronous(self.window());
        let interval = if is_narrow { EPOCH } else { AVERAGING_INTERVAL };
        let mut scenario = Scenario::new(self.seed, stages, replicas, u64::MAX / 2, admission)
            .with_router(router)
            .with_averaging(interval, FRAGMENTS)
            .with_service_times(peers.iter().map(|peer| peer.forward).collect())
            .with_links(links(&peers, is_narrow))
            .with_duration(self.length);
        scenario.averaging_per_mille = AVERAGING_PER_MILLE;
        scenario.slots = vec![SLOTS];
        scenario.lease_count = 1 << 12;
        scenario.measure_from = self.length / CUT;
        scenario.stop_within = STOP_WITHIN;
        scenario.faults = self.trace().faults();
        scenario.steps_max = 1 << 40;
        scenario
    }

    /// Plays the workload in virtual time.
    ///
    /// # Errors
    /// The first rule that the run breaks: a microbatch that is lost or counts twice, among others.
    pub fn play(&self, router: Policy) -> Result<Report, Violation> {
        let world = World::new(self.scenario(router));
        let broken = |error: crate::sim::ScenarioError| Violation {
            seed: self.seed,
            at: crate::Time(0),
            rule: error.to_string(),
        };
        world.map_err(broken)?.run()
    }
}

fn links(peers: &[Peer], is_narrow: bool) -> Links {
    let narrow = peers.iter().map(|peer| peer.narrow_uplink);
    let wan = Wan {
        paths: paths(),
        regions: peers.iter().map(|peer| peer.region).collect(),
        uplinks: if is_narrow { narrow.collect() } else { Vec::new() },
        bytes: FrameBytes {
            ids: IDS_BYTES,
            tensor: TENSOR_BYTES,
            number: STATE_BYTES / (FRAGMENTS * NUMBERS),
        },
    };
    let mut links = Links::with_delay(JITTER);
    links.chunk_delay_max = JITTER;
    links.uplinks = Some(Uplinks { frame_time: Duration::ZERO, queue_max: QUEUE_MAX });
    links.wan = Some(Arc::new(wan));
    links
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Losses;

    fn small(churn: Churn) -> Workload {
        let mut workload = Workload::new(Shape { stages: 3, replicas: 3 }, churn, 11);
        workload.length = Duration::from_secs(300);
        workload
    }

    #[test]
    fn shapes_are_read_as_they_are_written() {
        for shape in [Shape::MAIN, Shape::SMALL, Shape::LARGE] {
            assert_eq!(shape.to_string().parse(), Ok(shape));
        }
        for wrong in ["", "8", "0x8", "8x65", "8 x 8"] {
            assert!(wrong.parse::<Shape>().unwrap_err().to_string().contains("no shape"), "{wrong}");
        }
    }

    #[test]
    fn equal_workloads_give_equal_reports() {
        let play = || small(Churn::Crashes(10)).play(Policy::LeastOutstanding).unwrap();
        let (first, second) = (play(), play());
        assert_eq!(first, second);
        assert!(!first.recoveries.is_empty());
    }

    #[test]
    fn the_parts_of_the_account_sum_to_the_gap_for_every_churn_and_router() {
        for churn in Churn::ALL {
            for &router in Policy::ALL {
                let account = small(churn).play(router).unwrap().account;
                let gap = account.available - account.finished;
                assert!((account.losses.sum() - gap).abs() < 1e-6 * account.available, "{churn} {account:?}");
                let Losses { other, .. } = account.losses;
                assert!(other.abs() < 0.1 * account.available, "{churn} {router:?}: {account}");
                assert!(account.finished <= 1.01 * account.bound, "{churn} {router:?}: {account}");
            }
        }
    }

    #[test]
    fn a_calm_swarm_does_nothing_twice_and_misses_no_failure() {
        let report = small(Churn::Calm).play(Policy::LeastOutstanding).unwrap();
        let losses = report.account.losses;
        assert_eq!((losses.recomputation, losses.undetected_failures, losses.joining), (0.0, 0.0, 0.0));
        assert!(report.account.share_of_bound() > 0.9, "{report}");
        assert!(report.recoveries.is_empty());
    }
}
