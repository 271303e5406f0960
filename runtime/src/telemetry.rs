//! The metrics of swarmline: names, units, descriptions, and the functions that record them.
//!
//! Records go to the recorder that the process has installed with the `metrics` crate; without a recorder they are
//! dropped. Counters are totals since the process started.

use std::sync::Once;

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use swarmline_scheduler::transfer::{DownloadNote, UploadNote};
use swarmline_scheduler::{StageIndex, averaging, feeder, stage};

use crate::net::control::MemberStats;

const MICROBATCHES: &str = "swarmline_microbatches_total";
const MICROBATCHES_IN_FLIGHT: &str = "swarmline_microbatches_in_flight";
const MESSAGES_IGNORED: &str = "swarmline_messages_ignored_total";
const FORWARDS_BUSY: &str = "swarmline_forwards_busy_total";
const NEIGHBOURS_LOST: &str = "swarmline_neighbours_lost_total";
const CONTRIBUTIONS_LOST: &str = "swarmline_contributions_lost_total";
const CLAIMS_DENIED: &str = "swarmline_claims_denied_total";
const UNGRANTED: &str = "swarmline_stages_ungranted_total";
const AVERAGING_ROUNDS: &str = "swarmline_averaging_rounds_total";
const AVERAGING_PARTS: &str = "swarmline_averaging_parts_total";
const AVERAGING_CONTRIBUTIONS_REFUSED: &str = "swarmline_averaging_contributions_refused_total";
const AVERAGING_MESSAGES_IGNORED: &str = "swarmline_averaging_messages_ignored_total";
const STATE_DOWNLOADS_FAILED: &str = "swarmline_state_downloads_failed_total";
const STATE_UPLOADS: &str = "swarmline_state_uploads_total";
const OPTIMIZER_STEPS: &str = "swarmline_optimizer_steps";
const STALENESS: &str = "swarmline_staleness_weight_versions";
const TOKENS: &str = "swarmline_tokens_total";
const BYTES_SENT: &str = "swarmline_sent_bytes_total";
const OLDEST_TASK: &str = "swarmline_oldest_task_seconds";

/// Gives the recorder the unit and the description of every metric. Later calls have no effect.
pub(crate) fn describe() {
    static DESCRIBED: Once = Once::new();
    DESCRIBED.call_once(describe_all);
}

fn describe_all() {
    let counters = [
        (MICROBATCHES, Unit::Count, "Microbatches of this replica by outcome (label outcome)."),
        (MESSAGES_IGNORED, Unit::Count, "Messages about microbatches that were ignored, by reason."),
        (FORWARDS_BUSY, Unit::Count, "Forwards that found no free slot."),
        (NEIGHBOURS_LOST, Unit::Count, "Neighbours found dead or stalled."),
        (CONTRIBUTIONS_LOST, Unit::Count, "Contributions granted to replicas that died before averaging."),
        (CLAIMS_DENIED, Unit::Count, "Claims denied because another replica has the grant."),
        (UNGRANTED, Unit::Count, "Stages of finished microbatches without a grant; 0 at a sound feeder."),
        (
            AVERAGING_ROUNDS,
            Unit::Count,
            "Averaging rounds that ended here, by whether every part was averaged.",
        ),
        (AVERAGING_PARTS, Unit::Count, "Parts of averaging rounds at this replica by outcome."),
        (AVERAGING_CONTRIBUTIONS_REFUSED, Unit::Count, "Contributions left out of a mean, by reason."),
        (AVERAGING_MESSAGES_IGNORED, Unit::Count, "Averaging messages that were ignored, by reason."),
        (STATE_DOWNLOADS_FAILED, Unit::Count, "Donors that did not give their state, by fault."),
        (STATE_UPLOADS, Unit::Count, "Joiners that asked for the state, by result."),
        (TOKENS, Unit::Count, "Tokens of the microbatches done."),
        (BYTES_SENT, Unit::Bytes, "Bytes of all frames sent."),
    ];
    for (name, unit, description) in counters {
        describe_counter!(name, unit, description);
    }
    let gauges = [
        (MICROBATCHES_IN_FLIGHT, Unit::Count, "Microbatches injected that have no outcome yet."),
        (OPTIMIZER_STEPS, Unit::Count, "Optimizer steps in the weights; a joiner begins with its donor's."),
        (STALENESS, Unit::Count, "Median optimizer steps between forward and backward."),
        (OLDEST_TASK, Unit::Seconds, "Age of the oldest task that waits for the executor."),
    ];
    for (name, unit, description) in gauges {
        describe_gauge!(name, unit, description);
    }
}

/// Records the counters of a member's heartbeat.
pub(crate) fn record_member(stats: &MemberStats) {
    counter!(TOKENS).absolute(stats.tokens);
    counter!(BYTES_SENT).absolute(stats.bytes_sent);
    gauge!(OPTIMIZER_STEPS).set(stats.steps as f64);
    gauge!(STALENESS).set(stats.staleness_p50 as f64);
    gauge!(OLDEST_TASK).set(stats.oldest_task.as_secs_f64());
}

