//! Messages nobody of sound mind would send.

use crate::{
    Attempt, Hop, Incarnation, Loss, Message, MicrobatchId, PeerId, Purpose, Refusal, Rng, StageIndex,
    WeightVersion,
};

/// Draws every field from a range that reaches just beyond what is valid.
pub(crate) fn message(rng: &mut Rng, peers: &[PeerId], ids_below: u64) -> Message<u8> {
    let microbatch = match rng.below(10) {
        0 => MicrobatchId(rng.next_u64()),
        1 => MicrobatchId::evaluation(rng.below(ids_below)),
        _ => MicrobatchId(rng.below(ids_below)),
    };
    let attempt = Attempt(if rng.chance(4, 5) { 0 } else { u32::try_from(rng.below(4)).unwrap() });
    let loss = Loss { sum: if rng.chance(1, 5) { f64::NAN } else { 1.0 }, tokens: 1 };
    match rng.below(4) {
        0 => Message::Forward {
            microbatch,
            attempt,
            purpose: purpose(rng),
            route: (0..rng.below(6)).map(|_| hop(rng, peers)).collect(),
            version: WeightVersion(rng.next_u64()),
            ids: 0,
            code: 0,
        },
        1 => Message::Backward { microbatch, attempt, loss, gradient: 0 },
        2 => Message::Evaluated { microbatch, attempt, loss },
        _ => Message::Refused { microbatch, attempt, by: hop(rng, peers), reason: Refusal::NonFinite },
    }
}

/// A forward that passes every check of the receiver: right sender, right route.
pub(crate) fn forged_forward(rng: &mut Rng, route: Vec<Hop>, ids_below: u64) -> Message<u8> {
    Message::Forward {
        microbatch: MicrobatchId(rng.below(ids_below)),
        attempt: Attempt(u32::try_from(rng.below(2)).unwrap()),
        purpose: purpose(rng),
        route,
        version: WeightVersion(0),
        ids: 0,
        code: 0,
    }
}

fn purpose(rng: &mut Rng) -> Purpose {
    *rng.pick(&[Purpose::Train, Purpose::Evaluate, Purpose::EvaluateCut]).unwrap()
}

fn hop(rng: &mut Rng, peers: &[PeerId]) -> Hop {
    let stage = rng.chance(3, 4).then(|| StageIndex(u16::try_from(rng.below(6)).unwrap()));
    Hop { stage, peer: *rng.pick(peers).unwrap(), incarnation: Incarnation(rng.below(3)) }
}
