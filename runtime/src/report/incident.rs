//! Incidents: faults and their consequences.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A fault to report. Peers are named by the first bytes of their keys, hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "incident", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Incident {
    /// This process is no member any more. It joins again, without its microbatches.
    Expelled {
        /// The reason: the coordinator's, or that it was placed elsewhere.
        reason: String,
    },
    /// A peer sent bytes that are no frame of this run.
    MalformedFrame {
        /// The sender.
        peer: String,
        /// The fault.
        fault: String,
        /// Such frames since the last line about them, this one included.
        times: u64,
    },
    /// A peer refused a frame of this process as malformed.
    FrameRefused {
        /// The receiver.
        peer: String,
        /// Error code of the receiver.
        code: u64,
        /// Such frames since the last line about them, this one included.
        times: u64,
    },
    /// Messages for a peer could not be delivered.
    Unreachable {
        /// The receiver.
        peer: String,
        /// The cause, with the name of the peer.
        reason: String,
        /// Number of messages.
        undelivered: usize,
    },
    /// A neighbour is dead or stalled.
    NeighbourLost {
        /// The neighbour.
        peer: String,
        /// Microbatches that the neighbour holds; other replicas recover them.
        affected: usize,
    },
    /// A microbatch was refused.
    MicrobatchRefused {
        /// Id of the microbatch, for people.
        microbatch: String,
        /// The replica that refused the microbatch; `None` for this process.
        by: Option<String>,
        /// The reason of the refusal.
        reason: String,
        /// Refusals since the last line about them, this one included.
        times: u64,
    },
    /// A contribution to an averaging round cannot be used.
    ContributionRefused {
        /// The member that sent it.
        peer: String,
        /// The fault.
        fault: String,
        /// Such contributions since the last line about them, this one included.
        times: u64,
    },
    /// A member says that it got another average of its owner than this replica.
    TwoMeans {
        /// The owner.
        owner: String,
        /// The member.
        voter: String,
        /// Such cases since the last line about them, this one included.
        times: u64,
    },
    /// The coordinator's log refuses what was decided. The run goes on.
    LogBehind {
        /// The file and the cause.
        fault: String,
    },
    /// The coordinator's log has taken what it had refused.
    LogComplete,
    /// A feeder leaves the claims of a replica unanswered.
    FeederSilent {
        /// The feeder.
        peer: String,
        /// Seconds without any message from it.
        seconds: u64,
        /// Microbatches of the feeder that the replica held.
        affected: usize,
    },
    /// More of what a replica says about microbatches is false than true.
    ReplicaLies {
        /// The replica.
        peer: String,
        /// Its stage, from 0.
        stage: u16,
        /// Its false statements.
        false_ones: u32,
        /// Its true statements.
        sound: u32,
    },
    /// The coordinator has given the place of a replica to a standby.
    ReplicaDisplaced {
        /// The replica.
        peer: String,
        /// Its stage, from 0.
        stage: u16,
        /// It was loading the state of the stage; otherwise it served, and finished nothing.
        is_loading: bool,
        /// For so long.
        seconds: u64,
    },
    /// The coordinator has removed a replica that a feeder caught lying.
    ReplicaEvicted {
        /// The replica.
        peer: String,
        /// Its stage, from 0.
        stage: u16,
        /// The feeder.
        feeder: String,
        /// False statements of the replica.
        false_ones: u32,
        /// True statements of the replica.
        sound: u32,
    },
    /// A donor did not give the state of the stage.
    DonorFailed {
        /// The donor.
        peer: String,
        /// The stage, from 0.
        stage: u16,
        /// The fault of the donor, as the rest of a sentence that begins with the donor.
        fault: String,
    },
    /// A donor takes this keeper for no keeper of its stage.
    StateRefused {
        /// The donor.
        peer: String,
        /// The stage, from 0.
        stage: u16,
    },
    /// The coordinator's own keeper has ended, and is started again.
    KeeperDied {
        /// Its last words.
        fault: String,
        /// Seconds until the next start.
        seconds: u64,
    },
    /// No replica gives the state of a stage: a checkpoint is given up.
    StageNotKept {
        /// The stage, from 0.
        stage: u16,
        /// Seconds until the next attempt.
        seconds: u64,
    },
    /// The target of a keeper does not take a file, which is tried again.
    NotKept {
        /// The fault and its remedy.
        fault: String,
    },
    /// Training has diverged; this is the newest checkpoint before.
    DivergedAfter {
        /// Its folder: a path or a URL.
        path: String,
    },
    /// Old checkpoints could not be removed.
    NotPruned {
        /// The fault and its remedy.
        fault: String,
    },
    /// A checkpoint in the target of a keeper cannot be read.
    CheckpointUnusable {
        /// The fault and its remedy.
        fault: String,
    },
    /// Every replica of a trained stage is gone: this replica begins with the initial weights of the run.
    StageLost {
        /// The stage, from 0.
        stage: u16,
    },
    /// The last keeper with a checkpoint fell silent.
    KeeperSilent,
    /// The log of a run is gone; its members are asked.
    LogGone {
        /// Where it was.
        path: String,
    },
    /// A trained stage that had lost its last replica goes on with the state that a keeper had.
    StageRestored {
        /// The stage, from 0.
        stage: u16,
        /// Microbatches of the checkpoint.
        kept: u64,
        /// Microbatches since, whose updates of the stage are lost.
        lost: u64,
    },
    /// An expelled replica came back, and no other replica serves its stage: it goes on with the state that it had.
    StateKept {
        /// The stage, from 0.
        stage: u16,
    },
    /// A replica left with microbatches that it had not finished.
    LeftMicrobatches {
        /// Number of microbatches; other replicas recover them.
        microbatches: usize,
        /// Limit of the time to finish them, seconds.
        seconds: u64,
    },
    /// A replica left before averaging had carried its last contributions to other replicas.
    LeftFragments {
        /// Fragments that were not averaged after its last contribution.
        fragments: usize,
        /// Limit of the time to average them, seconds.
        seconds: u64,
    },
    /// A held-out microbatch was never answered.
    EvaluationUnanswered {
        /// Id of the microbatch, for people.
        microbatch: String,
    },
    /// No microbatch of an evaluation was answered: its held-out loss is missing.
    EvaluationMissing,
    /// Another process with the key of this one is a member. This one asks again: the other may have just died.
    KeyInUse {
        /// The coordinator's reason.
        reason: String,
        /// Seconds after which this process ends.
        seconds: u64,
    },
    /// A reader asks another replica in place of this one, which is gone, does not reply or cannot compute.
    ReplicaReplaced {
        /// The replica.
        peer: String,
        /// Its stage, from 0.
        stage: u16,
    },
    /// The coordinator does not reply.
    CoordinatorSilent {
        /// Seconds after which this process ends, with its state kept.
        patience: u64,
    },
    /// The coordinator replies again.
    CoordinatorBack {
        /// Seconds without a reply.
        seconds: u64,
    },
    /// A feeder has finished its work, and could not tell the coordinator.
    EndUnreported,
    /// The disk does not take the journal of a feeder.
    JournalUnwritten {
        /// The error, with the file.
        error: String,
    },
    /// The disk takes the journal again.
    JournalWritten,
    /// Lines of output were dropped, since nothing read them.
    LinesDropped {
        /// Number of lines since the last such line.
        lines: u64,
    },
    /// Stages have no replica, which halts the run.
    StagesUnserved {
        /// Their numbers, from 0.
        stages: Vec<u16>,
    },
}

