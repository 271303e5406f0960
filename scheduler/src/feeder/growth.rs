//! The size of an adaptive window: as many microbatches in flight as raise the throughput.
//!
//! By Little's law a pipeline that computes `x` microbatches a second and takes `l` seconds for one is full with `x * l`
//! in flight. Fewer leave replicas idle, more only wait and make gradients stale. Neither figure is known, and both change
//! as replicas come and go, so the window is tried: it grows by half while throughput rises by a fair part of that, goes
//! back if it does not, and shrinks in proportion when throughput falls.

use crate::Time;

/// A trial pays if it raises the throughput by this many percent; it adds half as much to the window again.
const PAYS_PERCENT: u64 = 10;

/// Throughput has fallen if it is below this share of the throughput at the last step, in percent.
const FALLEN_PERCENT: u64 = 70;

/// Windows of outcomes in one measurement: enough that chance does not decide.
const MEASURED_WINDOWS: u32 = 2;

/// Measurements without a trial after one that did not pay; doubles each time up to the limit.
const REST_MIN: u32 = 2;
/// See [`REST_MIN`].
const REST_MAX: u32 = 32;

/// The search for the best size of the window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Growth {
    min: u32,
    max: u32,
    /// Replicas of the narrowest stage.
    width: usize,
    limit: u32,
    /// Outcomes to come of microbatches that were admitted under another limit.
    unsettled: u32,
    /// Outcomes in this measurement, and its beginning.
    counted: u32,
    since: Time,
    /// Microbatches had to wait for a credit: replicas have no room for more.
    is_scarce: bool,
    /// The size before a trial that is not yet judged.
    trial: Option<Measured>,
    /// The size that was found to pay last.
    proven: Option<Measured>,
    rest: u32,
    next_rest: u32,
}

/// A size of the window and its throughput.
#[derive(Clone, Copy, Debug)]
struct Measured {
    limit: u32,
    /// Microbatches in a million seconds.
    rate: u64,
}

impl Growth {
    /// A window of `start` that grows up to `max`.
    pub(super) fn new(start: u32, max: u32) -> Self {
        let start = start.max(1);
        Self {
            min: start,
            max: max.max(start),
            width: 0,
            limit: start,
            unsettled: start,
            counted: 0,
            since: Time::default(),
            is_scarce: false,
            trial: None,
            proven: None,
            rest: 0,
            next_rest: REST_MIN,
        }
    }

    pub(super) fn limit(&self) -> u32 {
        self.limit
    }

    /// The narrowest stage has this many replicas. If they are notably more, a trial may pay again.
    pub(super) fn served_by(&mut self, width: usize) {
        if width > self.width + self.width / 8 {
            self.try_soon();
            self.width = width;
        }
        self.width = self.width.min(width);
    }

    fn try_soon(&mut self) {
        (self.rest, self.next_rest) = (0, REST_MIN);
    }

    /// A microbatch has its outcome. `is_scarce`: others wait for a credit.
    pub(super) fn outcome(&mut self, now: Time, is_scarce: bool) {
        if self.unsettled > 0 {
            self.unsettled -= 1;
            (self.since, self.counted, self.is_scarce) = (now, 0, false);
            return;
        }
        self.counted += 1;
        self.is_scarce |= is_scarce;
        if self.counted >= self.limit.saturating_mul(MEASURED_WINDOWS) {
            let rate = rate(self.counted, now.since(self.since).as_nanos());
            self.decide(Measured { limit: self.limit, rate });
            (self.since, self.counted, self.is_scarce) = (now, 0, false);
        }
    }

    fn decide(&mut self, measured: Measured) {
        match self.trial.take() {
            Some(before) if !measured.pays(before) => {
                self.rest = self.next_rest;
                self.next_rest = (2 * self.next_rest).min(REST_MAX);
                self.resize(before.limit);
            }
            Some(_) => {
                self.proven = Some(measured);
                self.next_rest = REST_MIN;
                self.try_more(measured);
            }
            None => match self.proven.filter(|proven| measured.has_fallen(*proven)) {
                Some(proven) => self.shrink(measured, proven),
                None if self.rest > 0 => self.rest -= 1,
                None => self.try_more(measured),
            },
        }
    }

