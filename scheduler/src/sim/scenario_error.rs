//! Scenarios that cannot be played.

use super::fault::Fault;
use super::scenario::Scenario;
use crate::Duration;

/// Most replica processes of a world.
pub const MEMBERS_MAX: usize = 10_000;
/// Most slots of a replica.
pub const SLOTS_MAX: usize = 65_536;
/// Most fragments of a stage.
pub const FRAGMENTS_MAX: u64 = 4_096;

/// The reason why a scenario cannot be played.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScenarioError {
    /// A stage without replicas, or no stage.
    #[error("{stages} stages of {replicas} replicas: a run needs at least one of each")]
    Empty {
        /// Stages of the scenario.
        stages: u16,
        /// Replicas of each stage.
        replicas: u16,
    },
    /// More replicas than a world holds.
    #[error("{members} replicas: a world holds {MEMBERS_MAX} at most")]
    TooManyMembers {
        /// Replicas of the scenario, spares included.
        members: usize,
    },
    /// A list with a value for each replica is empty.
    #[error("`{list}` is empty: give one value for all replicas, or one for each")]
    EmptyList {
        /// The field of the scenario.
        list: &'static str,
    },
    /// A replica without slots, or with too many.
    #[error("{slots} slots: a replica has 1 to {SLOTS_MAX}")]
    Slots {
        /// Slots of the replica.
        slots: usize,
    },
    /// No fragment, or too many.
    #[error("{fragments} fragments: averaging takes 1 to {FRAGMENTS_MAX}")]
    Fragments {
        /// Fragments of the scenario.
        fragments: u64,
    },
    /// A wait of no length.
    #[error("`{wait}` is zero: nothing could be waited for")]
    NoWait {
        /// The field of the scenario.
        wait: &'static str,
    },
    /// A fault names a replica that does not exist.
    #[error("the fault `{fault}` names replica {replica}: the scenario has {members}, counted from 0")]
    NoSuchReplica {
        /// Name of the fault.
        fault: &'static str,
        /// The index in the fault.
        replica: usize,
        /// Replicas of the scenario, spares included.
        members: usize,
    },
}

impl Scenario {
    /// Whether a world can play the scenario.
    ///
    /// # Errors
    /// The first reason against it.
    pub fn check(&self) -> Result<(), ScenarioError> {
        self.check_size()?;
        self.check_replicas()?;
        self.check_waits()?;
        self.faults.iter().try_for_each(|(_, fault)| self.check_fault(fault))
    }

    fn check_size(&self) -> Result<(), ScenarioError> {
        let Self { stages, replicas, .. } = *self;
        if stages == 0 || replicas == 0 {
            return Err(ScenarioError::Empty { stages, replicas });
        }
        let members = self.members();
        if members > MEMBERS_MAX {
            return Err(ScenarioError::TooManyMembers { members });
        }
        let fragments = self.averaging.map_or(1, |schedule| schedule.fragments);
        if !(1..=FRAGMENTS_MAX).contains(&fragments) {
            return Err(ScenarioError::Fragments { fragments });
        }
        Ok(())
    }

    fn check_replicas(&self) -> Result<(), ScenarioError> {
        let lists = [("slots", self.slots.is_empty()), ("service_times", self.service_times.is_empty())];
        if let Some((list, _)) = lists.into_iter().find(|(_, empty)| *empty) {
            return Err(ScenarioError::EmptyList { list });
        }
        let wrong = self.slots.iter().find(|slots| !(1..=SLOTS_MAX).contains(*slots));
        wrong.map_or(Ok(()), |&slots| Err(ScenarioError::Slots { slots }))
    }

    fn check_waits(&self) -> Result<(), ScenarioError> {
        let waits = [("status_after", self.status_after), ("stop_within", self.stop_within)];
        let zero = waits.into_iter().find(|(_, wait)| *wait == Duration::ZERO);
        zero.map_or(Ok(()), |(wait, _)| Err(ScenarioError::NoWait { wait }))
    }

    fn check_fault(&self, fault: &Fault) -> Result<(), ScenarioError> {
        let members = self.members();
        let stranger = fault.replicas().into_iter().find(|&replica| replica >= members);
        stranger.map_or(Ok(()), |replica| {
            Err(ScenarioError::NoSuchReplica { fault: fault.name(), replica, members })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Admission;

    fn scenario() -> Scenario {
        Scenario::new(1, 2, 2, 10, Admission::Asynchronous(4))
    }

    fn refused(scenario: &Scenario) -> String {
        scenario.check().expect_err("refused").to_string()
    }

    #[test]
    fn a_scenario_that_cannot_be_played_is_refused_with_its_reason() {
        let stall = Fault::Stall { replica: 4, lasts: Duration::from_secs(1) };
        let cases = [
            (Scenario { stages: 0, ..scenario() }, "0 stages"),
            (Scenario { replicas: 0, ..scenario() }, "0 replicas"),
            (Scenario { stages: 300, replicas: 300, ..scenario() }, "90000 replicas"),
            (Scenario { slots: Vec::new(), ..scenario() }, "`slots` is empty"),
            (Scenario { slots: vec![8, 0], ..scenario() }, "0 slots"),
            (scenario().with_service_times(Vec::new()), "`service_times` is empty"),
            (scenario().with_averaging(20, u64::MAX), "fragments"),
            (Scenario { status_after: Duration::ZERO, ..scenario() }, "`status_after`"),
            (Scenario { stop_within: Duration::ZERO, ..scenario() }, "`stop_within`"),
            (scenario().with_fault(Duration::from_secs(1), stall), "replica 4"),
        ];
        for (scenario, reason) in cases {
            assert!(refused(&scenario).contains(reason), "{}", refused(&scenario));
        }
        assert_eq!(scenario().check(), Ok(()));
    }
}
