//! Messages of averaging rounds.

use swarmline_proto::v1;
use swarmline_proto::v1::frame::Message as Wire;
use swarmline_scheduler::Attempt;
use swarmline_scheduler::averaging::{
    ATTEMPTS_MAX, AveragingMessage, Content, GroupId, MeanId, MemberSet, PartIndex, Round, WEIGHT_MAX,
};

use super::{WireError, length, out_of_range};

pub(super) fn encode(message: &AveragingMessage) -> Wire {
    let AveragingMessage { group, part, attempt, content } = message;
    let at = Some(v1::PartOfRound {
        round: group.round.0,
        members: group.members,
        part: part.0,
        attempt: attempt.0,
    });
    match content {
        Content::Copying => Wire::CopyUnderWay(v1::CopyUnderWay { at }),
        Content::Contribution { weight } => Wire::Contribution(v1::Contribution { at, weight: *weight }),
        Content::Promise { of, contributors } => {
            Wire::Promise(v1::Promise { at, of_attempt: of.0, contributors: contributors.0 })
        }
        Content::Accept { contributors } => Wire::Accept(v1::Accept { at, contributors: contributors.0 }),
        Content::Accepted { mean: MeanId { contributors, digest } } => {
            Wire::Accepted(v1::Accepted { at, contributors: contributors.0, digest: digest.to_vec() })
        }
        Content::Empty { heard } => Wire::EmptyPart(v1::EmptyPart { at, heard: heard.0 }),
        Content::NotAMember => Wire::NotAMember(v1::NotAMember { at }),
    }
}

pub(super) fn decode(message: &Wire) -> Result<AveragingMessage, WireError> {
    let (at, content) = match *message {
        Wire::Contribution(v1::Contribution { at, weight }) => {
            if weight > WEIGHT_MAX {
                let value = weight.to_string();
                let field = "the weight of a contribution";
                return Err(WireError::Range { field, value, allowed: "up to 2^40" });
            }
            (at, Content::Contribution { weight })
        }
        Wire::CopyUnderWay(v1::CopyUnderWay { at }) => (at, Content::Copying),
        Wire::Promise(v1::Promise { at, of_attempt, contributors }) => {
            let of = decode_attempt(of_attempt)?;
            (at, Content::Promise { of, contributors: MemberSet(contributors) })
        }
        Wire::Accept(v1::Accept { at, contributors }) => {
            (at, Content::Accept { contributors: MemberSet(contributors) })
        }
        Wire::Accepted(v1::Accepted { at, contributors, ref digest }) => {
            let digest = digest.as_slice().try_into().map_err(|_| length("the digest of a mean", digest))?;
            (at, Content::Accepted { mean: MeanId { contributors: MemberSet(contributors), digest } })
        }
        Wire::EmptyPart(v1::EmptyPart { at, heard }) => (at, Content::Empty { heard: MemberSet(heard) }),
        Wire::NotAMember(v1::NotAMember { at }) => (at, Content::NotAMember),
        _ => return Err(WireError::Missing { field: "the message of an averaging round" }),
    };
    let at = at.ok_or(WireError::Missing { field: "the part of the round" })?;
    let group = GroupId { round: Round(at.round), members: at.members };
    let attempt = decode_attempt(at.attempt)?;
    Ok(AveragingMessage { group, part: PartIndex(at.part), attempt, content })
}

fn decode_attempt(attempt: u32) -> Result<Attempt, WireError> {
    let fits = (attempt < ATTEMPTS_MAX).then_some(Attempt(attempt));
    fits.ok_or_else(|| out_of_range("attempt", attempt, "below 3"))
}
