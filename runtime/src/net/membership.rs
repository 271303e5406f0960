//! The membership table, signed by its coordinator, so that peers can trust a table from any sender.

use ed25519_dalek::{Signature, VerifyingKey};
use prost::Message as _;
use swarmline_proto::v1;
use swarmline_scheduler::{Membership, PeerId};

use super::digest::ManifestDigest;
use super::identity::Identity;
use super::wire::{self, WireError};

/// Prefix of the signed bytes: a signature over a table is not valid for other kinds of bytes.
const DOMAIN: &[u8; 24] = b"swarmline/v1/membership\0";

/// Reasons to ignore a membership table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// The coordinator's id is not a public key.
    #[error("{0} is not an ed25519 public key; check the invite")]
    Key(PeerId),
    /// The signature is not the coordinator's over these bytes for this run.
    #[error("a membership table that coordinator {0:?} did not sign for this run; it is ignored")]
    Signature(PeerId),
    /// The signed bytes are not a membership table.
    #[error(
        "coordinator {coordinator:?} signed a malformed membership table: {source}; run the same release"
    )]
    Content {
        /// The coordinator that signed it.
        coordinator: PeerId,
        /// The first defect found.
        source: WireError,
    },
}

/// Signs `membership` for the run with this manifest.
#[must_use]
pub fn sign(identity: &Identity, run: &ManifestDigest, membership: &Membership) -> v1::SignedMembership {
    let bytes = wire::encode_membership(membership).encode_to_vec();
    let signature = identity.sign(&signed_text(run, &bytes)).to_vec();
    v1::SignedMembership { membership: bytes, signature }
}

/// The table in `signed`, if `coordinator` signed it for the run with this manifest. Older tables verify too: the
/// caller compares versions.
///
/// # Errors
/// If the signature or the content is wrong.
pub fn verify(
    coordinator: &PeerId,
    run: &ManifestDigest,
    signed: &v1::SignedMembership,
) -> Result<Membership, MembershipError> {
    let key = VerifyingKey::from_bytes(&coordinator.0).map_err(|_| MembershipError::Key(*coordinator))?;
    let signature =
        Signature::from_slice(&signed.signature).map_err(|_| MembershipError::Signature(*coordinator))?;
    key.verify_strict(&signed_text(run, &signed.membership), &signature)
        .map_err(|_| MembershipError::Signature(*coordinator))?;
    decode(&signed.membership)
        .map_err(|source| MembershipError::Content { coordinator: *coordinator, source })
}

fn decode(bytes: &[u8]) -> Result<Membership, WireError> {
    let membership = v1::Membership::decode(bytes)
        .map_err(|error| WireError::Protobuf { message: "Membership", detail: error.to_string() })?;
    wire::decode_membership(&membership)
}

fn signed_text(run: &ManifestDigest, membership: &[u8]) -> Vec<u8> {
    [DOMAIN.as_slice(), &run.0, membership].concat()
}

#[cfg(test)]
mod tests {
    use swarmline_scheduler::{
        Incarnation, Instance, Lease, LeasedRange, Member, MemberState, MicrobatchId, StageIndex,
    };

    use super::*;

    const RUN: ManifestDigest = ManifestDigest([7; 32]);

    fn table(order: [u8; 2]) -> Membership {
        let states = [MemberState::Serving(StageIndex(3)), MemberState::Standby];
        let member = |(byte, state): (u8, MemberState)| Member {
            instance: Instance::new(PeerId([byte; 32]), Incarnation(9)),
            state,
            address: "[::1]:7000".parse().unwrap(),
        };
        let lease = Lease { first: MicrobatchId(64), count: 32, epoch: 1 };
        let leases = vec![LeasedRange::new(lease, PeerId([order[0]; 32]))];
        Membership {
            launch: 9,
            version: 4,
            members: order.into_iter().zip(states).map(member).collect(),
            leases,
            trained: vec![StageIndex(3)],
            awaited: vec![StageIndex(0)],
        }
    }

    #[test]
    fn a_signed_table_verifies_and_nothing_else_does() {
        let coordinator = Identity::from_seed([1; 32]);
        let other = Identity::from_seed([2; 32]);
        let signed = sign(&coordinator, &RUN, &table([1, 2]));
        assert_eq!(verify(&coordinator.peer(), &RUN, &signed), Ok(table([1, 2])));

        let refused = Err(MembershipError::Signature(coordinator.peer()));
        assert_eq!(verify(&coordinator.peer(), &ManifestDigest([8; 32]), &signed), refused);
        assert_eq!(verify(&coordinator.peer(), &RUN, &sign(&other, &RUN, &table([1, 2]))), refused);
        let mut changed = signed.clone();
        changed.membership[1] ^= 1;
        assert_eq!(verify(&coordinator.peer(), &RUN, &changed), refused);
        let mut short = signed;
        short.signature.truncate(10);
        assert_eq!(verify(&coordinator.peer(), &RUN, &short), refused);
    }

    #[test]
    fn a_signed_table_out_of_order_is_refused() {
        let coordinator = Identity::from_seed([1; 32]);
        for order in [[2, 1], [1, 1]] {
            let signed = sign(&coordinator, &RUN, &table(order));
            let error = verify(&coordinator.peer(), &RUN, &signed).unwrap_err();
            assert!(matches!(error, MembershipError::Content { .. }), "{error}");
        }
    }
}
