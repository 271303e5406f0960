//! The messages between feeders and replicas, without their payloads.

use swarmline_proto::v1;
use swarmline_proto::v1::frame::Message as Wire;
use swarmline_scheduler::averaging::{GROUP_MAX, Round};
use swarmline_scheduler::{
    Attempt, CLAIM_MAX, Duration, Heartbeat, Message, MicrobatchId, PeerId, Purpose, Refusal, RouteKey,
    RouteProof, Status, WeightVersion,
};

use super::ranges::{decode_ranges, encode_range};
use super::{
    WireError, averaging, check_count, decode_hop, decode_hops, decode_peer, decode_stage, encode_hop,
    encode_loss, out_of_range, prediction, recovery, require_hop, require_loss, single_line, transfer,
};

/// A message as part of the header of a frame.
pub(in crate::net) fn encode_message(message: &Message) -> Wire {
    match message {
        Message::Forward {
            microbatch,
            attempt,
            purpose,
            is_retry,
            route,
            key,
            downstream_holder,
            version,
        } => Wire::Forward(v1::Forward {
            microbatch: microbatch.0,
            attempt: attempt.0,
            purpose: encode_purpose(*purpose).into(),
            is_retry: *is_retry,
            route: route.iter().map(encode_hop).collect(),
            downstream_holder: downstream_holder.as_ref().map(encode_hop),
            weight_version: version.0,
            key: key.0.to_vec(),
        }),
        Message::Backward { microbatch, attempt, loss, path } => Wire::Backward(v1::Backward {
            microbatch: microbatch.0,
            attempt: attempt.0,
            loss: Some(encode_loss(*loss)),
            path: path.iter().map(encode_hop).collect(),
        }),
        Message::Evaluated { proof, attempt, loss } => Wire::Evaluated(v1::Evaluated {
            proof: Some(encode_proof(proof)),
            attempt: attempt.0,
            loss: Some(encode_loss(*loss)),
        }),
        Message::Refused { proof, by, reason } => {
            let (cause, detail) = encode_refusal(reason);
            let by = Some(encode_hop(by));
            let proof = Some(encode_proof(proof));
            Wire::Refused(v1::Refused { proof, by, cause: cause.into(), detail })
        }
        Message::StatusRequest { microbatch, attempt, route, key } => {
            Wire::StatusRequest(v1::StatusRequest {
                microbatch: microbatch.0,
                attempt: attempt.0,
                route: route.iter().map(encode_hop).collect(),
                key: key.0.to_vec(),
            })
        }
        Message::StatusReply { microbatch, attempt, status } => {
            let status = encode_status(*status).into();
            Wire::StatusReply(v1::StatusReply { microbatch: microbatch.0, attempt: attempt.0, status })
        }
        Message::Forwarded { microbatch, attempt, next } => {
            let next = Some(encode_hop(next));
            Wire::Forwarded(v1::Forwarded { microbatch: microbatch.0, attempt: attempt.0, next })
        }
        Message::OrphanNotice { microbatch, holder } => {
            let holder = Some(encode_hop(holder));
            Wire::OrphanNotice(v1::OrphanNotice { microbatch: microbatch.0, holder })
        }
        Message::Claim { stage, claimed, forfeited } => Wire::Claim(v1::Claim {
            stage: stage.0.into(),
            claimed: claimed.iter().map(encode_proof).collect(),
            forfeited: encode_ids(forfeited),
        }),
        Message::ClaimReply { granted, denied, forged } => Wire::ClaimReply(v1::ClaimReply {
            granted: encode_ids(granted),
            denied: encode_ids(denied),
            forged: encode_ids(forged),
        }),
        Message::Outcomes { ranges } => {
            Wire::Outcomes(v1::Outcomes { ranges: ranges.iter().map(encode_range).collect() })
        }
        Message::Heartbeat(heartbeat) => Wire::Heartbeat(encode_heartbeat(heartbeat)),
        Message::RoundCall { round, is_closing, weights } => {
            let weight = |(peer, grants): &(PeerId, u64)| v1::ConfirmedWeight {
                peer: peer.0.to_vec(),
                grants: *grants,
            };
            let weights = weights.iter().map(weight).collect();
            Wire::RoundCall(v1::RoundCall { round: round.0, is_closing: *is_closing, weights })
        }
        Message::RoundReport { round, carried, is_complete } => {
            let (round, carried) = (round.0, carried.map(|round| round.0));
            Wire::RoundReport(v1::RoundReport { round, carried, is_complete: *is_complete })
        }
        Message::RecoverRange { first, epoch, from } => {
            Wire::RecoverRange(v1::RecoverRange { first: first.0, epoch: *epoch, from: from.0 })
        }
        Message::RecoveryReport(report) => Wire::RecoveryReport(recovery::encode(report)),
        Message::Averaging(message) => averaging::encode(message),
        Message::Transfer(message) => transfer::encode(message),
        Message::Prediction(message) => prediction::encode(message),
    }
}

