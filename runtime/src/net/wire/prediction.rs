//! Messages between a reader and a replica.

use swarmline_proto::v1;
use swarmline_proto::v1::frame::Message as Wire;
use swarmline_proto::v1::prediction_declined::Cause;
use swarmline_scheduler::prediction::{Decline, Pass, PredictionMessage};

use super::{WireError, decode_stage, out_of_range, single_line};

pub(super) fn encode(message: &PredictionMessage) -> Wire {
    match message {
        PredictionMessage::Request(pass) => {
            Wire::PredictionRequest(v1::PredictionRequest { pass: Some(encode_pass(*pass)) })
        }
        PredictionMessage::Reply(pass) => {
            Wire::PredictionReply(v1::PredictionReply { pass: Some(encode_pass(*pass)) })
        }
        PredictionMessage::Declined { pass, reason } => {
            let (cause, detail) = match reason {
                Decline::Busy => (Cause::Busy, String::new()),
                Decline::NotAReader => (Cause::NotAReader, String::new()),
                Decline::Failed(fault) => (Cause::Failed, single_line(fault)),
            };
            let pass = Some(encode_pass(*pass));
            Wire::PredictionDeclined(v1::PredictionDeclined { pass, cause: cause.into(), detail })
        }
    }
}

pub(super) fn decode(message: &Wire) -> Result<PredictionMessage, WireError> {
    Ok(match message {
        Wire::PredictionRequest(request) => PredictionMessage::Request(decode_pass(request.pass)?),
        Wire::PredictionReply(reply) => PredictionMessage::Reply(decode_pass(reply.pass)?),
        Wire::PredictionDeclined(declined) => {
            let reason = match declined.cause() {
                Cause::Busy => Decline::Busy,
                Cause::NotAReader => Decline::NotAReader,
                Cause::Failed => Decline::Failed(single_line(&declined.detail)),
                Cause::Unspecified => return Err(out_of_range("cause", declined.cause, "a known cause")),
            };
            PredictionMessage::Declined { pass: decode_pass(declined.pass)?, reason }
        }
        _ => return Err(WireError::Missing { field: "the message of a prediction" }),
    })
}

fn encode_pass(pass: Pass) -> v1::PredictionPass {
    v1::PredictionPass { number: pass.number, stage: pass.stage.0.into(), position: pass.position }
}

fn decode_pass(pass: Option<v1::PredictionPass>) -> Result<Pass, WireError> {
    let pass = pass.ok_or(WireError::Missing { field: "the pass of a prediction" })?;
    Ok(Pass { number: pass.number, stage: decode_stage(pass.stage)?, position: pass.position })
}
