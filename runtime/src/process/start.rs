//! The beginning of a process: the numbers that tell its starts apart from each other and from those of another process
//! with its key, and its request to join.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use swarmline_scheduler::{Incarnation, ProcessNumber, Role};

use crate::error::Error;
use crate::net::control::{ControlError, Registration};
use crate::net::identity::IdentityError;
use crate::report::{Event, Incident, Reporter};

/// How long a process asks for the place of another process with its key. One that has died is taken for alive for 4 s, by
/// the clock of its coordinator.
const ASK_WITHIN: Duration = Duration::from_secs(8);
/// Pause between two such requests.
const ASK_PAUSE: Duration = Duration::from_millis(500);

/// The number of this start of a process: nanoseconds since 1970, so a later start has a higher number unless the clock went
/// back.
pub(crate) fn incarnation() -> Incarnation {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Incarnation(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// A request of this process to join as another start, for the first time or again.
///
/// # Errors
/// If the system gives no random bytes.
pub(crate) fn registration(role: Role, data_address: SocketAddr) -> Result<Registration, IdentityError> {
    let process = process_number()?;
    let incarnation = incarnation();
    Ok(Registration { incarnation, process, take_over: false, role, data_address, holds: None })
}

fn process_number() -> Result<ProcessNumber, IdentityError> {
    static NUMBER: OnceLock<u64> = OnceLock::new();
    let drawn = NUMBER.get().copied().map_or_else(getrandom::u64, Ok).map_err(IdentityError::Entropy)?;
    Ok(ProcessNumber(*NUMBER.get_or_init(|| drawn)))
}

/// Asks to join until the place of another process with the key of this one is free. The other may be a former start that
/// has just died, so a refusal is final after [`ASK_WITHIN`] only.
///
/// # Errors
/// As `join`.
pub(crate) async fn join_after_former<T, F>(reporter: &Reporter, join: impl Fn() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut asked = None;
    loop {
        match join().await {
            Err(Error::Control(ControlError::AlreadyRunning(reason)))
                if asked.is_none_or(|asked: Instant| asked.elapsed() < ASK_WITHIN) =>
            {
                if asked.is_none() {
                    reporter
                        .tell(&Event::Incident(Incident::KeyInUse { reason, seconds: ASK_WITHIN.as_secs() }));
                }
                asked.get_or_insert_with(Instant::now);
                tokio::time::sleep(ASK_PAUSE).await;
            }
            joined => return joined,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_starts_of_one_process_have_its_number_and_later_ones_are_later() {
        let start = || registration(Role::Replica, SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let (first, second) = (start(), start());
        assert_eq!(first.process, second.process);
        assert!(first.incarnation <= second.incarnation);
    }
}
