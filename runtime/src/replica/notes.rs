//! Notes of the machine, reported to people, metrics and the applied log.

use std::time::Instant;

use swarmline_scheduler::replica::{DRAIN_WITHIN, HAND_OVER_WITHIN, InitialState, Note, Unfinished};
use swarmline_scheduler::stage::FEEDER_LOST_AFTER;
use swarmline_scheduler::transfer::{DeclineReason, DownloadNote};
use swarmline_scheduler::{Instance, PeerTable, StageIndex, averaging, stage};

use super::applied_log::AppliedLog;
use crate::error::Error;
use crate::process::{Notices, donor_fault};
use crate::report::{Event, Incident, RateLimit, Reporter};
use crate::telemetry;

/// Reports notes: incidents to people, all of them to metrics and logs.
#[derive(Debug)]
pub(super) struct Notes {
    stage: StageIndex,
    applied_log: Option<AppliedLog>,
    pub(super) notices: Notices,
    refusals: RateLimit,
    unusable_contributions: RateLimit,
    divided_votes: RateLimit,
    failed_donors: RateLimit,
}

impl Notes {
    pub(super) fn new(stage: StageIndex, applied_log: Option<AppliedLog>) -> Self {
        Self {
            stage,
            applied_log,
            notices: Notices::default(),
            refusals: RateLimit::default(),
            unusable_contributions: RateLimit::default(),
            divided_votes: RateLimit::default(),
            failed_donors: RateLimit::default(),
        }
    }

    pub(super) fn take(&mut self, note: &Note, table: &PeerTable, reporter: &Reporter) -> Result<(), Error> {
        match note {
            Note::Stage(note) => return self.of_stage(note, table, reporter),
            Note::Averaging(note) => self.of_averaging(note, reporter),
            Note::Download(note) => self.of_download(note, reporter),
            Note::Upload(note) => {
                telemetry::count_upload(note);
                tracing::info!(?note, "a joining replica");
            }
            Note::Unanswered(from) => {
                telemetry::count_unanswered(self.stage);
                tracing::debug!(?from, "ignored a question of a member that asks too much");
            }
            Note::Began(InitialState::Initial { was_trained: true }) => {
                tell(reporter, Incident::StageLost { stage: self.stage.0 });
            }
            Note::Began(InitialState::Kept) => {
                tell(reporter, Incident::StateKept { stage: self.stage.0 });
            }
            Note::Began(_) => {}
        }
        Ok(())
    }

    fn of_stage(&mut self, note: &stage::Note, table: &PeerTable, reporter: &Reporter) -> Result<(), Error> {
        match note {
            stage::Note::Applied(id) => {
                if let Some(log) = &mut self.applied_log {
                    log.write(self.stage, *id)?;
                }
            }
            stage::Note::Refused(id, reason) => {
                if let Some(times) = self.refusals.happened() {
                    let (microbatch, reason) = (id.to_string(), reason.to_string());
                    tell(reporter, Incident::MicrobatchRefused { microbatch, by: None, reason, times });
                }
            }
            stage::Note::Lost { neighbour, affected } => {
                self.notices.on_lost(Instant::now(), *neighbour, *affected, table);
            }
            stage::Note::FeederLost { feeder, affected } => {
                let (peer, seconds) = (format!("{feeder:?}"), FEEDER_LOST_AFTER.as_secs());
                tell(reporter, Incident::FeederSilent { peer, seconds, affected: *affected });
            }
            stage::Note::Foreign(id) => {
                tracing::warn!(%id, "ignored a message from a peer that is no neighbour");
            }
            stage::Note::Misdirected(from) => {
                tracing::warn!(?from, "ignored a message that only feeders take");
            }
            other => tracing::trace!(?other, "counted"),
        }
        Ok(())
    }

    fn of_averaging(&mut self, note: &averaging::Note, reporter: &Reporter) {
        tracing::debug!(?note, "averaging");
        match note {
            averaging::Note::Refused(member, fault) => {
                if let Some(times) = self.unusable_contributions.happened() {
                    let (peer, fault) = (name(*member), fault.to_string());
                    tell(reporter, Incident::ContributionRefused { peer, fault, times });
                }
            }
            averaging::Note::TwoMeans { owner, voter } => {
                if let Some(times) = self.divided_votes.happened() {
                    tell(reporter, Incident::TwoMeans { owner: name(*owner), voter: name(*voter), times });
                }
            }
            _ => {}
        }
    }

    fn of_download(&mut self, note: &DownloadNote, reporter: &Reporter) {
        telemetry::count_download(note);
        let fault = match note {
            DownloadNote::Declined(donor, DeclineReason::Busy) => {
                Some((*donor, "serves other joiners first".to_owned()))
            }
            // The table of the donor may be older than that of this replica.
            DownloadNote::Declined(donor, DeclineReason::NotEntitled) => {
                return tracing::info!(?donor, "a donor does not know yet that this replica is placed here");
            }
            DownloadNote::TooOld(donor) => return tracing::info!(?donor, "the copy of a donor is old"),
            DownloadNote::NoDonor => return tracing::info!("every donor was asked; the next turn begins"),
            note => donor_fault(note),
        };
        if let Some((donor, fault)) = fault
            && self.failed_donors.happened().is_some()
        {
            let (peer, stage) = (name(donor), self.stage.0);
            tell(reporter, Incident::DonorFailed { peer, stage, fault });
        }
    }

    /// Reports that the replica left with unfinished work.
    pub(super) fn left(unfinished: Unfinished, reporter: &Reporter) {
        tell(
            reporter,
            match unfinished {
                Unfinished::Microbatches(microbatches) => {
                    Incident::LeftMicrobatches { microbatches, seconds: DRAIN_WITHIN.as_secs() }
                }
                Unfinished::Fragments(fragments) => {
                    Incident::LeftFragments { fragments, seconds: HAND_OVER_WITHIN.as_secs() }
                }
            },
        );
    }
}

fn tell(reporter: &Reporter, incident: Incident) {
    reporter.tell(&Event::Incident(incident));
}

fn name(instance: Instance) -> String {
    format!("{:?}", instance.peer)
}
