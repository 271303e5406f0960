//! Requests to join: who is admitted, and in whose place.
//!
//! A key has one process. A second process with the key of a member is refused while the member lives: the two would take
//! the place of each other in turns. It gets the place when the member has been silent for a while, as a process that is
//! started again after a crash, or when a person asks for it. A process that joins again as a later start, since the reply
//! to its first request was lost, takes the place of its own former start at once: the number that it drew when it started
//! says that it is the same.

use super::farewell::Farewell;
use super::members::Entry;
use super::{Coordinator, FeedPolicy, Join, JoinRefusal};
use crate::{Duration, Instance, Member, MemberState, PeerId, Role, Time};

/// A member that was silent for so long gives its place to another process with its key. Heartbeats come every second, and
/// the next one is sent 3 s after one that is lost.
pub(super) const SILENT_AFTER: Duration = Duration::from_secs(4);

impl Coordinator {
    pub(super) fn join(&mut self, now: Time, request: Join) -> Result<MemberState, JoinRefusal> {
        if let Some(state) = self.admit(now, &request)? {
            return Ok(state);
        }
        let Join { from, role, address, holds, .. } = request;
        let holds = holds.filter(|_| self.may_have_weights(from.peer));
        if role == Role::Successor {
            self.succeed(from)?;
        }
        let former = self.members.remove(from.peer);
        let previous = holds.or(former.and_then(|former| former.member.state.stage()));
        let state = match role {
            Role::Feeder | Role::Successor => MemberState::Feeding,
            Role::Keeper(kept) => MemberState::Keeping(kept),
            Role::Reader => MemberState::Reading,
            Role::Replica => self.place(previous, holds).map_or(MemberState::Standby, MemberState::Loading),
        };
        self.await_holder(now, from.peer, holds);
        let member = Member { instance: from, state, address };
        self.members.insert(now, Entry::new(member, request.process, holds));
        self.publishing.change();
        Ok(state)
    }

    /// Checks a request to join; the state of a start that is a member already.
    fn admit(&mut self, now: Time, request: &Join) -> Result<Option<MemberState>, JoinRefusal> {
        let key = request.from.peer;
        if self.is_finished() && !self.awaits_keeper(request.role) {
            return Err(self.diverged.map_or(JoinRefusal::Finished, |at| JoinRefusal::Diverged { at }));
        }
        if self.evicted.contains(key) {
            return Err(JoinRefusal::Evicted { key });
        }
        if !self.config.policy.admits(key) {
            return Err(JoinRefusal::NotListed { key });
        }
        match request.role {
            Role::Feeder | Role::Successor => self.check_may_feed(key)?,
            Role::Keeper(kept) => self.keepers.admit(&self.config, key, kept)?,
            // A reader sees no parameter: each member may read.
            Role::Replica | Role::Reader => {}
        }
        match self.members.of_peer(key) {
            Some(entry) if entry.is(request) => {
                let state = entry.member.state;
                self.members.touch(now, request.from);
                return Ok(Some(state));
            }
            Some(entry) => self.check_replaces(now, request, entry)?,
            None => self.check_newcomer(request)?,
        }
        Ok(None)
    }

    /// Whether a keeper that has died and is back may still take the final states.
    fn awaits_keeper(&self, role: Role) -> bool {
        matches!((role, &self.farewell), (Role::Keeper(_), Some(Farewell::Keeping(_))))
    }

    /// Refuses a start in the place of a member with its key that lives, or that started later.
    fn check_replaces(&self, now: Time, request: &Join, entry: &Entry) -> Result<(), JoinRefusal> {
        let (key, known) = (request.from.peer, entry.member.instance.incarnation);
        let yields = entry.is_of(request.process)
            || request.takes_over
            || self.members.is_silent(now, key, SILENT_AFTER);
        if !yields {
            return Err(JoinRefusal::AlreadyRuns { key, address: entry.member.address, since: known });
        }
        if request.from.incarnation <= known {
            return Err(JoinRefusal::Former { key, known });
        }
        Ok(())
    }

    /// Refuses a start that is not the latest of its key, and any where there is no room.
    fn check_newcomer(&self, request: &Join) -> Result<(), JoinRefusal> {
        if self.members.len() >= self.config.members_max {
            return Err(JoinRefusal::Full { limit: self.config.members_max });
        }
        let Instance { peer: key, incarnation } = request.from;
        // A feeder goes on with its own ids. If a successor has them, the table says so. Keepers and readers have nothing
        // to lose.
        let may_return = matches!(request.role, Role::Feeder | Role::Keeper(_) | Role::Reader);
        match self.former.latest(key) {
            Some(known) if incarnation < known || incarnation == known && !may_return => {
                Err(JoinRefusal::Former { key, known })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Refuses a feeder that the policy does not name.
    pub(super) fn check_may_feed(&self, key: PeerId) -> Result<(), JoinRefusal> {
        match (&self.config.feed, self.first_feeder) {
            (FeedPolicy::First, Some(first)) if first != key => Err(JoinRefusal::FedByAnother { key, first }),
            (FeedPolicy::Keys(keys), _) if !keys.contains(&key) => Err(JoinRefusal::MayNotFeed { key }),
            (FeedPolicy::First | FeedPolicy::Members | FeedPolicy::Keys(_), _) => Ok(()),
        }
    }

    /// Gives every range of a feeder that is gone to `successor`; a former start of the successor counts as gone.
    fn succeed(&mut self, successor: Instance) -> Result<(), JoinRefusal> {
        let Self { members, leases, .. } = self;
        let gone = |holder: Instance| holder.peer == successor.peer || !members.contains(holder.peer);
        if leases.succeed(successor, gone) {
            return Ok(());
        }
        let lease = self.config.lease;
        let alive = leases.find_holder(|holder| !gone(holder)).map(|holder| holder.peer);
        alive.map_or(Ok(()), |feeder| Err(JoinRefusal::FeederLives { feeder, lease }))
    }
}
