//! Between the types of the wire contract and ours; the only place that knows both.
//!
//! Decoding checks everything the contract promises and answers with a [`WireError`] that names the field.

mod averaging;
mod succession;
mod transfer;

use std::net::SocketAddr;

use bytes::Bytes;
use swarmline_proto::v1;
use swarmline_scheduler::averaging::Round;
use swarmline_scheduler::{
    Attempt, Beat, CLAIM_MAX, Duration, Holding, Hop, Incarnation, Loss, Member, Membership, Message,
    MicrobatchId, PeerId, Purpose, Refusal, Role, SPAN_BYTES_MAX, SPANS_MAX, Span, StageIndex, Standing,
    WeightVersion,
};

use super::digest::ManifestDigest;

/// Bytes of a sentence for people that travels with a refusal; what is longer is cut.
pub const DETAIL_BYTES_MAX: usize = 512;

/// Why a received message is not what the contract allows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Not protobuf, or not this message.
    #[error("not a {message} message: {detail}")]
    Protobuf {
        /// Which message was expected.
        message: &'static str,
        /// What the decoder said.
        detail: String,
    },
    /// A field that must be there is not.
    #[error("{field} is missing")]
    Missing {
        /// Which field.
        field: &'static str,
    },
    /// A field outside its documented range.
    #[error("{field} is {value}, which is not {allowed}")]
    Range {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
}

/// The header that announces `message`: its payloads become lengths.
pub(super) fn encode_frame(message: &Message<Bytes>) -> v1::Frame {
    use v1::frame::Message as Wire;
    let wire = match message {
        Message::Forward { microbatch, attempt, purpose, anew, route, holder, version, ids, code } => {
            Wire::Forward(v1::Forward {
                microbatch: microbatch.0,
                attempt: attempt.0,
                purpose: encode_purpose(*purpose).into(),
                anew: *anew,
                route: route.iter().map(encode_hop).collect(),
                holder: holder.as_ref().map(encode_hop),
                weight_version: version.0,
                ids_bytes: ids.len() as u64,
                code_bytes: code.len() as u64,
            })
        }
        Message::Backward { microbatch, attempt, loss, path, gradient } => Wire::Backward(v1::Backward {
            microbatch: microbatch.0,
            attempt: attempt.0,
            loss: Some(encode_loss(*loss)),
            path: path.iter().map(encode_hop).collect(),
            code_bytes: gradient.len() as u64,
        }),
        Message::Evaluated { microbatch, attempt, loss } => Wire::Evaluated(v1::Evaluated {
            microbatch: microbatch.0,
            attempt: attempt.0,
            loss: Some(encode_loss(*loss)),
        }),
        Message::Refused { microbatch, by, reason } => {
            let (cause, detail) = encode_refusal(reason);
            let by = Some(encode_hop(by));
            Wire::Refused(v1::Refused { microbatch: microbatch.0, by, cause: cause.into(), detail })
        }
        Message::Averaging(message) => averaging::encode(message),
        Message::Transfer(message) => transfer::encode(message),
        word => return v1::Frame { message: encode_word(word) },
    };
    v1::Frame { message: Some(wire) }
}

