//! Messages nobody of sound mind would send.

use crate::averaging::Round;
use crate::{
    Attempt, Beat, Holding, Hop, Incarnation, Loss, Message, MicrobatchId, PeerId, Purpose, Refusal, Rng,
    Span, StageIndex, WeightVersion,
};

/// Draws every field from a range that reaches just beyond what is valid.
pub(super) fn message(rng: &mut Rng, peers: &[PeerId], ids_below: u64) -> Message<u8> {
    let microbatch = match rng.below(10) {
        0 => MicrobatchId(rng.next_u64()),
        1 => MicrobatchId::evaluation(rng.below(ids_below)),
        _ => MicrobatchId(rng.below(ids_below)),
    };
    let attempt = Attempt(if rng.chance(4, 5) { 0 } else { u32::try_from(rng.below(4)).unwrap() });
    let loss = Loss { sum: if rng.chance(1, 5) { f64::NAN } else { 1.0 }, tokens: 1 };
    let route = |rng: &mut Rng| (0..rng.below(6)).map(|_| hop(rng, peers)).collect();
    match rng.below(11) {
        0 => Message::Forward {
            microbatch,
            attempt,
            purpose: purpose(rng),
            anew: rng.chance(1, 2),
            route: route(rng),
            holder: Some(hop(rng, peers)),
            version: WeightVersion(rng.next_u64()),
            ids: 0,
            code: 0,
        },
        1 => Message::Backward { microbatch, attempt, loss, path: route(rng), gradient: 0 },
        2 => Message::Evaluated { microbatch, attempt, loss },
        3 => Message::Ask { microbatch, attempt, route: route(rng) },
        4 => Message::Holds { microbatch, attempt, holding: Holding::Missing },
        5 => Message::Passed { microbatch, attempt, next: hop(rng, peers) },
        6 => Message::Held { microbatch, holder: hop(rng, peers) },
        7 => Message::Claim { stage: StageIndex(9), microbatches: vec![microbatch] },
        8 => Message::Ended {
            spans: vec![Span { first: 0, below: u64::MAX, beyond: vec![255; 3] }],
            round: Round(rng.next_u64()),
            over: rng.chance(1, 2),
        },
        9 => Message::Beat(Beat { credit: u32::MAX, ..Beat::default() }),
        _ => Message::Refused { microbatch, by: hop(rng, peers), reason: Refusal::NonFinite },
    }
}

fn purpose(rng: &mut Rng) -> Purpose {
    *rng.pick(&[Purpose::Train, Purpose::Evaluate, Purpose::EvaluateCut]).unwrap()
}

fn hop(rng: &mut Rng, peers: &[PeerId]) -> Hop {
    let stage = rng.chance(3, 4).then(|| StageIndex(u16::try_from(rng.below(6)).unwrap()));
    Hop { stage, peer: *rng.pick(peers).unwrap(), incarnation: Incarnation(rng.below(3)) }
}