/// Records a replica's counts of microbatches.
pub(crate) fn record_stage(at: StageIndex, counts: &stage::Counts) {
    let stage = at.0.to_string();
    let microbatches = [
        ("applied", counts.applied),
        ("relayed", counts.relayed),
        ("evaluated", counts.evaluated),
        ("refused", counts.refused),
        ("retried", counts.retried),
        ("recovered", counts.recovered),
        ("found_downstream", counts.found),
    ];
    for (outcome, total) in microbatches {
        counter!(MICROBATCHES, "stage" => stage.clone(), "outcome" => outcome).absolute(total);
    }
    let ignored = [
        ("malformed", counts.malformed),
        ("duplicate", counts.duplicate),
        ("late", counts.late),
        ("unknown", counts.unknown),
        ("foreign", counts.foreign),
        ("unexpected", counts.unexpected),
    ];
    for (reason, total) in ignored {
        counter!(MESSAGES_IGNORED, "stage" => stage.clone(), "reason" => reason).absolute(total);
    }
    counter!(FORWARDS_BUSY, "stage" => stage.clone()).absolute(counts.busy);
    counter!(NEIGHBOURS_LOST, "stage" => stage).absolute(counts.lost);
}

/// Records a replica's counts of averaging rounds.
pub(crate) fn record_averaging(at: StageIndex, counts: &averaging::Counts) {
    let stage = at.0.to_string();
    let rounds = [("yes", counts.complete), ("no", counts.rounds.saturating_sub(counts.complete))];
    for (complete, total) in rounds {
        counter!(AVERAGING_ROUNDS, "stage" => stage.clone(), "complete" => complete).absolute(total);
    }
    let parts = [
        ("applied", counts.applied),
        ("reassigned", counts.reassigned),
        ("empty", counts.empty),
        ("given_up", counts.given_up),
    ];
    for (outcome, total) in parts {
        counter!(AVERAGING_PARTS, "stage" => stage.clone(), "outcome" => outcome).absolute(total);
    }
    for (reason, total) in [("late", counts.left_out), ("unusable", counts.refused)] {
        counter!(AVERAGING_CONTRIBUTIONS_REFUSED, "stage" => stage.clone(), "reason" => reason)
            .absolute(total);
    }
    let ignored = [
        ("stranger", counts.strangers),
        ("other_members", counts.other_members),
        ("malformed", counts.malformed),
        ("late", counts.late),
    ];
    for (reason, total) in ignored {
        counter!(AVERAGING_MESSAGES_IGNORED, "stage" => stage.clone(), "reason" => reason).absolute(total);
    }
}

/// Counts a donor that did not give its state.
pub(crate) fn count_download(note: &DownloadNote) {
    let fault = match note {
        DownloadNote::Wrong(_) => "wrong_chunk",
        DownloadNote::Unusable(..) => "unusable_manifest",
        DownloadNote::Unfit(_) => "unfit_state",
        DownloadNote::Silent(_) => "silent",
        DownloadNote::Lost(_) => "lost",
        DownloadNote::Declined(..) => "declined",
        DownloadNote::TooOld(_) => "old_copy",
        DownloadNote::NoDonor => "no_donor",
    };
    counter!(STATE_DOWNLOADS_FAILED, "fault" => fault).increment(1);
}

/// Counts a joiner that requested the state.
pub(crate) fn count_upload(note: &UploadNote) {
    let result = match note {
        UploadNote::Served(_) => "served",
        UploadNote::Declined(_) => "declined",
        UploadNote::Abandoned(_) => "abandoned",
    };
    counter!(STATE_UPLOADS, "result" => result).increment(1);
}

/// Counts a question of a member that has asked too much.
pub(crate) fn count_unanswered(at: StageIndex) {
    counter!(MESSAGES_IGNORED, "stage" => at.0.to_string(), "reason" => "too_many").increment(1);
}

/// Records a feeder's counts.
pub(crate) fn record_feeder(counts: &feeder::Counts) {
    let microbatches = [
        ("injected", counts.injected),
        ("finished", counts.finished),
        ("refused", counts.refused),
        ("abandoned", counts.abandoned),
        ("inherited", counts.inherited),
        ("lost", counts.lost),
        ("retried", counts.retried),
        ("evaluated", counts.evaluated),
    ];
    for (outcome, total) in microbatches {
        counter!(MICROBATCHES, "stage" => "feeder", "outcome" => outcome).absolute(total);
    }
    for (reason, total) in [("late", counts.late), ("foreign", counts.foreign)] {
        counter!(MESSAGES_IGNORED, "stage" => "feeder", "reason" => reason).absolute(total);
    }
    counter!(CONTRIBUTIONS_LOST).absolute(counts.contributions_lost);
    counter!(CLAIMS_DENIED).absolute(counts.denied);
    counter!(UNGRANTED).absolute(counts.ungranted);
    gauge!(MICROBATCHES_IN_FLIGHT).set(counts.in_flight as f64);
}

#[cfg(test)]
mod tests;
