//! The schedule of a feeder's own measurements of the loss on held-out text: before training, at an interval, and after
//! training.

use crate::Purpose;

/// The measurements of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvaluationSchedule {
    /// Held-out microbatches of one measurement.
    pub microbatches: u64,
    /// Training microbatches between two measurements; `None` measures at the beginning and the end only.
    pub interval: Option<u64>,
}

/// The progress of a schedule.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ScheduleProgress {
    begun: bool,
    last_due: u64,
    closed: bool,
}

impl ScheduleProgress {
    /// The measurement that is due now, after `injected` of `total` training microbatches. It is due when the last
    /// microbatch before it is sent, so that a synchronous run dries up behind that microbatch.
    pub(super) fn take_due(
        &mut self,
        schedule: EvaluationSchedule,
        injected: u64,
        total: u64,
    ) -> Option<Purpose> {
        if !std::mem::replace(&mut self.begun, true) {
            return Some(Purpose::Evaluate);
        }
        let due = injected - injected % schedule.interval.filter(|&interval| interval > 0)?;
        // After the last microbatch the measurement at the end follows anyway.
        if due <= self.last_due || due >= total {
            return None;
        }
        self.last_due = due;
        Some(Purpose::Evaluate)
    }

    /// The measurements at the end, once: with the upstream, and without it if there is more than one stage.
    pub(super) fn take_last(&mut self, stages: u16) -> &'static [Purpose] {
        if std::mem::replace(&mut self.closed, true) {
            &[]
        } else if stages > 1 {
            &[Purpose::Evaluate, Purpose::EvaluateCut]
        } else {
            &[Purpose::Evaluate]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_at_the_beginning_at_the_interval_and_at_the_end() {
        let schedule = EvaluationSchedule { microbatches: 4, interval: Some(10) };
        let mut progress = ScheduleProgress::default();
        let due: Vec<_> =
            (0..=30).filter(|&injected| progress.take_due(schedule, injected, 30).is_some()).collect();
        assert_eq!(due, [0, 10, 20]);
        assert_eq!(progress.take_last(3), [Purpose::Evaluate, Purpose::EvaluateCut]);
        assert_eq!(progress.take_last(3), []);
        assert_eq!(ScheduleProgress::default().take_last(1), [Purpose::Evaluate]);
    }

    #[test]
    fn without_an_interval_only_the_beginning_is_due() {
        let schedule = EvaluationSchedule { microbatches: 4, interval: None };
        let mut progress = ScheduleProgress::default();
        assert_eq!(progress.take_due(schedule, 0, 30), Some(Purpose::Evaluate));
        assert_eq!(progress.take_due(schedule, 20, 30), None);
    }
}
