//! Conversion between the types of the wire contract and of the scheduler. Only `net` and `coordinator` know both.
//!
//! Decoding checks the rules of the contract; a [`WireError`] names the field that breaks a rule.

mod averaging;
mod membership;
mod message;
mod prediction;
mod progress;
mod ranges;
mod recovery;
mod transfer;

use std::net::SocketAddr;

use swarmline_proto::v1;
use swarmline_scheduler::{Hop, Incarnation, Instance, Loss, PeerId, Role, StageIndex};

use super::digest::ManifestDigest;

pub use membership::{decode_change, decode_membership, encode_change, encode_member, encode_membership};
pub(super) use message::{decode_message, encode_message};
pub use progress::{decode_blocks, decode_run, encode_block, encode_run};

/// Limit of a line of text in a message, bytes; the rest of a longer line is cut off.
pub const DETAIL_BYTES_MAX: usize = 512;

/// Reasons why a received message breaks the contract.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes are not protobuf, or not this message.
    #[error("not a {message} message: {detail}")]
    Protobuf {
        /// Name of the expected message.
        message: &'static str,
        /// The decoder's error.
        detail: String,
    },
    /// A required field is missing.
    #[error("{field} is missing")]
    Missing {
        /// Name of the field.
        field: &'static str,
    },
    /// A field is outside its documented range.
    #[error("{field} is {value}, which is not {allowed}")]
    Range {
        /// Name of the field.
        field: &'static str,
        /// Value of the field.
        value: String,
        /// Documented range of the field.
        allowed: &'static str,
    },
}

/// A role as the number in a message, and the only stage of a keeper.
#[must_use]
pub fn encode_role(role: Role) -> (i32, Option<u32>) {
    match role {
        Role::Feeder => (v1::Role::Feeder.into(), None),
        Role::Successor => (v1::Role::Successor.into(), None),
        Role::Replica => (v1::Role::Replica.into(), None),
        Role::Keeper(stage) => (v1::Role::Keeper.into(), stage.map(|stage| stage.0.into())),
        Role::Reader => (v1::Role::Reader.into(), None),
    }
}

/// The role behind the number in a message, with the only stage of a keeper.
///
/// # Errors
/// For an unknown number or an impossible stage.
pub fn decode_role(role: i32, keeps: Option<u32>) -> Result<Role, WireError> {
    match v1::Role::try_from(role) {
        Ok(v1::Role::Feeder) => Ok(Role::Feeder),
        Ok(v1::Role::Successor) => Ok(Role::Successor),
        Ok(v1::Role::Replica) => Ok(Role::Replica),
        Ok(v1::Role::Keeper) => Ok(Role::Keeper(keeps.map(decode_stage).transpose()?)),
        Ok(v1::Role::Reader) => Ok(Role::Reader),
        Ok(v1::Role::Unspecified) | Err(_) => Err(out_of_range("role", role, "a known role")),
    }
}

/// A loss as a message.
#[must_use]
pub fn encode_loss(loss: Loss) -> v1::Loss {
    v1::Loss { sum: loss.sum, tokens: loss.tokens }
}

/// The loss in a message. Its sum may be any number, NaN included: the receiver checks it.
#[must_use]
pub fn decode_loss(loss: &v1::Loss) -> Loss {
    Loss { sum: loss.sum, tokens: loss.tokens }
}

/// The peer with this key.
///
/// # Errors
/// If the key is not 32 bytes long.
pub fn decode_peer(bytes: &[u8]) -> Result<PeerId, WireError> {
    bytes.try_into().map(PeerId).map_err(|_| length("the key of a peer", bytes))
}

/// The manifest digest in these bytes.
///
/// # Errors
/// If the digest is not 32 bytes long.
pub fn decode_digest(bytes: &[u8]) -> Result<ManifestDigest, WireError> {
    bytes.try_into().map(ManifestDigest).map_err(|_| length("the manifest digest", bytes))
}

/// The stage with this number.
///
/// # Errors
/// If the number is above 65535.
pub fn decode_stage(stage: u32) -> Result<StageIndex, WireError> {
    u16::try_from(stage).map(StageIndex).map_err(|_| out_of_range("stage", stage, "a number up to 65535"))
}

/// The address of a data plane.
///
/// # Errors
/// If the address is not `IP:PORT`, or the port is 0.
pub fn decode_address(address: &str) -> Result<SocketAddr, WireError> {
    let parsed: Option<SocketAddr> = address.parse().ok();
    parsed.filter(|address| address.port() != 0).ok_or_else(|| WireError::Range {
        field: "the data-plane address",
        value: format!("{:?}", single_line(address)),
        allowed: "IP:PORT with a port other than 0",
    })
}

/// `text` as one line of at most [`DETAIL_BYTES_MAX`] bytes, safe to send and to log. Remote text passes here too, so
/// that no peer can write lines into the log of another peer.
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

fn encode_hop(hop: &Hop) -> v1::Hop {
    v1::Hop {
        stage: hop.stage.map(|stage| u32::from(stage.0)),
        peer: hop.instance.peer.0.to_vec(),
        incarnation: hop.instance.incarnation.0,
    }
}

fn decode_hop(hop: &v1::Hop) -> Result<Hop, WireError> {
    let instance = Instance::new(decode_peer(&hop.peer)?, Incarnation(hop.incarnation));
    Ok(Hop { stage: hop.stage.map(decode_stage).transpose()?, instance })
}

fn decode_hops(hops: &[v1::Hop]) -> Result<Vec<Hop>, WireError> {
    hops.iter().map(decode_hop).collect()
}

fn require_hop(hop: Option<&v1::Hop>, field: &'static str) -> Result<Hop, WireError> {
    decode_hop(hop.ok_or(WireError::Missing { field })?)
}

fn require_loss(loss: Option<v1::Loss>) -> Result<Loss, WireError> {
    loss.as_ref().map(decode_loss).ok_or(WireError::Missing { field: "the loss" })
}

fn out_of_range(field: &'static str, value: impl Into<i64>, allowed: &'static str) -> WireError {
    WireError::Range { field, value: value.into().to_string(), allowed }
}

/// Checks the number of elements of a list.
fn check_count<T>(
    list: &[T],
    limit: usize,
    field: &'static str,
    allowed: &'static str,
) -> Result<(), WireError> {
    if list.len() > limit { Err(out_of_range(field, list.len() as i64, allowed)) } else { Ok(()) }
}

/// Checks that the keys of a list are strictly ascending.
fn check_ascending<T, K: Ord + std::fmt::Display>(
    list: &[T],
    key: impl Fn(&T) -> K,
    field: &'static str,
) -> Result<(), WireError> {
    let pair = list.windows(2).find(|pair| key(&pair[0]) >= key(&pair[1]));
    pair.map_or(Ok(()), |pair| {
        let value = key(&pair[1]).to_string();
        Err(WireError::Range { field, value, allowed: "greater than the one before it" })
    })
}

fn length(field: &'static str, bytes: &[u8]) -> WireError {
    WireError::Range { field, value: format!("{} bytes long", bytes.len()), allowed: "32 bytes long" }
}
