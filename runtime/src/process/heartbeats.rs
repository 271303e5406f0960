//! Heartbeats of a member to its coordinator.

use std::time::{Duration, Instant};

use swarmline_scheduler::Directive;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::contact::Contact;
use crate::net::control::{Control, ControlError, HEARTBEAT_INTERVAL, HeartbeatReply, MemberStats};

/// Sends heartbeats for a member, however busy its loop is. Clones share them; the heartbeats end when every clone is
/// dropped.
#[derive(Clone, Debug)]
pub(crate) struct Heartbeats {
    stats: watch::Sender<MemberStats>,
    replies: watch::Receiver<Reply>,
    silent_since: watch::Receiver<Option<Instant>>,
}

/// The coordinator's latest reply.
#[derive(Clone, Debug)]
enum Reply {
    Heard(HeartbeatReply),
    NotAMember(String),
    Replaced(String),
    /// It does not take the process back.
    Refused(String),
}

impl Heartbeats {
    pub(crate) fn start(control: Control) -> Self {
        let (stats, current) = watch::channel(MemberStats::default());
        let (replied, replies) = watch::channel(Reply::Heard(HeartbeatReply {
            directive: Directive::Continue,
            blocks: Vec::new(),
            heldout: None,
        }));
        let (silent, silent_since) = watch::channel(None);
        tokio::spawn(send(control, current, replied, silent));
        Self { stats, replies, silent_since }
    }

    /// A view on the contact to the coordinator, which is given up when it was silent for `patience`.
    pub(crate) fn contact(&self, patience: Duration) -> Contact {
        Contact::new(self.silent_since.clone(), patience)
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
    /// [`ControlError::NotAMember`], [`ControlError::Replaced`] or [`ControlError::Refused`] if the process is no member
    /// any more; no further reply comes.
    pub(crate) async fn directive(&mut self) -> Result<Directive, ControlError> {
        self.reply().await.map(|reply| reply.directive)
    }

    /// The next reply of the coordinator.
    ///
    /// # Errors
    /// As [`Heartbeats::directive`].
    pub(crate) async fn reply(&mut self) -> Result<HeartbeatReply, ControlError> {
        if self.replies.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        match &*self.replies.borrow_and_update() {
            Reply::Heard(reply) => Ok(reply.clone()),
            Reply::NotAMember(reason) => Err(ControlError::NotAMember(reason.clone())),
            Reply::Replaced(reason) => Err(ControlError::Replaced(reason.clone())),
            Reply::Refused(reason) => Err(ControlError::Refused(reason.clone())),
        }
    }
}

async fn send(
    mut control: Control,
    stats: watch::Receiver<MemberStats>,
    replied: watch::Sender<Reply>,
    silent: watch::Sender<Option<Instant>>,
) {
    // After a heartbeat without a reply the next one goes at once.
    let mut beat = tokio::time::interval(HEARTBEAT_INTERVAL);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The clones hold the sender of `stats`.
    while stats.has_changed().is_ok() {
        beat.tick().await;
        let stats = *stats.borrow();
        match control.heartbeat(&stats).await {
            Ok(reply) => {
                silent.send_if_modified(|since| since.take().is_some());
                replied.send_replace(Reply::Heard(reply));
            }
            Err(ControlError::NotAMember(reason)) => {
                replied.send_replace(Reply::NotAMember(reason));
                return;
            }
            Err(ControlError::Replaced(reason)) => {
                replied.send_replace(Reply::Replaced(reason));
                return;
            }
            Err(ControlError::Refused(reason)) => {
                replied.send_replace(Reply::Refused(reason));
                return;
            }
            Err(error) => {
                tracing::info!(%error, "a heartbeat has no reply; the last membership table stays valid");
                silent.send_if_modified(|since| since.is_none() && since.replace(Instant::now()).is_none());
            }
        }
    }
}
