//! The membership table, signed by its coordinator, so that peers can trust a table from any sender.
//!
//! The signature is on the digest of the table. A change carries the signature of the table that it makes: a member that
//! follows the changes checks each of them, and can show the whole table to others.

use std::sync::Arc;

use ed25519_dalek::{Signature, VerifyingKey};
use swarmline_proto::v1;
use swarmline_scheduler::{Membership, PeerId, Table, TableChange};

use super::digest::ManifestDigest;
use super::identity::Identity;
use super::table_digest::{MembersDigest, table_digest};
use super::wire::{self, WireError};

/// Prefix of the signed bytes: a signature over a table is not valid for other kinds of bytes.
const DOMAIN: &[u8; 24] = b"swarmline/v1/membership\0";

/// Reasons to ignore a membership table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// The coordinator's id is not a public key.
    #[error("{0} is not an ed25519 public key; check the invite")]
    Key(PeerId),
    /// The signature is not the coordinator's on this table for this run.
    #[error("a membership table that coordinator {0:?} did not sign for this run; it is ignored")]
    Signature(PeerId),
    /// The change is of another table than the one that it was applied to.
    #[error("a change of membership table {base}, but the newest here is {known}; it is ignored")]
    Base {
        /// Version of the table that the change applies to.
        base: u64,
        /// Version of the newest table.
        known: u64,
    },
    /// The message is not a membership table.
    #[error("coordinator {coordinator:?} sent a malformed membership table: {source}; run the same release")]
    Content {
        /// The coordinator that sent it.
        coordinator: PeerId,
        /// The first defect found.
        source: WireError,
    },
}

/// The coordinator's key, and the run that its tables are for.
#[derive(Clone, Copy, Debug)]
pub struct Signer<'a> {
    /// The coordinator's key.
    pub coordinator: &'a PeerId,
    /// Digest of the run manifest.
    pub run: &'a ManifestDigest,
}

impl Signer<'_> {
    fn malformed(self, source: WireError) -> MembershipError {
        MembershipError::Content { coordinator: *self.coordinator, source }
    }
}

/// A whole table with the coordinator's signature.
#[derive(Clone, Debug)]
pub struct SignedTable {
    table: Table,
    digest: MembersDigest,
    signature: Vec<u8>,
}

/// A change of a table, with the signature on the table that it makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedChange {
    /// The change.
    pub change: Arc<TableChange>,
    signature: Vec<u8>,
}

impl SignedTable {
    /// Signs `table` for the run with this manifest.
    #[must_use]
    pub fn sign(identity: &Identity, run: &ManifestDigest, table: Membership) -> Self {
        let mut signed = Self::unsigned(table);
        signed.renew_signature(identity, run);
        signed
    }

    /// The table in `message`, if the coordinator signed it. Older tables verify too: the caller compares versions.
    ///
    /// # Errors
    /// If the signature or the content is wrong.
    pub fn verify(signer: Signer<'_>, message: &v1::SignedMembership) -> Result<Self, MembershipError> {
        if message.signature.len() != Signature::BYTE_SIZE {
            return Err(MembershipError::Signature(*signer.coordinator));
        }
        let membership = message.membership.as_ref().map(wire::decode_membership).transpose();
        let mut table =
            Self::unsigned(membership.map_err(|source| signer.malformed(source))?.unwrap_or_default());
        table.signature.clone_from(&message.signature);
        table.check(signer)?;
        Ok(table)
    }

    /// Changes the table and signs it again.
    ///
    /// # Errors
    /// If it is a change of another table.
    pub fn change(
        &mut self,
        identity: &Identity,
        run: &ManifestDigest,
        change: TableChange,
    ) -> Result<SignedChange, MembershipError> {
        self.apply(&change)?;
        self.renew_signature(identity, run);
        Ok(SignedChange { change: Arc::new(change), signature: self.signature.clone() })
    }

    /// Follows a change that the coordinator has signed. After an error about the signature this is the empty table, with
    /// version 0.
    ///
    /// # Errors
    /// If it is a change of another table, or its signature or its content is wrong.
    pub fn follow(
        &mut self,
        signer: Signer<'_>,
        message: v1::SignedChange,
    ) -> Result<SignedChange, MembershipError> {
        let change = message.change.unwrap_or_default();
        let change = wire::decode_change(&change).map_err(|source| signer.malformed(source))?;
        self.apply(&change)?;
        self.signature = message.signature;
        if let Err(error) = self.check(signer) {
            *self = Self::unsigned(Membership::default());
            return Err(error);
        }
        Ok(SignedChange { change: Arc::new(change), signature: self.signature.clone() })
    }

    /// Its version; 0 for the empty table.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.table.rest().version
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The table as a message.
    #[must_use]
    pub fn to_message(&self) -> v1::SignedMembership {
        let membership = Some(wire::encode_membership(&self.table.membership()));
        v1::SignedMembership { membership, signature: self.signature.clone() }
    }

    fn unsigned(table: Membership) -> Self {
        let table = Table::from(table);
        Self { digest: MembersDigest::of(table.members()), table, signature: Vec::new() }
    }

