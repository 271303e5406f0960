//! The membership table.

use swarmline_proto::v1;
use swarmline_scheduler::coordinator::MEMBERS_MAX;
use swarmline_scheduler::{
    BlockTally, Incarnation, Instance, LEASES_MAX, Lease, LeasedRange, Member, MemberState, Membership,
    MicrobatchId, Origin, StageIndex, TableChange,
};

use super::{
    WireError, check_ascending, check_count, decode_address, decode_peer, decode_stage, out_of_range,
};

/// The membership table as a message.
#[must_use]
pub fn encode_membership(membership: &Membership) -> v1::Membership {
    v1::Membership {
        launch: membership.launch,
        version: membership.version,
        members: membership.members.iter().map(encode_member).collect(),
        leases: membership.leases.iter().map(encode_lease).collect(),
        trained: encode_stages(&membership.trained),
        awaited: encode_stages(&membership.awaited),
        restorable: encode_stages(&membership.restorable),
        origin: membership.origin.map(encode_origin),
    }
}

/// The membership table in a message.
///
/// # Errors
/// If a member, a leased range or a stage breaks the contract, or members, ranges or stages are not strictly ascending.
pub fn decode_membership(membership: &v1::Membership) -> Result<Membership, WireError> {
    check_count(&membership.members, MEMBERS_MAX, "the number of members", "at most 16384")?;
    let members: Vec<Member> = membership.members.iter().map(decode_member).collect::<Result<_, _>>()?;
    check_ascending(&members, |member| member.instance.peer, "the peer of a member")?;
    let leases = decode_leases(&membership.leases)?;
    let trained = decode_stages(&membership.trained, "a trained stage")?;
    let awaited = decode_stages(&membership.awaited, "an awaited stage")?;
    let restorable = decode_stages(&membership.restorable, "a restorable stage")?;
    let (launch, version, origin) =
        (membership.launch, membership.version, membership.origin.as_ref().map(decode_origin));
    Ok(Membership { launch, version, members, leases, trained, awaited, restorable, origin })
}

/// The change of a table as a message.
#[must_use]
pub fn encode_change(change: &TableChange) -> v1::MembershipChange {
    let removed = change.removed.iter().map(|peer| peer.0.to_vec()).collect();
    v1::MembershipChange { base: change.base, removed, now: Some(encode_membership(&change.now)) }
}

/// The change of a table in a message.
///
/// # Errors
/// If a key or the later table breaks the contract.
pub fn decode_change(change: &v1::MembershipChange) -> Result<TableChange, WireError> {
    let removed = change.removed.iter().map(|peer| decode_peer(peer)).collect::<Result<_, _>>()?;
    let now = change.now.as_ref().map(decode_membership).transpose()?.unwrap_or_default();
    Ok(TableChange { base: change.base, removed, now })
}

/// A member as a message.
#[must_use]
pub fn encode_member(member: &Member) -> v1::Member {
    let (state, stage) = match member.state {
        MemberState::Loading(stage) => (v1::MemberState::Loading, Some(stage)),
        MemberState::Serving(stage) => (v1::MemberState::Serving, Some(stage)),
        MemberState::Standby => (v1::MemberState::Standby, None),
        MemberState::Feeding => (v1::MemberState::Feeding, None),
        MemberState::Keeping(stage) => (v1::MemberState::Keeping, stage),
        MemberState::Reading => (v1::MemberState::Reading, None),
    };
    v1::Member {
        peer: member.instance.peer.0.to_vec(),
        incarnation: member.instance.incarnation.0,
        state: state.into(),
        stage: stage.map(|stage| u32::from(stage.0)),
        address: member.address.to_string(),
    }
}

fn decode_member(member: &v1::Member) -> Result<Member, WireError> {
    Ok(Member {
        instance: Instance::new(decode_peer(&member.peer)?, Incarnation(member.incarnation)),
        state: decode_state(member.state, member.stage)?,
        address: decode_address(&member.address)?,
    })
}

fn decode_state(state: i32, stage: Option<u32>) -> Result<MemberState, WireError> {
    let stage = stage.map(decode_stage).transpose()?;
    match (v1::MemberState::try_from(state), stage) {
        (Ok(v1::MemberState::Loading), Some(stage)) => Ok(MemberState::Loading(stage)),
        (Ok(v1::MemberState::Serving), Some(stage)) => Ok(MemberState::Serving(stage)),
        (Ok(v1::MemberState::Standby), None) => Ok(MemberState::Standby),
        (Ok(v1::MemberState::Feeding), None) => Ok(MemberState::Feeding),
        (Ok(v1::MemberState::Keeping), stage) => Ok(MemberState::Keeping(stage)),
        (Ok(v1::MemberState::Reading), None) => Ok(MemberState::Reading),
        _ => Err(out_of_range("member state", state, "a known state that fits the stage beside it")),
    }
}

fn encode_lease(leased: &LeasedRange) -> v1::LeasedRange {
    let LeasedRange { lease, feeder, tally } = leased;
    v1::LeasedRange {
        first: lease.first.0,
        count: lease.count,
        epoch: lease.epoch,
        feeder: feeder.0.to_vec(),
        leased: tally.leased,
        injected: tally.injected,
        settled: tally.settled,
    }
}

fn decode_leases(leases: &[v1::LeasedRange]) -> Result<Vec<LeasedRange>, WireError> {
    check_count(leases, LEASES_MAX, "the number of leased ranges", "at most 4096")?;
    check_ascending(leases, |leased| leased.first, "the first id of a leased range")?;
    let decode = |one: &v1::LeasedRange| {
        let lease = Lease { first: MicrobatchId(one.first), count: one.count, epoch: one.epoch };
        let &v1::LeasedRange { leased, injected, settled, .. } = one;
        let tally = BlockTally { block: lease.first.block(), leased, injected, settled };
        Ok(LeasedRange { lease, feeder: decode_peer(&one.feeder)?, tally })
    };
    leases.iter().map(decode).collect()
}

fn encode_origin(origin: Origin) -> v1::Origin {
    v1::Origin { launch: origin.launch, microbatches: origin.microbatches }
}

fn decode_origin(origin: &v1::Origin) -> Origin {
    Origin { launch: origin.launch, microbatches: origin.microbatches }
}

fn encode_stages(stages: &[StageIndex]) -> Vec<u32> {
    stages.iter().map(|stage| stage.0.into()).collect()
}

fn decode_stages(stages: &[u32], field: &'static str) -> Result<Vec<StageIndex>, WireError> {
    check_ascending(stages, |&stage| stage, field)?;
    stages.iter().copied().map(decode_stage).collect()
}