/// The message in the header of a frame.
pub(in crate::net) fn decode_message(message: Wire) -> Result<Message, WireError> {
    Ok(match message {
        Wire::Forward(forward) => decode_forward(&forward)?,
        Wire::Backward(backward) => Message::Backward {
            microbatch: MicrobatchId(backward.microbatch),
            attempt: Attempt(backward.attempt),
            loss: require_loss(backward.loss)?,
            path: decode_hops(&backward.path)?,
        },
        Wire::Evaluated(evaluated) => Message::Evaluated {
            proof: require_proof(evaluated.proof.as_ref())?,
            attempt: Attempt(evaluated.attempt),
            loss: require_loss(evaluated.loss)?,
        },
        Wire::Refused(refused) => decode_refused(&refused)?,
        Wire::StatusRequest(request) => decode_status_request(&request)?,
        Wire::StatusReply(reply) => Message::StatusReply {
            microbatch: MicrobatchId(reply.microbatch),
            attempt: Attempt(reply.attempt),
            status: decode_status(reply.status)?,
        },
        Wire::Forwarded(forwarded) => Message::Forwarded {
            microbatch: MicrobatchId(forwarded.microbatch),
            attempt: Attempt(forwarded.attempt),
            next: require_hop(forwarded.next.as_ref(), "the next hop")?,
        },
        Wire::OrphanNotice(notice) => Message::OrphanNotice {
            microbatch: MicrobatchId(notice.microbatch),
            holder: require_hop(notice.holder.as_ref(), "the holder")?,
        },
        Wire::Claim(claim) => Message::Claim {
            stage: decode_stage(claim.stage)?,
            claimed: decode_proofs(&claim.claimed)?,
            forfeited: decode_ids(&claim.forfeited)?,
        },
        Wire::ClaimReply(reply) => Message::ClaimReply {
            granted: decode_ids(&reply.granted)?,
            denied: decode_ids(&reply.denied)?,
            forged: decode_ids(&reply.forged)?,
        },
        Wire::Outcomes(outcomes) => Message::Outcomes { ranges: decode_ranges(outcomes.ranges)? },
        Wire::Heartbeat(heartbeat) => Message::Heartbeat(decode_heartbeat(&heartbeat)),
        Wire::RoundCall(call) => Message::RoundCall {
            round: Round(call.round),
            is_closing: call.is_closing,
            weights: decode_weights(&call.weights)?,
        },
        Wire::RoundReport(report) => {
            let v1::RoundReport { round, carried, is_complete } = report;
            Message::RoundReport { round: Round(round), carried: carried.map(Round), is_complete }
        }
        Wire::RecoverRange(request) => Message::RecoverRange {
            first: MicrobatchId(request.first),
            epoch: request.epoch,
            from: MicrobatchId(request.from),
        },
        Wire::RecoveryReport(report) => Message::RecoveryReport(recovery::decode(report)?),
        Wire::Contribution(_)
        | Wire::Promise(_)
        | Wire::Accept(_)
        | Wire::Accepted(_)
        | Wire::EmptyPart(_)
        | Wire::NotAMember(_)
        | Wire::CopyUnderWay(_) => Message::Averaging(averaging::decode(&message)?),
        Wire::StateRequest(_)
        | Wire::StateOffer(_)
        | Wire::SketchRequest(_)
        | Wire::Sketch(_)
        | Wire::ChunkRequest(_)
        | Wire::Chunk(_)
        | Wire::StateDeclined(_)
        | Wire::CopyAt(_)
        | Wire::CopyDeclined(_)
        | Wire::StateDone(_) => Message::Transfer(transfer::decode(&message)?),
        Wire::PredictionRequest(_) | Wire::PredictionReply(_) | Wire::PredictionDeclined(_) => {
            Message::Prediction(prediction::decode(&message)?)
        }
    })
}

fn decode_forward(forward: &v1::Forward) -> Result<Message, WireError> {
    Ok(Message::Forward {
        microbatch: MicrobatchId(forward.microbatch),
        attempt: Attempt(forward.attempt),
        purpose: decode_purpose(forward.purpose)?,
        is_retry: forward.is_retry,
        route: decode_hops(&forward.route)?,
        key: decode_key(&forward.key)?,
        downstream_holder: forward.downstream_holder.as_ref().map(decode_hop).transpose()?,
        version: WeightVersion(forward.weight_version),
    })
}

