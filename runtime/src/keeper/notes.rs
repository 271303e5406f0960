//! Notes of the machine, reported to people and metrics.

use std::time::{Duration, Instant};

use swarmline_scheduler::keeper::{ATTEMPT_AGAIN_AFTER, Note};
use swarmline_scheduler::transfer::{DeclineReason, DownloadNote};
use swarmline_scheduler::{Instance, StageIndex};

use crate::process::donor_fault;
use crate::report::{Event, Incident, RateLimit, Reporter};
use crate::telemetry;

/// A donor whose table is older does not know this keeper yet.
const KNOWN_AFTER: Duration = Duration::from_secs(10);

/// Reports notes: incidents to people, all of them to metrics and logs.
#[derive(Debug)]
pub(super) struct Notes {
    began: Instant,
    failed_donors: RateLimit,
    refusals: RateLimit,
}

impl Notes {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), failed_donors: RateLimit::default(), refusals: RateLimit::default() }
    }

    pub(super) fn take(&mut self, note: Note, reporter: &Reporter) {
        match note {
            Note::Download(stage, note) => self.of_download(stage, &note, reporter),
            Note::Stalled(stage) => tell(
                reporter,
                Incident::StageNotKept { stage: stage.0, seconds: ATTEMPT_AGAIN_AFTER.as_secs() },
            ),
        }
    }

    fn of_download(&mut self, stage: StageIndex, note: &DownloadNote, reporter: &Reporter) {
        telemetry::count_download(note);
        match note {
            DownloadNote::Declined(donor, DeclineReason::NotEntitled) => {
                return self.of_refusal(*donor, stage, reporter);
            }
            DownloadNote::Declined(donor, DeclineReason::Busy) => {
                return tracing::info!(?donor, "a donor serves others first");
            }
            DownloadNote::TooOld(donor) => return tracing::info!(?donor, "the copy of a donor is old"),
            DownloadNote::NoDonor => return tracing::info!("every donor was asked; the next turn begins"),
            _ => {}
        }
        if let Some((donor, fault)) = donor_fault(note)
            && self.failed_donors.happened().is_some()
        {
            tell(reporter, Incident::DonorFailed { peer: name(donor), stage: stage.0, fault });
        }
    }

    fn of_refusal(&mut self, donor: Instance, stage: StageIndex, reporter: &Reporter) {
        if self.began.elapsed() >= KNOWN_AFTER && self.refusals.happened().is_some() {
            tell(reporter, Incident::StateRefused { peer: name(donor), stage: stage.0 });
        }
    }
}

fn tell(reporter: &Reporter, incident: Incident) {
    reporter.tell(&Event::Incident(incident));
}

fn name(instance: Instance) -> String {
    format!("{:?}", instance.peer)
}
