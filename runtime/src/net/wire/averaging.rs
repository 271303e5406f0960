//! Messages of averaging rounds.

use bytes::Bytes;
use swarmline_proto::v1;
use swarmline_proto::v1::frame::Message as Wire;
use swarmline_scheduler::Attempt;
use swarmline_scheduler::averaging::{
    ATTEMPTS_MAX, AveragingMessage, Content, GatheringId, PartIndex, Round, WEIGHT_MAX,
};

use super::{WireError, unknown};

pub(super) fn encode(message: &AveragingMessage<Bytes>) -> Wire {
    let AveragingMessage { gathering, part, attempt, content } = message;
    let at = Some(v1::PartOfRound {
        round: gathering.round.0,
        members: gathering.members,
        part: part.0,
        attempt: attempt.0,
    });
    match content {
        Content::Share { weight, share } => {
            Wire::Share(v1::Share { at, weight: *weight, share_bytes: share.len() as u64 })
        }
        Content::Kept { of, mean } => {
            Wire::KeptMean(v1::KeptMean { at, of_attempt: of.0, mean_bytes: mean.len() as u64 })
        }
        Content::Mean { mean } => Wire::Mean(v1::Mean { at, mean_bytes: mean.len() as u64 }),
        Content::Held => Wire::MeanHeld(v1::MeanHeld { at }),
        Content::Settled => Wire::MeanSettled(v1::MeanSettled { at }),
        Content::Nothing => Wire::NothingToAverage(v1::NothingToAverage { at }),
        Content::Absent => Wire::AbsentFromRound(v1::AbsentFromRound { at }),
    }
}

/// The message with the announced lengths, in bytes, where payloads will be; they are not checked yet.
pub(super) fn decode(message: &Wire) -> Result<AveragingMessage<u64>, WireError> {
    let (at, content) = match *message {
        Wire::Share(v1::Share { at, weight, share_bytes }) => {
            if weight > WEIGHT_MAX {
                let value = weight.to_string();
                return Err(WireError::Range {
                    field: "the weight of a share",
                    value,
                    allowed: "up to 2^40",
                });
            }
            (at, Content::Share { weight, share: share_bytes })
        }
        Wire::KeptMean(v1::KeptMean { at, of_attempt, mean_bytes }) => {
            (at, Content::Kept { of: attempt(of_attempt)?, mean: mean_bytes })
        }
        Wire::Mean(v1::Mean { at, mean_bytes }) => (at, Content::Mean { mean: mean_bytes }),
        Wire::MeanHeld(v1::MeanHeld { at }) => (at, Content::Held),
        Wire::MeanSettled(v1::MeanSettled { at }) => (at, Content::Settled),
        Wire::NothingToAverage(v1::NothingToAverage { at }) => (at, Content::Nothing),
        Wire::AbsentFromRound(v1::AbsentFromRound { at }) => (at, Content::Absent),
        _ => return Err(WireError::Missing { field: "the message of an averaging round" }),
    };
    let at = at.ok_or(WireError::Missing { field: "the part of the round" })?;
    let gathering = GatheringId { round: Round(at.round), members: at.members };
    Ok(AveragingMessage { gathering, part: PartIndex(at.part), attempt: attempt(at.attempt)?, content })
}

fn attempt(attempt: u32) -> Result<Attempt, WireError> {
    let fits = (attempt < ATTEMPTS_MAX).then_some(Attempt(attempt));
    fits.ok_or_else(|| unknown("attempt", attempt, "below 3"))
}
