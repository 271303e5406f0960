//! How a keeper comes to an agreement with donors of every stage, or goes on without one.

use std::fmt::Debug;

use super::agreement::{AHEAD, Agreement, CLOCKS_MAX, NAMED_AGAIN_AFTER, REACHED_WITHIN, donors_to_tell};
use super::{Action, Keeper, Phase, Watermark};
use crate::transfer::{STATE_AGE_MAX, TransferMessage};
use crate::{Instance, Message, Time};

impl<P: Clone + Default + Debug> Keeper<P> {
    /// Names a clock to donors of every stage. Of several feeders no clock tells which microbatches came before it.
    pub(super) fn agree(&mut self, now: Time, watermark: Watermark) {
        let is_fed_by_one = self.table.feeders().nth(1).is_none() && self.table.feeders().next().is_some();
        if !is_fed_by_one || self.in_vain >= CLOCKS_MAX {
            return self.begin(now, watermark, None);
        }
        let may_copy = self.reached.is_none_or(|at| at + STATE_AGE_MAX <= now);
        let Some(pace) = self.pace.within(AHEAD).filter(|_| may_copy) else { return };
        let stages = self.config.stages.iter().map(|&(stage, _)| stage);
        let donors = donors_to_tell(&self.table, stages, self.downloads);
        let terms = (pace, self.too_late, self.config.gradient_accumulation_steps);
        self.phase = Phase::Agreeing(Box::new(Agreement::new(now, &watermark.blocks, terms, donors)));
        self.tell_clock();
    }

    /// Begins to take the states when the run has reached the clock, or does not.
    pub(super) fn await_clock(&mut self, now: Time, progress: Watermark) {
        let Phase::Agreeing(agreement) = &self.phase else { return };
        if agreement.is_reached(&progress) {
            let agreement = (**agreement).clone();
            self.reached = Some(now);
            return match agreement.watermark(&progress) {
                Some(watermark) => self.begin(now, watermark, Some(agreement)),
                None => self.begin(now, progress, None),
            };
        }
        if self.table.feeders().next().is_none() || agreement.since + REACHED_WITHIN <= now {
            self.begin(now, progress, None);
        }
    }

    pub(super) fn on_copy_declined(&mut self, now: Time, donor: Instance, clock: u64, is_late: bool) {
        if self.agreement().is_some_and(|agreement| agreement.clock == clock) {
            self.too_late += u32::from(is_late);
            self.lose_told(now, donor);
        }
    }

    /// Whether a donor that was asked offers a copy of another clock than the keeper has named.
    pub(super) fn is_of_another_moment(&self, donor: Instance, clock: Option<u64>) -> bool {
        let is_asked = self.download().is_some_and(|download| download.is_asked(donor));
        is_asked && self.agreement().is_some_and(|agreement| clock != Some(agreement.clock))
    }

    /// The clock is worth nothing any more: what is taken so far is given up, and another is named in a while.
    pub(super) fn name_again(&mut self, now: Time) {
        if matches!(self.phase, Phase::Taking(_)) {
            self.actions.push_back(Action::GiveUp);
        }
        self.phase = Phase::Waiting;
        self.in_vain += 1;
        self.schedule.put_off(now + NAMED_AGAIN_AFTER);
    }

    /// A donor has declined, or is lost. A stage without a donor that was told makes the clock worthless; another is named.
    pub(super) fn lose_told(&mut self, now: Time, donor: Instance) {
        let Phase::Agreeing(agreement) = &mut self.phase else { return };
        if agreement.drop_donor(donor) {
            self.name_again(now);
        }
    }

    fn tell_clock(&mut self) {
        let Some(agreement) = self.agreement() else { return };
        let message = TransferMessage::CopyAt { clock: agreement.clock };
        let donors: Vec<_> = agreement.donors().collect();
        for donor in donors {
            let envelope = Message::Transfer(message.clone()).into();
            self.actions.push_back(Action::Send { to: donor.peer, envelope });
        }
    }

    pub(super) fn repeat_clock(&mut self, now: Time) {
        if let Some(agreement) = self.agreement_mut()
            && agreement.repeat_at().is_some_and(|at| at <= now)
        {
            agreement.repeated(now);
            self.tell_clock();
        }
    }
}
