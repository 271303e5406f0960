//! Events as lines of prose.

use std::fmt;

use super::{
    Event, ExportReport, FeederReport, KeepingReport, KeptReport, ProgressReport, ReplicaReport, Totals,
};

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listening { invite, manifest } => {
                write!(
                    f,
                    "coordinator listens; manifest {}\n\n  swarmline join {invite}\n  swarmline feed {invite}\n",
                    &manifest[..manifest.len().min(12)]
                )
            }
            Self::Resumed { .. }
            | Self::ResumedAt { .. }
            | Self::ResumedAlready { .. }
            | Self::KeeperNeeded { .. }
            | Self::WeightsStaySplit { .. }
            | Self::AwaitsKeeper { .. }
            | Self::JournalPutAside { .. } => resuming(f, self),
            Self::Members { version, serving, standby, feeders, keepers, readers } => {
                write!(
                    f,
                    "members v{version}: serving per stage {serving:?}, {standby} standby, {feeders} feeding"
                )?;
                if *keepers > 0 {
                    write!(f, ", {keepers} keeping")?;
                }
                if *readers > 0 { write!(f, ", {readers} reading") } else { Ok(()) }
            }
            Self::Key { key, file, is_new } => own_key(f, key, file.as_deref(), *is_new),
            Self::Computing { device, profile } => write!(f, "computing on {device}, profile {profile}"),
            Self::Placed { stage, stages, first_layer, end_layer, parameters } => write!(
                f,
                "placed on stage {stage} of {stages}: layers {first_layer}..{end_layer}, {parameters} parameters"
            ),
            Self::Standby { stages, awaited } => standby(f, *stages, awaited),
            Self::StateTaken { stage, peer, bytes, seconds, version } => write!(
                f,
                "took the state of stage {stage} from peer {peer}: {:.1} MB in {seconds:.1} s, version {version}",
                *bytes as f64 / 1e6
            ),
            Self::Serving { stage } => write!(f, "serving stage {stage}; Ctrl-C leaves cleanly"),
            Self::Leaving { seconds_max } => write!(
                f,
                "leaving: its microbatches are finished and its last updates averaged first, {seconds_max} s at most"
            ),
            Self::Replica(report) => report.fmt(f),
            Self::Corpus { files, bytes, digest, bigram } => write!(
                f,
                "text: {files} files, {:.1} MB, digest {}; a bigram model of it has {bigram:.3} nats/token held out",
                *bytes as f64 / 1e6,
                &digest[..digest.len().min(12)]
            ),
            Self::Progress(report) => report.fmt(f),
            Self::Evaluation { done, loss, upstream_cut } => {
                let cut = if *upstream_cut { " with the upstream cut" } else { "" };
                write!(f, "held-out loss{cut} after {done} microbatches: {loss:.4} nats/token")
            }
            Self::Feeder(report) => report.fmt(f),
            Self::FeederDone(totals) => write!(f, "a feeder is done: {totals}"),
            Self::Failed { message, .. } => write!(f, "failed: {message}"),
            Self::Incident(incident) => write!(f, "! {incident}"),
            Self::Keeping(report) => report.fmt(f),
            Self::Kept(report) => report.fmt(f),
            Self::Saved { path } => write!(f, "saved {path}"),
            Self::Exported(report) => report.fmt(f),
            Self::Generated(report) => f.write_str(&report.text),
        }
    }
}

/// What processes of a run say that goes on where it was, or from a checkpoint, and of the keepers that it needs.
fn resuming(f: &mut fmt::Formatter<'_>, event: &Event) -> fmt::Result {
    match event {
        Event::Resumed { members, done, finished: false } => {
            write!(f, "going on where the run was: {members} members, {done} microbatches done")
        }
        Event::Resumed { members, done, finished: true } => write!(
            f,
            "the run is finished: {done} microbatches done, {members} members still to be told; to begin another, name \
             a folder for it with --state DIR"
        ),
        Event::ResumedAt { checkpoint, done, before, aside } => {
            write!(f, "going on from {checkpoint}, at {done} microbatches, in a new launch of the run")?;
            if let Some(before) = before {
                write!(f, "; the launch before had come to {before}")?;
            }
            if let Some(aside) = aside { write!(f, "; its log is put aside in {aside}") } else { Ok(()) }
        }
        Event::ResumedAlready { checkpoint } => write!(
            f,
            "the run went on from {checkpoint} before, and goes on where it is now; to begin at another checkpoint, name \
             it with --resume CHECKPOINT, and to begin at this one once more, move log.redb in the folder of the run away \
             first"
        ),
        Event::KeeperNeeded { command } => {
            write!(f, "replicas wait for a keeper that gives the states of the checkpoint:\n\n  {command}\n")
        }
        Event::WeightsStaySplit { last_stage, command } => write!(
            f,
            "the weights of this run stay split, so its coordinator keeps nothing; a keeper for each stage S from 0 to \
             {last_stage}:\n\n  {command}\n"
        ),
        Event::AwaitsKeeper { stage } => write!(
            f,
            "stage {stage} goes on from a checkpoint, and no keeper that has it is a member yet: waiting for one"
        ),
        Event::JournalPutAside { path, aside } => write!(
            f,
            "{path} is of the launch before the checkpoint that the run goes on from, which counts its microbatches: it is \
             put aside as {aside}, and a new one begins"
        ),
        _ => Ok(()),
    }
}