impl fmt::Display for Incident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expelled { reason } => write!(
                f,
                "this process is no member any more ({reason}); it joins again, without its microbatches"
            ),
            Self::MalformedFrame { peer, fault, times } => {
                write!(
                    f,
                    "peer {peer} sent bytes that are no frame of this run ({fault}); they were dropped"
                )?;
                repeated(f, *times)
            }
            Self::FrameRefused { peer, code, times } => {
                write!(f, "peer {peer} refused a frame as malformed (code {code}); its log says why")?;
                repeated(f, *times)
            }
            Self::Unreachable { reason, undelivered, .. } => {
                write!(f, "{reason}; messages not delivered: {undelivered}")
            }
            Self::NeighbourLost { peer, affected } => {
                write!(f, "neighbour {peer} is dead or stalled; microbatches to recover: {affected}")
            }
            Self::MicrobatchRefused { microbatch, by, reason, times } => {
                refused(f, microbatch, by.as_deref(), reason, *times)
            }
            Self::ContributionRefused { peer, fault, times } => write!(
                f,
                "a contribution of peer {peer} to an average is left out ({fault}); {times} since the last such line"
            ),
            Self::TwoMeans { owner, voter, times } => write!(
                f,
                "peer {voter} says that peer {owner} sent it another average than to this replica: one of the two \
                 lies; {times} since the last such line"
            ),
            Self::LogBehind { fault } => write!(
                f,
                "{fault}. The run goes on, and the log is tried again every few seconds; a start after a crash now asks \
                 members for what the log does not know"
            ),
            Self::LogComplete => write!(f, "the log has every decision again"),
            Self::FeederSilent { peer, seconds, affected } => write!(
                f,
                "nothing heard from feeder {peer} for {seconds} s: it is gone, or the network between it and this \
                 replica drops its packets; other replicas take its {affected} microbatches"
            ),
            Self::ReplicaLies { peer, stage, false_ones, sound } => {
                lies(f, (peer, *stage), (*false_ones, *sound))
            }
            Self::ReplicaEvicted { peer, stage, feeder, false_ones, sound } => {
                evicted(f, (peer, *stage), feeder, (*false_ones, *sound))
            }
            Self::ReplicaDisplaced { peer, stage, is_loading, seconds } => {
                let fault = if *is_loading { "has been loading its state" } else { "has finished no microbatch" };
                write!(
                    f,
                    "peer {peer} {fault} for {seconds} s: a standby takes its place at stage {stage}; it may join again, and \
                     stands by then"
                )
            }
            Self::DonorFailed { peer, stage, fault } => donor_failed(f, (peer, *stage), fault),
            Self::StateRefused { peer, stage } => write!(
                f,
                "peer {peer} gives this keeper no state of stage {stage}: by its table this process keeps no such stage, or \
                 the weights of the run stay split; keep another stage with --stage, under another key"
            ),
            Self::StageNotKept { stage, seconds } => write!(
                f,
                "no replica gives the state of stage {stage}: this checkpoint is given up, the one before stays; the next \
                 attempt begins in {seconds} s"
            ),
            Self::KeeperDied { fault, seconds } => {
                write!(
                    f,
                    "the keeper has ended ({fault}); it is started again in {seconds} s, and the run goes on"
                )
            }
            Self::NotKept { fault } => write!(f, "{fault}; it is tried again, and the run goes on"),
            Self::DivergedAfter { path } => {
                write!(f, "training has diverged; the newest checkpoint from before is {path}")
            }
            Self::NotPruned { fault } => write!(f, "old checkpoints stay: {fault}"),
            Self::CheckpointUnusable { fault } => f.write_str(fault),
            Self::StageLost { stage } => stage_lost(f, *stage),
            Self::KeeperSilent => f.write_str(
                "the last keeper is silent: until one is back, a stage that loses all its replicas begins with initial \
                 weights",
            ),
            Self::LogGone { path } => write!(
                f,
                "the log {path} is gone: members that are still there are asked for the run, and without them it begins with \
                 initial weights; to go on from its newest checkpoint, start it with --resume"
            ),
            Self::StageRestored { stage, kept, lost } => write!(
                f,
                "stage {stage} had lost its last replica, and is restored from a keeper's checkpoint of {kept} microbatches: \
                 what the stage has learned from the {lost} microbatches since is lost"
            ),
            Self::StateKept { stage } => write!(
                f,
                "no replica serves stage {stage}: it goes on with the state that this process has kept"
            ),
            Self::LeftMicrobatches { microbatches, seconds } => write!(
                f,
                "left after {seconds} s; unfinished microbatches, which other replicas recover: {microbatches}"
            ),
            Self::LeftFragments { fragments, seconds } => write!(
                f,
                "left after {seconds} s; fragments not averaged meanwhile, in which the other replicas lack this \
                 replica's last contributions: {fragments}"
            ),
            Self::EvaluationUnanswered { microbatch } => {
                write!(f, "held-out {microbatch} was never answered; the figure leaves it out")
            }
            Self::EvaluationMissing => {
                write!(f, "no microbatch of an evaluation was answered; its held-out loss is missing")
            }
            Self::KeyInUse { reason, seconds } => {
                write!(f, "{reason}; should it have just died, this process joins within {seconds} s")
            }
            Self::ReplicaReplaced { peer, stage } => {
                write!(
                    f,
                    "replica {peer} of stage {stage} does not predict the next token; another one is asked"
                )
            }
            Self::CoordinatorSilent { patience } => write!(
                f,
                "the coordinator does not reply: this process goes on with what it knows, and ends with its state kept if no \
                 reply comes within {patience} s (--patience)"
            ),
            Self::CoordinatorBack { seconds } => {
                write!(f, "the coordinator replies again, after {seconds} s")
            }
            Self::EndUnreported => write!(
                f,
                "every microbatch has its outcome, but the coordinator does not reply and has not heard it: started again \
                 with the same --identity and --journal, the feeder tells it"
            ),
            Self::JournalUnwritten { error } => write!(
                f,
                "{error}: the feeder injects and grants nothing until it can write its journal, and tries each second. Make \
                 room; nothing is lost"
            ),
            Self::JournalWritten => write!(f, "the journal is written again; the feeder goes on"),
            Self::LinesDropped { lines } => {
                write!(f, "{lines} lines were dropped here, since nothing read this output")
            }
            Self::StagesUnserved { stages } => {
                write!(f, "stages {stages:?} have no replica; nothing is injected until one joins")
            }
        }
    }
}