fn decode_refused(refused: &v1::Refused) -> Result<Message, WireError> {
    Ok(Message::Refused {
        proof: require_proof(refused.proof.as_ref())?,
        by: require_hop(refused.by.as_ref(), "the replica that refuses")?,
        reason: decode_refusal(refused.cause, &refused.detail)?,
    })
}

fn decode_status_request(request: &v1::StatusRequest) -> Result<Message, WireError> {
    Ok(Message::StatusRequest {
        microbatch: MicrobatchId(request.microbatch),
        attempt: Attempt(request.attempt),
        route: decode_hops(&request.route)?,
        key: decode_key(&request.key)?,
    })
}

fn decode_weights(weights: &[v1::ConfirmedWeight]) -> Result<Vec<(PeerId, u64)>, WireError> {
    check_count(weights, GROUP_MAX, "the number of weights", "up to 16")?;
    weights.iter().map(|weight| Ok((decode_peer(&weight.peer)?, weight.grants))).collect()
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
        Ok(v1::Purpose::Unspecified) | Err(_) => Err(out_of_range("purpose", purpose, "a known purpose")),
    }
}

fn encode_ids(ids: &[MicrobatchId]) -> Vec<u64> {
    ids.iter().map(|id| id.0).collect()
}

fn decode_ids(ids: &[u64]) -> Result<Vec<MicrobatchId>, WireError> {
    check_count(ids, CLAIM_MAX, "the number of microbatches", "at most 1024")?;
    Ok(ids.iter().copied().map(MicrobatchId).collect())
}

fn encode_proof(proof: &RouteProof) -> v1::RouteProof {
    v1::RouteProof {
        microbatch: proof.microbatch.0,
        route: proof.route.iter().map(encode_hop).collect(),
        key: proof.key.0.to_vec(),
    }
}

fn decode_proofs(proofs: &[v1::RouteProof]) -> Result<Vec<RouteProof>, WireError> {
    check_count(proofs, CLAIM_MAX, "the number of claims", "at most 1024")?;
    proofs.iter().map(decode_proof).collect()
}

fn require_proof(proof: Option<&v1::RouteProof>) -> Result<RouteProof, WireError> {
    decode_proof(proof.ok_or(WireError::Missing { field: "the proof of the route" })?)
}

fn decode_proof(proof: &v1::RouteProof) -> Result<RouteProof, WireError> {
    let (route, key) = (decode_hops(&proof.route)?, decode_key(&proof.key)?);
    Ok(RouteProof { microbatch: MicrobatchId(proof.microbatch), route, key })
}

fn decode_key(key: &[u8]) -> Result<RouteKey, WireError> {
    let value = || format!("{} bytes long", key.len());
    let wrong = || WireError::Range { field: "the key of a route", value: value(), allowed: "16 bytes long" };
    key.try_into().map(RouteKey).map_err(|_| wrong())
}

fn encode_status(status: Status) -> v1::status_reply::Status {
    match status {
        Status::Held => v1::status_reply::Status::Held,
        Status::Missing => v1::status_reply::Status::Missing,
        Status::Busy => v1::status_reply::Status::Busy,
        Status::GivenBack => v1::status_reply::Status::GivenBack,
    }
}

fn decode_status(status: i32) -> Result<Status, WireError> {
    use v1::status_reply::Status as Wire;
    match Wire::try_from(status) {
        Ok(Wire::Held) => Ok(Status::Held),
        Ok(Wire::Missing) => Ok(Status::Missing),
        Ok(Wire::Busy) => Ok(Status::Busy),
        Ok(Wire::GivenBack) => Ok(Status::GivenBack),
        Ok(Wire::Unspecified) | Err(_) => Err(out_of_range("status", status, "a known status")),
    }
}

fn encode_heartbeat(heartbeat: &Heartbeat) -> v1::Heartbeat {
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    v1::Heartbeat {
        counter: heartbeat.counter,
        queued: heartbeat.queued,
        oldest_us: micros(heartbeat.oldest),
        service_us: heartbeat.service.map(micros),
        credit: heartbeat.credit,
    }
}

fn decode_heartbeat(heartbeat: &v1::Heartbeat) -> Heartbeat {
    Heartbeat {
        counter: heartbeat.counter,
        queued: heartbeat.queued,
        oldest: Duration::from_micros(heartbeat.oldest_us),
        service: heartbeat.service_us.map(Duration::from_micros),
        credit: heartbeat.credit,
    }
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
        Ok(Cause::Unspecified) | Err(_) => Err(out_of_range("cause", cause, "a known cause")),
    }
}