/// Messages without a payload that keep microbatches from being lost; `None` for the others.
fn encode_word(message: &Message<Bytes>) -> Option<v1::frame::Message> {
    use v1::frame::Message as Wire;
    let ids = |ids: &[MicrobatchId]| ids.iter().map(|id| id.0).collect();
    Some(match message {
        Message::Ask { microbatch, attempt, route } => {
            let route = route.iter().map(encode_hop).collect();
            Wire::Ask(v1::Ask { microbatch: microbatch.0, attempt: attempt.0, route })
        }
        Message::Holds { microbatch, attempt, holding } => {
            let holding = encode_holding(*holding).into();
            Wire::Holds(v1::Holds { microbatch: microbatch.0, attempt: attempt.0, holding })
        }
        Message::Passed { microbatch, attempt, next } => {
            let next = Some(encode_hop(next));
            Wire::Passed(v1::Passed { microbatch: microbatch.0, attempt: attempt.0, next })
        }
        Message::Held { microbatch, holder } => {
            Wire::Held(v1::Held { microbatch: microbatch.0, holder: Some(encode_hop(holder)) })
        }
        Message::Claim { stage, microbatches } => {
            Wire::Claim(v1::Claim { stage: stage.0.into(), microbatches: ids(microbatches) })
        }
        Message::Granted { granted, denied } => {
            Wire::Granted(v1::Granted { granted: ids(granted), denied: ids(denied) })
        }
        Message::Ended { spans, round, over } => {
            let spans = spans.iter().map(encode_span).collect();
            Wire::Ended(v1::Ended { spans, round: round.0, over: *over })
        }
        Message::Averaged { round } => Wire::Averaged(v1::Averaged { round: round.0 }),
        Message::Adopt { range, epoch, from } => {
            Wire::Adopt(v1::Adopt { range: range.0, epoch: *epoch, from: from.0 })
        }
        Message::Inventory(inventory) => Wire::Inventory(succession::encode_inventory(inventory)),
        Message::Beat(beat) => Wire::Beat(encode_beat(beat)),
        Message::Forward { .. }
        | Message::Backward { .. }
        | Message::Evaluated { .. }
        | Message::Refused { .. }
        | Message::Averaging(_)
        | Message::Transfer(_) => return None,
    })
}

/// The message a header announces, with the announced lengths, in bytes, where the payloads will be. The lengths
/// are not checked yet.
pub(super) fn decode_frame(frame: v1::Frame) -> Result<Message<u64>, WireError> {
    use v1::frame::Message as Wire;
    let message = frame.message.ok_or(WireError::Missing { field: "the message of the frame" })?;
    Ok(match message {
        Wire::Forward(forward) => Message::Forward {
            microbatch: MicrobatchId(forward.microbatch),
            attempt: Attempt(forward.attempt),
            purpose: decode_purpose(forward.purpose)?,
            anew: forward.anew,
            route: decode_hops(&forward.route)?,
            holder: forward.holder.as_ref().map(decode_hop).transpose()?,
            version: WeightVersion(forward.weight_version),
            ids: forward.ids_bytes,
            code: forward.code_bytes,
        },
        Wire::Backward(backward) => Message::Backward {
            microbatch: MicrobatchId(backward.microbatch),
            attempt: Attempt(backward.attempt),
            loss: require_loss(backward.loss)?,
            path: decode_hops(&backward.path)?,
            gradient: backward.code_bytes,
        },
        Wire::Evaluated(evaluated) => Message::Evaluated {
            microbatch: MicrobatchId(evaluated.microbatch),
            attempt: Attempt(evaluated.attempt),
            loss: require_loss(evaluated.loss)?,
        },
        Wire::Refused(refused) => Message::Refused {
            microbatch: MicrobatchId(refused.microbatch),
            by: require_hop(refused.by.as_ref(), "the refuser")?,
            reason: decode_refusal(refused.cause, &refused.detail)?,
        },
        Wire::Ask(ask) => Message::Ask {
            microbatch: MicrobatchId(ask.microbatch),
            attempt: Attempt(ask.attempt),
            route: decode_hops(&ask.route)?,
        },
        Wire::Holds(holds) => Message::Holds {
            microbatch: MicrobatchId(holds.microbatch),
            attempt: Attempt(holds.attempt),
            holding: decode_holding(holds.holding)?,
        },
        Wire::Passed(passed) => Message::Passed {
            microbatch: MicrobatchId(passed.microbatch),
            attempt: Attempt(passed.attempt),
            next: require_hop(passed.next.as_ref(), "the next hop")?,
        },
        Wire::Held(held) => Message::Held {
            microbatch: MicrobatchId(held.microbatch),
            holder: require_hop(held.holder.as_ref(), "the holder")?,
        },
        Wire::Claim(claim) => Message::Claim {
            stage: decode_stage(claim.stage)?,
            microbatches: decode_ids(&claim.microbatches)?,
        },
        Wire::Granted(verdict) => {
            Message::Granted { granted: decode_ids(&verdict.granted)?, denied: decode_ids(&verdict.denied)? }
        }
        Wire::Ended(ended) => {
            Message::Ended { spans: decode_spans(ended.spans)?, round: Round(ended.round), over: ended.over }
        }
        Wire::Averaged(averaged) => Message::Averaged { round: Round(averaged.round) },
        Wire::Adopt(adopt) => Message::Adopt {
            range: MicrobatchId(adopt.range),
            epoch: adopt.epoch,
            from: MicrobatchId(adopt.from),
        },
        Wire::Inventory(inventory) => Message::Inventory(succession::decode_inventory(inventory)?),
        Wire::Beat(beat) => Message::Beat(decode_beat(&beat)),
        Wire::Share(_)
        | Wire::KeptMean(_)
        | Wire::Mean(_)
        | Wire::MeanHeld(_)
        | Wire::MeanSettled(_)
        | Wire::NothingToAverage(_)
        | Wire::AbsentFromRound(_) => Message::Averaging(averaging::decode(&message)?),
        Wire::StateRequest(_)
        | Wire::StateOffer(_)
        | Wire::ChunkRequest(_)
        | Wire::Chunk(_)
        | Wire::StateDeclined(_)
        | Wire::StateDone(_) => Message::Transfer(transfer::decode(&message)?),
    })
}