/// A replica and its stage.
type Replica<'a> = (&'a str, u16);

fn lies(
    f: &mut fmt::Formatter<'_>,
    (peer, stage): Replica<'_>,
    (false_ones, sound): (u32, u32),
) -> fmt::Result {
    write!(
        f,
        "replica {peer} of stage {stage} lies: {false_ones} of its statements about microbatches were false, {sound} \
         true; this feeder denies its claims and asks the coordinator to evict it"
    )
}

fn evicted(
    f: &mut fmt::Formatter<'_>,
    (peer, stage): Replica<'_>,
    feeder: &str,
    (false_ones, sound): (u32, u32),
) -> fmt::Result {
    write!(
        f,
        "replica {peer} of stage {stage} is evicted and may not come back: feeder {feeder} caught it lying \
         ({false_ones} of its statements about microbatches were false, {sound} true)"
    )
}

fn donor_failed(f: &mut fmt::Formatter<'_>, (peer, stage): Replica<'_>, fault: &str) -> fmt::Result {
    write!(
        f,
        "peer {peer}, asked for the state of stage {stage}, {fault}; the other donors are compared again; without others \
         it is asked again"
    )
}

fn stage_lost(f: &mut fmt::Formatter<'_>, stage: u16) -> fmt::Result {
    write!(
        f,
        "no replica serves stage {stage}, which had been trained: it begins with the initial weights of the run, and its \
         updates are lost"
    )
}

fn refused(
    f: &mut fmt::Formatter<'_>,
    microbatch: &str,
    by: Option<&str>,
    reason: &str,
    times: u64,
) -> fmt::Result {
    write!(f, "{microbatch} refused")?;
    if let Some(by) = by {
        write!(f, " by peer {by}")?;
    }
    write!(f, " ({reason}); {times} since the last such line, all counted")
}

fn repeated(f: &mut fmt::Formatter<'_>, times: u64) -> fmt::Result {
    if times > 1 { write!(f, "; {} more since the last such line", times - 1) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::super::Event;
    use super::*;

    #[test]
    fn programs_read_an_incident_as_it_was_told() {
        let incident = Incident::StagesUnserved { stages: vec![1, 3] };
        let event = Event::Incident(incident);
        let line = serde_json::to_string(&event).unwrap();
        assert_eq!(line, r#"{"event":"incident","incident":"stages_unserved","stages":[1,3]}"#);
        assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event);
    }
}
