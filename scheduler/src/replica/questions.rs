//! How many questions of one member a replica answers.
//!
//! An answer may be as long as a gradient or a page of a recovery report, so a member that asks without end would take
//! the uplink of whom it asks. Members that ask as the protocol has it stay far below these limits, and repeat what gets
//! no answer.

use std::collections::BTreeMap;

use crate::{Duration, Instance, Message, PeerTable, Time};

/// Questions about microbatches that are answered to one member, a second. After an outage a sender asks about all that
/// it has handed on, at once, so the limit counts over [`STATUS_REQUESTS_AT_ONCE`].
pub const STATUS_REQUESTS_PER_SECOND: u32 = 256;
/// Questions about microbatches that are answered to one member at once.
pub const STATUS_REQUESTS_AT_ONCE: u32 = 2_048;
/// Round calls that are heard from one feeder, a second; it repeats a call once a second.
pub const ROUND_CALLS_PER_SECOND: u32 = 8;
/// Round calls that are heard from one feeder at once.
pub const ROUND_CALLS_AT_ONCE: u32 = 32;
/// Pages of recovery reports that one successor gets, a second.
pub const RECOVERY_PAGES_PER_SECOND: u32 = 32;
/// Pages of recovery reports that one successor gets at once.
pub const RECOVERY_PAGES_AT_ONCE: u32 = 512;

/// The kinds of questions with a limit, each with what is answered a second and at once.
const LIMITS: [(u32, u32); 3] = [
    (STATUS_REQUESTS_PER_SECOND, STATUS_REQUESTS_AT_ONCE),
    (ROUND_CALLS_PER_SECOND, ROUND_CALLS_AT_ONCE),
    (RECOVERY_PAGES_PER_SECOND, RECOVERY_PAGES_AT_ONCE),
];

/// The questions of each member lately.
#[derive(Clone, Debug, Default)]
pub(super) struct Questions(BTreeMap<Instance, [Allowance; LIMITS.len()]>);

/// What is left of a limit. It fills with time, up to the limit at once.
#[derive(Clone, Copy, Debug, Default)]
struct Allowance {
    /// The time at which all that was taken has come back.
    full_at: Time,
}

impl Questions {
    /// Whether the message is answered: it is no question, or its sender has not asked too much.
    pub(super) fn admit(&mut self, now: Time, from: Instance, message: &Message) -> bool {
        let Some(kind) = kind(message) else { return true };
        self.0.entry(from).or_default()[kind].take(now, LIMITS[kind])
    }

    /// Forgets the instances that have left the table.
    pub(super) fn retain_members(&mut self, table: &PeerTable) {
        self.0.retain(|&instance, _| table.get(instance).is_some());
    }
}

impl Allowance {
    fn take(&mut self, now: Time, (a_second, at_once): (u32, u32)) -> bool {
        let one = Duration::from_secs(1) / a_second;
        let full_at = self.full_at.max(now) + one;
        if full_at > now + one * at_once {
            return false;
        }
        self.full_at = full_at;
        true
    }
}

/// The index of the limit in [`LIMITS`].
fn kind(message: &Message) -> Option<usize> {
    match message {
        Message::StatusRequest { .. } => Some(0),
        Message::RoundCall { .. } => Some(1),
        Message::RecoverRange { .. } => Some(2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::averaging::Round;
    use crate::fixtures::{a, b};

    #[test]
    fn what_is_answered_to_one_member_takes_nothing_from_another_and_comes_back_with_time() {
        let call = Message::RoundCall { round: Round(1), is_closing: false, weights: Vec::new() };
        let (mut questions, mut now) = (Questions::default(), Time(5));
        let answered = |questions: &mut Questions, now, from: Instance| {
            (0..10_000).filter(|_| questions.admit(now, from, &call)).count()
        };
        assert_eq!(answered(&mut questions, now, a(0).instance), ROUND_CALLS_AT_ONCE as usize);
        assert_eq!(answered(&mut questions, now, b(0).instance), ROUND_CALLS_AT_ONCE as usize);
        now = now + Duration::from_secs(1);
        assert_eq!(answered(&mut questions, now, a(0).instance), ROUND_CALLS_PER_SECOND as usize);
        now = now + Duration::from_secs(3_600);
        assert_eq!(answered(&mut questions, now, a(0).instance), ROUND_CALLS_AT_ONCE as usize);
    }
}
