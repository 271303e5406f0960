//! Noise: messages that no sound peer sends.

use crate::averaging::Round;
use crate::{
    AckRange, Attempt, Block, Envelope, Heartbeat, Hop, Incarnation, Instance, Loss, Message, MicrobatchId,
    PeerId, Purpose, Refusal, Rng, RouteKey, RouteProof, StageIndex, Status, WeightVersion,
};

use super::payload::Payload;

/// Draws a message whose fields come from ranges a little beyond the valid values.
pub(super) fn envelope(rng: &mut Rng, peers: &[PeerId], ids_below: u64) -> Envelope<Payload> {
    let microbatch = match rng.below(10) {
        0 => MicrobatchId(rng.next_u64()),
        1 => MicrobatchId::evaluation(Block(0), rng.below(ids_below)),
        _ => MicrobatchId(rng.below(ids_below)),
    };
    let attempt = Attempt(if rng.chance(4, 5) { 0 } else { small(rng, 4) });
    let loss = Loss { sum: if rng.chance(1, 5) { f64::NAN } else { 1.0 }, tokens: 1 };
    let route = |rng: &mut Rng| (0..rng.below(6)).map(|_| hop(rng, peers)).collect();
    let proof = |route| RouteProof { microbatch, route, key: RouteKey::default() };
    let message = match rng.below(12) {
        0 => Message::Forward {
            microbatch,
            attempt,
            purpose: purpose(rng),
            is_retry: rng.chance(1, 2),
            route: route(rng),
            key: RouteKey::default(),
            downstream_holder: Some(hop(rng, peers)),
            version: WeightVersion(rng.next_u64()),
        },
        1 => Message::Backward { microbatch, attempt, loss, path: route(rng) },
        2 => Message::Evaluated { proof: proof(route(rng)), attempt, loss },
        3 => Message::StatusRequest { microbatch, attempt, route: route(rng), key: RouteKey::default() },
        4 => Message::StatusReply { microbatch, attempt, status: Status::Missing },
        5 => Message::Forwarded { microbatch, attempt, next: hop(rng, peers) },
        6 => Message::OrphanNotice { microbatch, holder: hop(rng, peers) },
        // A claim that a peer never made could take its grants from it.
        7 => Message::Claim { stage: StageIndex(9), claimed: Vec::new(), forfeited: Vec::new() },
        8 => {
            let range = AckRange { first: 0, end: u64::MAX, open: vec![3, 9] };
            Message::Outcomes { ranges: vec![range] }
        }
        9 => Message::Heartbeat(Heartbeat { credit: u32::MAX, ..Heartbeat::default() }),
        10 => Message::RoundCall {
            round: Round(rng.next_u64()),
            is_closing: rng.chance(1, 2),
            weights: Vec::new(),
        },
        _ => {
            let (proof, by) = (proof(route(rng)), hop(rng, peers));
            Message::Refused { proof, by, reason: Refusal::NonFinite }
        }
    };
    Envelope { message, ids: Payload::Tokens, payload: Payload::Activation }
}

fn purpose(rng: &mut Rng) -> Purpose {
    let purposes = [Purpose::Train, Purpose::Evaluate, Purpose::EvaluateCut];
    rng.pick(&purposes).copied().unwrap_or(Purpose::Train)
}

fn hop(rng: &mut Rng, peers: &[PeerId]) -> Hop {
    let stage = rng.chance(3, 4).then(|| StageIndex(u16::try_from(small(rng, 6)).unwrap_or(0)));
    let peer = rng.pick(peers).copied().unwrap_or(PeerId([0; 32]));
    Hop { stage, instance: Instance::new(peer, Incarnation(rng.below(3))) }
}

fn small(rng: &mut Rng, bound: u64) -> u32 {
    u32::try_from(rng.below(bound)).unwrap_or(0)
}