/// The membership table as a message.
#[must_use]
pub fn encode_membership(membership: &Membership) -> v1::Membership {
    v1::Membership {
        version: membership.version,
        members: membership.members.iter().map(encode_member).collect(),
        successions: membership.successions.iter().map(succession::encode_succession).collect(),
    }
}

/// The membership table in a message.
///
/// # Errors
/// If a member or a succession breaks the contract, or the members are not strictly ascending by peer.
pub fn decode_membership(membership: &v1::Membership) -> Result<Membership, WireError> {
    let members: Vec<Member> = membership.members.iter().map(decode_member).collect::<Result<_, _>>()?;
    if let Some(pair) = members.windows(2).find(|pair| pair[0].peer >= pair[1].peer) {
        return Err(WireError::Range {
            field: "the peer of a member",
            value: pair[1].peer.to_string(),
            allowed: "greater than the one before it",
        });
    }
    let successions = succession::decode_successions(&membership.successions)?;
    Ok(Membership { version: membership.version, members, successions })
}

/// A role as the number in a message.
#[must_use]
pub fn encode_role(role: Role) -> i32 {
    match role {
        Role::Feeder => v1::Role::Feeder.into(),
        Role::Successor => v1::Role::Successor.into(),
        Role::Replica => v1::Role::Replica.into(),
    }
}

/// The role behind the number in a message.
///
/// # Errors
/// For an unknown number.
pub fn decode_role(role: i32) -> Result<Role, WireError> {
    match v1::Role::try_from(role) {
        Ok(v1::Role::Feeder) => Ok(Role::Feeder),
        Ok(v1::Role::Successor) => Ok(Role::Successor),
        Ok(v1::Role::Replica) => Ok(Role::Replica),
        Ok(v1::Role::Unspecified) | Err(_) => Err(unknown("role", role, "a known role")),
    }
}

/// A loss as a message.
#[must_use]
pub fn encode_loss(loss: Loss) -> v1::Loss {
    v1::Loss { sum: loss.sum, tokens: loss.tokens }
}

/// The loss in a message. Its sum may be any number, even none: judging it is the receiver's business.
#[must_use]
pub fn decode_loss(loss: &v1::Loss) -> Loss {
    Loss { sum: loss.sum, tokens: loss.tokens }
}

/// The peer whose key these bytes are.
///
/// # Errors
/// If they are not 32.
pub fn decode_peer(bytes: &[u8]) -> Result<PeerId, WireError> {
    bytes.try_into().map(PeerId).map_err(|_| length("the key of a peer", bytes))
}

/// The manifest digest in these bytes.
///
/// # Errors
/// If they are not 32.
pub fn decode_digest(bytes: &[u8]) -> Result<ManifestDigest, WireError> {
    bytes.try_into().map(ManifestDigest).map_err(|_| length("the manifest digest", bytes))
}

/// The stage with this number.
///
/// # Errors
/// If it is above 65535.
pub fn decode_stage(stage: u32) -> Result<StageIndex, WireError> {
    u16::try_from(stage).map(StageIndex).map_err(|_| unknown("stage", stage, "a number up to 65535"))
}

