//! The contact of a member to its coordinator: whether it replies, and how long a member waits for it to reply again.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::error::Error;
use crate::report::{Event, Incident, Reporter};

/// How long a member goes on without its coordinator, unless its options say otherwise.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30 * 60);

/// The view of one loop on the contact. People are told of an absence at its beginning, and of its end.
#[derive(Clone, Debug)]
pub(crate) struct Contact {
    /// Time of the first request without a reply; `None` while the coordinator replies.
    silent_since: watch::Receiver<Option<Instant>>,
    patience: Duration,
    /// The absence that people know of.
    told: Option<Instant>,
    has_ended: bool,
}

impl Contact {
    pub(crate) fn new(silent_since: watch::Receiver<Option<Instant>>, patience: Duration) -> Self {
        Self { silent_since, patience, told: None, has_ended: false }
    }

    /// Tells people when the coordinator falls silent, and when it replies again. Resolves once: when the patience is over.
    pub(crate) async fn patience_ends(&mut self, reporter: &Reporter) {
        while !self.has_ended {
            let silent_since = *self.silent_since.borrow_and_update();
            self.tell(silent_since, reporter);
            let patience = async {
                match silent_since {
                    Some(since) => tokio::time::sleep_until((since + self.patience).into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.silent_since.changed() => if changed.is_err() { break },
                () = patience => {
                    self.has_ended = true;
                    return;
                }
            }
        }
        std::future::pending::<()>().await;
    }

    /// The error of a process that has left after that, and `kept` this of its work.
    pub(crate) fn given_up(&self, kept: &'static str) -> Error {
        Error::CoordinatorGone { patience: self.patience, kept }
    }

    fn tell(&mut self, silent_since: Option<Instant>, reporter: &Reporter) {
        let incident = match (self.told, silent_since) {
            (None, Some(_)) => Incident::CoordinatorSilent { patience: self.patience.as_secs() },
            (Some(since), None) => Incident::CoordinatorBack { seconds: since.elapsed().as_secs() },
            (None, None) | (Some(_), Some(_)) => return,
        };
        self.told = silent_since;
        reporter.tell(&Event::Incident(incident));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A contact with this patience, and the incidents that it tells.
    fn contact(
        silent_since: &watch::Sender<Option<Instant>>,
        patience: Duration,
    ) -> (Contact, Reporter, Heard) {
        let heard = Heard::default();
        let sink = Arc::clone(&heard);
        let reporter = Reporter::to(move |event| sink.lock().unwrap().push(event.clone()));
        (Contact::new(silent_since.subscribe(), patience), reporter, heard)
    }

    type Heard = Arc<Mutex<Vec<Event>>>;

    #[tokio::test]
    async fn an_absence_is_told_at_its_beginning_and_at_its_end() {
        let (silent, _) = watch::channel(None);
        let (mut contact, reporter, heard) = contact(&silent, Duration::from_secs(3_600));
        for silence in [None, Some(Instant::now()), Some(Instant::now()), None] {
            silent.send_replace(silence);
            let ends = contact.patience_ends(&reporter);
            assert!(tokio::time::timeout(Duration::from_millis(20), ends).await.is_err());
        }
        let silence = Event::Incident(Incident::CoordinatorSilent { patience: 3_600 });
        let back = Event::Incident(Incident::CoordinatorBack { seconds: 0 });
        assert_eq!(*heard.lock().unwrap(), [silence, back]);
    }

    #[tokio::test]
    async fn the_patience_ends_once() {
        let (silent, _) = watch::channel(Some(Instant::now()));
        let (mut contact, reporter, _) = contact(&silent, Duration::from_millis(1));
        let ends = contact.patience_ends(&reporter);
        assert!(tokio::time::timeout(Duration::from_secs(30), ends).await.is_ok());
        let ends = contact.patience_ends(&reporter);
        assert!(tokio::time::timeout(Duration::from_millis(20), ends).await.is_err());
    }
}