    fn apply(&mut self, change: &TableChange) -> Result<(), MembershipError> {
        let known = self.version();
        if !self.table.apply(change) {
            return Err(MembershipError::Base { base: change.base, known });
        }
        let changed = change.now.members.iter().map(|member| &member.instance.peer);
        self.digest.follow(self.table.members(), change.removed.iter().chain(changed));
        Ok(())
    }

    fn renew_signature(&mut self, identity: &Identity, run: &ManifestDigest) {
        self.signature = identity.sign(&self.signed_text(run)).to_vec();
    }

    fn check(&self, signer: Signer<'_>) -> Result<(), MembershipError> {
        let Signer { coordinator, run } = signer;
        let key = VerifyingKey::from_bytes(&coordinator.0).map_err(|_| MembershipError::Key(*coordinator))?;
        let signature =
            Signature::from_slice(&self.signature).map_err(|_| MembershipError::Signature(*coordinator))?;
        key.verify_strict(&self.signed_text(run), &signature)
            .map_err(|_| MembershipError::Signature(*coordinator))
    }

    fn signed_text(&self, run: &ManifestDigest) -> Vec<u8> {
        [DOMAIN.as_slice(), &run.0, &table_digest(&self.digest, self.table.rest())].concat()
    }
}

impl SignedChange {
    /// The change as a message.
    #[must_use]
    pub fn to_message(&self) -> v1::SignedChange {
        v1::SignedChange {
            change: Some(wire::encode_change(&self.change)),
            signature: self.signature.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use swarmline_scheduler::{
        Incarnation, Instance, Lease, LeasedRange, Member, MemberState, MicrobatchId, Origin, StageIndex,
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
            restorable: vec![StageIndex(3)],
            origin: Some(Origin { launch: 8, microbatches: 480 }),
        }
    }

    fn signed(by: &Identity, table: Membership) -> v1::SignedMembership {
        SignedTable::sign(by, &RUN, table).to_message()
    }

    fn verify(message: &v1::SignedMembership, run: &ManifestDigest) -> Result<Membership, MembershipError> {
        let coordinator = Identity::from_seed([1; 32]).peer();
        SignedTable::verify(Signer { coordinator: &coordinator, run }, message)
            .map(|signed| signed.table().membership())
    }

    #[test]
    fn a_signed_table_verifies_and_nothing_else_does() {
        let coordinator = Identity::from_seed([1; 32]);
        let good = signed(&coordinator, table([1, 2]));
        assert_eq!(verify(&good, &RUN), Ok(table([1, 2])));

        let refused = Err(MembershipError::Signature(coordinator.peer()));
        assert_eq!(verify(&good, &ManifestDigest([8; 32])), refused);
        assert_eq!(verify(&signed(&Identity::from_seed([2; 32]), table([1, 2])), &RUN), refused);
        for change in [
            |table: &mut v1::Membership| table.version += 1,
            |table: &mut v1::Membership| table.members[1].incarnation += 1,
            |table: &mut v1::Membership| drop(table.members.pop()),
            |table: &mut v1::Membership| table.trained.clear(),
        ] {
            let mut changed = good.clone();
            change(changed.membership.as_mut().unwrap());
            assert_eq!(verify(&changed, &RUN), refused);
        }
        let mut short = good;
        short.signature.truncate(10);
        assert_eq!(verify(&short, &RUN), refused);
    }

    #[test]
    fn a_signed_table_out_of_order_is_refused() {
        let good = signed(&Identity::from_seed([1; 32]), table([1, 2]));
        for order in [[2, 1], [1, 1]] {
            let membership = Some(wire::encode_membership(&table(order)));
            let error = verify(&v1::SignedMembership { membership, ..good.clone() }, &RUN).unwrap_err();
            assert!(matches!(error, MembershipError::Content { .. }), "{error}");
        }
    }

    #[test]
    fn a_member_that_follows_changes_can_show_the_table_and_a_forged_change_empties_it() {
        let coordinator = Identity::from_seed([1; 32]);
        let peer = coordinator.peer();
        let signer = Signer { coordinator: &peer, run: &RUN };
        let mut published = SignedTable::sign(&coordinator, &RUN, table([1, 2]));
        let mut followed = SignedTable::verify(signer, &published.to_message()).unwrap();
        for version in 5..9 {
            let now = Membership { version, ..table([1, u8::try_from(version).unwrap()]) };
            let change = published.table().change_to(&now.into());
            let message = published.change(&coordinator, &RUN, change).unwrap().to_message();
            followed.follow(signer, message.clone()).unwrap();
            assert_eq!(followed.to_message(), published.to_message());
            let twice = followed.follow(signer, message).unwrap_err();
            assert!(matches!(twice, MembershipError::Base { known, .. } if known == version), "{twice}");
        }
        assert!(SignedTable::verify(signer, &followed.to_message()).is_ok());
        let change = published.table().change_to(&Membership { version: 9, ..table([3, 4]) }.into());
        let forged = published.clone().change(&Identity::from_seed([2; 32]), &RUN, change).unwrap();
        let refused = followed.follow(signer, forged.to_message());
        assert_eq!(refused, Err(MembershipError::Signature(peer)));
        assert_eq!(followed.version(), 0, "the whole table is asked for");
    }
}
