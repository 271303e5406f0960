//! A replica that makes no use of its place gives it to a standby.
//!
//! A replica that loads for too long, or serves and computes nothing while others of its stage do, would hold its place as
//! long as it sends heartbeats. It loses its place only if a standby waits for one, and a replica that serves only if
//! another serves its stage, so no weights are lost by it. It may join again, and stands by then.

use std::collections::BTreeMap;

use super::{Action, Coordinator};
use crate::stage::Progress;
use crate::{Duration, Instance, MemberState, PeerId, StageIndex, Time};

/// A replica that serves, and has had a microbatch wait for so long without finishing any, may be stalled.
pub const STALLED_AFTER: Duration = Duration::from_secs(30);
/// It is, if the others of its stage have finished so many microbatches meanwhile: a slow stage has no stalled replicas.
pub const OTHERS_FINISHED: u64 = 8;

/// Why a replica has lost its place to a standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Displacement {
    /// It has loaded the state of its stage for too long.
    Loading(Duration),
    /// It has finished nothing for so long, while others of its stage did.
    Stalled(Duration),
}

/// What the members with a place have done with it, as their heartbeats tell.
#[derive(Clone, Debug, Default)]
pub(super) struct Diligence {
    /// When each replica that loads was first heard to.
    loading: BTreeMap<PeerId, Time>,
    /// The progress of each replica that serves.
    serving: BTreeMap<PeerId, Served>,
    /// Microbatches that all replicas of a stage have finished.
    finished: BTreeMap<StageIndex, u64>,
}

#[derive(Clone, Copy, Debug)]
struct Served {
    done: u64,
    /// When it had done so much first.
    since: Time,
    /// Microbatches that its stage had finished then.
    finished: u64,
}

impl Diligence {
    /// How long the replica has loaded while another could give it the state.
    fn loads(&mut self, now: Time, peer: PeerId, has_donor: bool) -> Duration {
        self.serving.remove(&peer);
        let since = self.loading.entry(peer).or_insert(now);
        if !has_donor {
            *since = now;
        }
        now.since(*since)
    }

    /// How long the replica has finished nothing although microbatches wait, if others of its stage have; zero otherwise.
    fn serves(&mut self, now: Time, peer: PeerId, stage: StageIndex, progress: Progress) -> Duration {
        self.loading.remove(&peer);
        let finished = self.finished.entry(stage).or_default();
        let served = self.serving.entry(peer).or_insert(Served {
            done: progress.done,
            since: now,
            finished: *finished,
        });
        if progress.done != served.done {
            *finished = finished.saturating_add(progress.done.saturating_sub(served.done));
            *served = Served { done: progress.done, since: now, finished: *finished };
        }
        let others_went_on = *finished >= served.finished.saturating_add(OTHERS_FINISHED);
        let idle = now.since(served.since).min(progress.oldest);
        if progress.queued > 0 && others_went_on { idle } else { Duration::ZERO }
    }

    pub(super) fn retain(&mut self, is_member: impl Fn(PeerId) -> bool) {
        self.loading.retain(|&peer, _| is_member(peer));
        self.serving.retain(|&peer, _| is_member(peer));
    }
}

impl Coordinator {
    /// Gives the place of the sender of a heartbeat to a standby, if it makes no use of it; returns whether it does so.
    pub(super) fn displace(
        &mut self,
        now: Time,
        from: Instance,
        state: MemberState,
        progress: Progress,
    ) -> bool {
        let (peer, Some(stage)) = (from.peer, state.stage()) else { return false };
        let replicas = self.members.occupancy().serving(stage);
        let reason = if state == MemberState::Loading(stage) {
            let loads = self.diligence.loads(now, peer, replicas > 0);
            (loads >= self.config.loading_max).then_some(Displacement::Loading(loads))
        } else {
            let idle = self.diligence.serves(now, peer, stage, progress);
            (idle >= STALLED_AFTER && replicas > 1).then_some(Displacement::Stalled(idle))
        };
        let Some(reason) = reason.filter(|_| self.members.first_standby().is_some()) else { return false };
        self.dismiss(from);
        self.actions.push_back(Action::Displaced { replica: peer, stage, reason });
        true
    }
}