    fn try_more(&mut self, measured: Measured) {
        let larger = self.limit.saturating_add(self.limit.div_ceil(2)).min(self.max);
        if larger > self.limit && !self.is_scarce {
            self.proven = self.proven.or(Some(measured));
            self.trial = Some(measured);
            self.resize(larger);
        }
    }

    /// Keeps the latency that was proven: throughput times that is the new size.
    fn shrink(&mut self, measured: Measured, proven: Measured) {
        let size = u128::from(proven.limit) * u128::from(measured.rate) / u128::from(proven.rate.max(1));
        let limit = u32::try_from(size).unwrap_or(u32::MAX).clamp(self.min, self.limit);
        self.proven = Some(Measured { limit, ..measured });
        self.try_soon();
        self.resize(limit);
    }

    fn resize(&mut self, limit: u32) {
        self.unsettled = self.limit.max(limit);
        self.limit = limit;
    }
}

impl Measured {
    fn pays(self, before: Self) -> bool {
        u128::from(self.rate) * 100 >= u128::from(before.rate) * u128::from(100 + PAYS_PERCENT)
    }

    fn has_fallen(self, proven: Self) -> bool {
        u128::from(self.rate) * 100 < u128::from(proven.rate) * u128::from(FALLEN_PERCENT)
    }
}

fn rate(count: u32, nanos: u128) -> u64 {
    u64::try_from(u128::from(count) * 1_000_000_000_000_000 / nanos.max(1)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Duration;

    /// A pipeline that computes `rate` microbatches a second and takes a second for one when it is not full.
    struct Pipeline {
        growth: Growth,
        now: Time,
    }

    impl Pipeline {
        fn new(start: u32, max: u32) -> Self {
            Self { growth: Growth::new(start, max), now: Time(0) }
        }

        /// The largest and the last size of the window in this many outcomes.
        fn run(&mut self, rate: u32, outcomes: u32, is_scarce: bool) -> (u32, u32) {
            let mut largest = 0;
            for _ in 0..outcomes {
                let pace = Duration::from_secs(1) / rate.min(self.growth.limit());
                self.now = self.now + pace;
                self.growth.outcome(self.now, is_scarce);
                largest = largest.max(self.growth.limit());
            }
            (largest, self.growth.limit())
        }
    }

    #[test]
    fn the_window_grows_until_the_pipeline_is_full_and_no_further() {
        let (largest, last) = Pipeline::new(16, 10_000).run(400, 100_000, false);
        assert!((350..=600).contains(&last), "{last}");
        assert!(largest <= 900, "{largest}");
    }

    #[test]
    fn a_full_pipeline_keeps_its_window() {
        assert_eq!(Pipeline::new(64, 10_000).run(20, 50_000, false).1, 64);
    }

    #[test]
    fn growth_is_bounded_and_waits_for_credits() {
        assert_eq!(Pipeline::new(16, 40).run(400, 50_000, false), (40, 40));
        assert_eq!(Pipeline::new(16, 10_000).run(400, 50_000, true), (16, 16));
    }

    #[test]
    fn a_window_shrinks_with_the_swarm_and_grows_with_it() {
        let mut pipeline = Pipeline::new(16, 10_000);
        let (_, full) = pipeline.run(400, 100_000, false);
        let (_, half) = pipeline.run(200, 100_000, false);
        assert!(half < full * 2 / 3, "{full} {half}");
        pipeline.growth.served_by(9);
        let (_, again) = pipeline.run(400, 100_000, false);
        assert!(again > half, "{half} {again}");
        assert_eq!(pipeline.run(1, 20_000, false).1, 16, "never below its start");
    }
}