fn standby(f: &mut fmt::Formatter<'_>, stages: usize, awaited: &[u16]) -> fmt::Result {
    if awaited.is_empty() {
        return write!(f, "standby: all {stages} stages have their replicas. This one waits; Ctrl-C leaves");
    }
    write!(
        f,
        "standby: the replicas of stages {awaited:?} fell silent with their weights, and may come back. This one waits, and \
         takes a place that stays free; Ctrl-C leaves"
    )
}

fn own_key(f: &mut fmt::Formatter<'_>, key: &str, file: Option<&str>, is_new: bool) -> fmt::Result {
    write!(f, "public key {key}")?;
    match file {
        Some(file) if is_new => write!(f, "; its secret half is new, in {file}"),
        Some(_) => Ok(()),
        None => f.write_str(", for this start only; --identity FILE keeps one"),
    }
}

impl fmt::Display for ReplicaReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "stage {}: {} microbatches, {} steps, {} refused, staleness p50 {} max {}, {:.1} MB to neighbours",
            self.stage,
            self.done,
            self.steps,
            self.refused,
            self.staleness_p50,
            self.staleness_max,
            self.boundary_bytes as f64 / 1e6
        )?;
        if self.skipped > 0 {
            write!(f, ", {} left out for gradients far beyond the usual", self.skipped)?;
        }
        Ok(())
    }
}

impl fmt::Display for KeepingReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { run, target, stages, every, newest } = self;
        let unit = if every.ends_with(char::is_numeric) { " microbatches" } else { "" };
        write!(f, "keeping stages {stages:?} of run {run} in {target}, every {every}{unit}")?;
        if *newest > 0 {
            write!(f, "; the newest checkpoint there is at {newest} microbatches")
        } else {
            Ok(())
        }
    }
}

impl fmt::Display for KeptReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, microbatches, bytes, heldout_loss, heldout_after, is_final, is_agreed: _ } = self;
        let megabytes = *bytes as f64 / 1e6;
        write!(f, "kept {path}: {microbatches} microbatches, {megabytes:.1} MB")?;
        if let Some(loss) = heldout_loss {
            write!(f, ", held-out loss {loss:.4} nats/token{}", After(*heldout_after))?;
        }
        if !is_final {
            return Ok(());
        }
        let copied = if path.contains("://") { "its copy in a local folder: " } else { "" };
        write!(
            f,
            "\nthe run is over; for a model that transformers loads, {copied}\n\n  swarmline export {path} --to my-model\n"
        )
    }
}

impl fmt::Display for ExportReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = self.bytes as f64 / 1e6;
        write!(f, "exported {} parameters ({megabytes:.1} MB) to {}", self.parameters, self.path)?;
        if let Some(loss) = self.loss_of_run {
            write!(f, "\nheld-out loss of the run: {loss:.4} nats/token{}", After(self.loss_of_run_after))?;
        }
        if let Some(loss) = self.loss {
            write!(f, "\nheld-out loss of the exported model: {loss:.4} nats/token")?;
        }
        if let Some(cause) = &self.unmeasured {
            write!(f, "\nheld-out loss of the exported model: not measured: {cause}")?;
        }
        Ok(())
    }
}

/// When a loss was measured, if that is known.
struct After(Option<u64>);

impl fmt::Display for After {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |microbatches| write!(f, " after {microbatches} microbatches"))
    }
}

impl fmt::Display for ProgressReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{} microbatches, {} in flight, loss {:.4} nats/token, {:.0} tokens/s",
            self.done, self.total, self.in_flight, self.loss, self.tokens_per_s
        )
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { injected, finished, refused, lost, ungranted } = self;
        write!(
            f,
            "{injected} injected, {finished} finished, {refused} refused, {lost} lost, {ungranted} ungranted"
        )
    }
}

impl fmt::Display for FeederReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (totals, Self { tokens, seconds, tokens_per_s, .. }) = (self.totals(), self);
        write!(f, "{totals}; {tokens} tokens; {seconds:.1} s of training at {tokens_per_s:.0} tokens/s")?;
        write!(f, "; {:.1} s in all", self.seconds_waited)?;
        if self.inherited + self.abandoned > 0 {
            write!(f, "; taken over: {} had ended, {} abandoned", self.inherited, self.abandoned)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_held_out_loss_of_a_checkpoint_says_of_when_it_is() {
        let heldout_loss = Some(5.5487);
        let mut kept =
            KeptReport { microbatches: 284, heldout_loss, heldout_after: Some(0), ..KeptReport::default() };
        assert!(
            kept.to_string()
                .contains("284 microbatches, 0.0 MB, held-out loss 5.5487 nats/token after 0 microbatches")
        );
        kept.heldout_after = None;
        assert!(
            kept.to_string().ends_with("held-out loss 5.5487 nats/token"),
            "an earlier version did not say"
        );
    }
}
