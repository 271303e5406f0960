//! Heartbeats of a member to its coordinator.

use std::time::Instant;

use swarmline_scheduler::Directive;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::net::control::{Control, ControlError, HEARTBEAT_INTERVAL, MemberStats};

/// Sends heartbeats for a member, however busy its loop is. Clones share them; the heartbeats end when every clone is
/// dropped.
#[derive(Clone, Debug)]
pub(crate) struct Heartbeats {
    stats: watch::Sender<MemberStats>,
    replies: watch::Receiver<Reply>,
}

/// The coordinator's latest reply.
#[derive(Clone, Debug)]
enum Reply {
    Directive(Directive),
    NotAMember(String),
    /// It does not take the process back.
    Refused(String),
}

impl Heartbeats {
    pub(crate) fn start(control: Control) -> Self {
        let (stats, current) = watch::channel(MemberStats::default());
        let (replied, replies) = watch::channel(Reply::Directive(Directive::Continue));
        tokio::spawn(send(control, current, replied));
        Self { stats, replies }
    }

    /// Sets the counters of the next heartbeats.
    pub(crate) fn set_stats(&self, stats: MemberStats) {
        self.stats.send_replace(stats);
    }

    /// The counters of the next heartbeat.
    pub(crate) fn stats(&self) -> MemberStats {
        *self.stats.borrow()
    }

    /// The next directive of the coordinator.
    ///
    /// # Errors
    /// [`ControlError::NotAMember`] or [`ControlError::Refused`] if the process is no member any more; no further reply
    /// comes.
    pub(crate) async fn directive(&mut self) -> Result<Directive, ControlError> {
        if self.replies.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        match &*self.replies.borrow_and_update() {
            Reply::Directive(directive) => Ok(directive.clone()),
            Reply::NotAMember(reason) => Err(ControlError::NotAMember(reason.clone())),
            Reply::Refused(reason) => Err(ControlError::Refused(reason.clone())),
        }
    }
}

async fn send(mut control: Control, stats: watch::Receiver<MemberStats>, replied: watch::Sender<Reply>) {
    let mut silent_since = None;
    // After a heartbeat without a reply the next one goes at once.
    let mut beat = tokio::time::interval(HEARTBEAT_INTERVAL);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The clones hold the sender of `stats`.
    while stats.has_changed().is_ok() {
        beat.tick().await;
        let stats = *stats.borrow();
        match control.heartbeat(&stats).await {
            Ok(directive) => {
                silent_since = None;
                replied.send_replace(Reply::Directive(directive));
            }
            Err(ControlError::NotAMember(reason)) => {
                replied.send_replace(Reply::NotAMember(reason));
                return;
            }
            Err(ControlError::Refused(reason)) => {
                replied.send_replace(Reply::Refused(reason));
                return;
            }
            Err(error) => warn_once(&mut silent_since, &error),
        }
    }
}

/// Logs one line for each absence of the coordinator.
fn warn_once(silent_since: &mut Option<Instant>, error: &ControlError) {
    if silent_since.replace(Instant::now()).is_none() {
        tracing::warn!(%error, "the coordinator does not reply; the last membership table stays valid");
    }
}