/// The address of a data plane.
///
/// # Errors
/// If it is not `IP:PORT`, or the port is 0.
pub fn decode_address(address: &str) -> Result<SocketAddr, WireError> {
    let parsed: Option<SocketAddr> = address.parse().ok();
    parsed.filter(|address| address.port() != 0).ok_or_else(|| WireError::Range {
        field: "the data-plane address",
        value: format!("{:?}", single_line(address)),
        allowed: "IP:PORT with a port other than 0",
    })
}

/// A sentence for people, as it may travel and be logged: one line, at most [`DETAIL_BYTES_MAX`] bytes. Remote text
/// goes through here too, so that nobody writes lines into another's log.
#[must_use]
pub fn single_line(text: &str) -> String {
    let mut line = String::new();
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if line.len() + c.len_utf8() > DETAIL_BYTES_MAX {
            break;
        }
        line.push(c);
    }
    line
}

fn encode_purpose(purpose: Purpose) -> v1::Purpose {
    match purpose {
        Purpose::Train => v1::Purpose::Train,
        Purpose::Evaluate => v1::Purpose::Evaluate,
        Purpose::EvaluateCut => v1::Purpose::EvaluateCut,
    }
}

fn decode_purpose(purpose: i32) -> Result<Purpose, WireError> {
    match v1::Purpose::try_from(purpose) {
        Ok(v1::Purpose::Train) => Ok(Purpose::Train),
        Ok(v1::Purpose::Evaluate) => Ok(Purpose::Evaluate),
        Ok(v1::Purpose::EvaluateCut) => Ok(Purpose::EvaluateCut),
        Ok(v1::Purpose::Unspecified) | Err(_) => Err(unknown("purpose", purpose, "a known purpose")),
    }
}

fn encode_hop(hop: &Hop) -> v1::Hop {
    v1::Hop {
        stage: hop.stage.map(|stage| u32::from(stage.0)),
        peer: hop.peer.0.to_vec(),
        incarnation: hop.incarnation.0,
    }
}

fn decode_hop(hop: &v1::Hop) -> Result<Hop, WireError> {
    Ok(Hop {
        stage: hop.stage.map(decode_stage).transpose()?,
        peer: decode_peer(&hop.peer)?,
        incarnation: Incarnation(hop.incarnation),
    })
}

fn decode_hops(hops: &[v1::Hop]) -> Result<Vec<Hop>, WireError> {
    hops.iter().map(decode_hop).collect()
}

fn require_hop(hop: Option<&v1::Hop>, field: &'static str) -> Result<Hop, WireError> {
    decode_hop(hop.ok_or(WireError::Missing { field })?)
}

fn decode_ids(ids: &[u64]) -> Result<Vec<MicrobatchId>, WireError> {
    if ids.len() > CLAIM_MAX {
        return Err(unknown("the number of microbatches", ids.len() as i64, "at most 1024"));
    }
    Ok(ids.iter().copied().map(MicrobatchId).collect())
}

fn encode_holding(holding: Holding) -> v1::holds::Holding {
    match holding {
        Holding::Held => v1::holds::Holding::Held,
        Holding::Missing => v1::holds::Holding::Missing,
        Holding::Busy => v1::holds::Holding::Busy,
    }
}

fn decode_holding(holding: i32) -> Result<Holding, WireError> {
    match v1::holds::Holding::try_from(holding) {
        Ok(v1::holds::Holding::Held) => Ok(Holding::Held),
        Ok(v1::holds::Holding::Missing) => Ok(Holding::Missing),
        Ok(v1::holds::Holding::Busy) => Ok(Holding::Busy),
        Ok(v1::holds::Holding::Unspecified) | Err(_) => Err(unknown("holding", holding, "a known holding")),
    }
}

fn encode_span(span: &Span) -> v1::ended::Span {
    v1::ended::Span { first: span.first, below: span.below, beyond: span.beyond.clone() }
}

fn decode_spans(spans: Vec<v1::ended::Span>) -> Result<Vec<Span>, WireError> {
    if spans.len() > SPANS_MAX {
        return Err(unknown("the number of spans", spans.len() as i64, "at most 16"));
    }
    let decode = |span: v1::ended::Span| {
        if span.beyond.len() > SPAN_BYTES_MAX {
            return Err(unknown("the length of a span", span.beyond.len() as i64, "at most 1024 bytes"));
        }
        Ok(Span { first: span.first, below: span.below, beyond: span.beyond })
    };
    spans.into_iter().map(decode).collect()
}

