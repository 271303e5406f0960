//! A volunteer's process: one replica of one stage, around the scheduler's [`Replica`](swarmline_scheduler::Replica).
//!
//! `registered` joins the run: the coordinator gives the process a stage, and the shard is built. `serving` is the
//! loop: it waits for an event, passes it to the machine, and performs the machine's actions. The loop uses the other
//! files: `reductions` computes means, `copies` moves states in and out of the executor, `notes` reports to people and
//! metrics.

mod applied_log;
mod copies;
mod notes;
mod options;
mod reductions;
mod registered;
mod serving;
mod shard;
mod traffic;

use std::net::SocketAddr;
use std::pin::pin;

use swarmline_scheduler::PeerId;

use crate::atomic_file;
use crate::error::Error;
use crate::net::control::ControlError;
use crate::outcome::Outcome;
use crate::report::{Event, Incident, Reporter};

pub use options::ReplicaOptions;

use applied_log::AppliedLog;
use registered::Registered;

/// Limit of the times that an expelled process joins again.
const REJOINS_MAX: u32 = 1_000;

/// A replica that has joined a run.
///
/// ```no_run
/// use swarmline::{Identity, Replica, ReplicaOptions, report::{Audience, Reporter}};
///
/// # async fn volunteer(invite: swarmline::Invite) -> Result<(), Box<dyn std::error::Error>> {
/// let replica = Replica::join(ReplicaOptions::new(invite, Identity::ephemeral()?)).await?;
/// println!("listening on {}", replica.address());
/// let outcome = replica.run(&Reporter::new(Audience::People), std::future::pending()).await?;
/// # drop(outcome);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Replica {
    options: ReplicaOptions,
    registered: Registered,
}

impl Replica {
    /// Joins the run of the coordinator in `options`, which places the replica on a stage or lets it wait for one.
    ///
    /// # Errors
    /// If the coordinator cannot be reached or refuses, the port is taken, or a file of the options
    /// cannot be written.
    pub async fn join(options: ReplicaOptions) -> Result<Self, Error> {
        try_files(&options)?;
        let registered = Registered::register(&options, None, options.take_over).await?;
        Ok(Self { options, registered })
    }

    /// Address of the replica's data plane.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.registered.address()
    }

    /// Key of the replica.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.options.identity.peer()
    }

    /// The stage of the replica, from 0; `None` if it waits for a stage.
    #[must_use]
    pub fn stage(&self) -> Option<u16> {
        self.registered.stage()
    }

    /// Serves the stage until the run is over or `stop` resolves; then hands over and leaves. A replica that the
    /// coordinator took for dead joins again.
    ///
    /// # Errors
    /// If the coordinator refuses, the device fails or has no memory for the shard, or a file cannot be read or
    /// written.
    pub async fn run(self, reporter: &Reporter, stop: impl Future<Output = ()>) -> Result<Outcome, Error> {
        let Self { options, mut registered } = self;
        let mut stop = pin!(stop);
        let mut last_reason = String::new();
        for _ in 0..REJOINS_MAX {
            let ended = registered.take_part(&options, reporter, stop.as_mut()).await;
            registered.leave().await;
            let kept = registered.take_kept();
            // This frees the port.
            drop(registered);
            let Err(Error::Control(ControlError::NotAMember(reason))) = ended else { return ended };
            reporter.tell(&Event::Incident(Incident::Expelled { reason: reason.clone() }));
            last_reason = reason;
            registered = tokio::select! {
                () = stop.as_mut() => return Ok(Outcome::Stopped),
                registered = Registered::register_again(&options, kept, reporter) => registered?,
            };
        }
        Err(Error::ExpelledTooOften { reason: last_reason, times: REJOINS_MAX })
    }
}

/// Tries the files that the replica will write: better a refusal now than weights that are lost at the end.
fn try_files(options: &ReplicaOptions) -> Result<(), Error> {
    for path in [&options.save, &options.parameter_log].into_iter().flatten() {
        let failed = |error| Error::File { action: "write", path: path.clone(), error };
        atomic_file::try_place(path).map_err(failed)?;
    }
    options.applied_log.as_deref().map_or(Ok(()), |path| AppliedLog::open(path).map(drop))
}