fn encode_beat(beat: &Beat) -> v1::Beat {
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    v1::Beat {
        counter: beat.counter,
        queued: beat.queued,
        oldest_us: micros(beat.oldest),
        service_us: beat.service.map(micros),
        credit: beat.credit,
    }
}

fn decode_beat(beat: &v1::Beat) -> Beat {
    Beat {
        counter: beat.counter,
        queued: beat.queued,
        oldest: Duration::from_micros(beat.oldest_us),
        service: beat.service_us.map(Duration::from_micros),
        credit: beat.credit,
    }
}

fn require_loss(loss: Option<v1::Loss>) -> Result<Loss, WireError> {
    loss.as_ref().map(decode_loss).ok_or(WireError::Missing { field: "the loss" })
}

fn encode_refusal(refusal: &Refusal) -> (v1::refused::Cause, String) {
    use v1::refused::Cause;
    match refusal {
        Refusal::NonFinite => (Cause::NonFinite, String::new()),
        Refusal::Malformed(detail) => (Cause::Malformed, single_line(detail)),
        Refusal::Unknown => (Cause::Unknown, String::new()),
        Refusal::Busy => (Cause::Busy, String::new()),
        Refusal::Undeliverable => (Cause::Undeliverable, String::new()),
        Refusal::Device(detail) => (Cause::Device, single_line(detail)),
        Refusal::Abandoned => (Cause::Abandoned, String::new()),
    }
}

fn decode_refusal(cause: i32, detail: &str) -> Result<Refusal, WireError> {
    use v1::refused::Cause;
    match Cause::try_from(cause) {
        Ok(Cause::NonFinite) => Ok(Refusal::NonFinite),
        Ok(Cause::Malformed) => Ok(Refusal::Malformed(single_line(detail))),
        Ok(Cause::Unknown) => Ok(Refusal::Unknown),
        Ok(Cause::Busy) => Ok(Refusal::Busy),
        Ok(Cause::Undeliverable) => Ok(Refusal::Undeliverable),
        Ok(Cause::Device) => Ok(Refusal::Device(single_line(detail))),
        Ok(Cause::Abandoned) => Ok(Refusal::Abandoned),
        Ok(Cause::Unspecified) | Err(_) => Err(unknown("cause", cause, "a known cause")),
    }
}

fn encode_member(member: &Member) -> v1::Member {
    let (progress, stage) = match member.standing {
        Standing::Loading(stage) => (v1::Progress::Loading, Some(stage)),
        Standing::Serving(stage) => (v1::Progress::Serving, Some(stage)),
        Standing::Standby => (v1::Progress::Standby, None),
        Standing::Feeding => (v1::Progress::Feeding, None),
    };
    v1::Member {
        peer: member.peer.0.to_vec(),
        incarnation: member.incarnation.0,
        progress: progress.into(),
        stage: stage.map(|stage| u32::from(stage.0)),
        address: member.address.to_string(),
    }
}

fn decode_member(member: &v1::Member) -> Result<Member, WireError> {
    Ok(Member {
        peer: decode_peer(&member.peer)?,
        incarnation: Incarnation(member.incarnation),
        standing: decode_standing(member.progress, member.stage)?,
        address: decode_address(&member.address)?,
    })
}

fn decode_standing(progress: i32, stage: Option<u32>) -> Result<Standing, WireError> {
    let stage = stage.map(decode_stage).transpose()?;
    match (v1::Progress::try_from(progress), stage) {
        (Ok(v1::Progress::Loading), Some(stage)) => Ok(Standing::Loading(stage)),
        (Ok(v1::Progress::Serving), Some(stage)) => Ok(Standing::Serving(stage)),
        (Ok(v1::Progress::Standby), None) => Ok(Standing::Standby),
        (Ok(v1::Progress::Feeding), None) => Ok(Standing::Feeding),
        _ => Err(unknown("progress", progress, "a known progress that fits the stage beside it")),
    }
}

fn unknown(field: &'static str, value: impl Into<i64>, allowed: &'static str) -> WireError {
    WireError::Range { field, value: value.into().to_string(), allowed }
}

fn length(field: &'static str, bytes: &[u8]) -> WireError {
    WireError::Range { field, value: format!("{} bytes long", bytes.len()), allowed: "32 bytes long" }
}
