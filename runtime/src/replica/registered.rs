//! A replica before it serves: registration, placement, the shard on its device, the data plane.
//!
//! A replica that was expelled registers as another start, with the state that it had: no other process may have a newer
//! one.

use std::net::{SocketAddr, UdpSocket};
use std::ops::ControlFlow;
use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use swarmline_scheduler::averaging::FragmentSize;
use swarmline_scheduler::feeder::Divergence;
use swarmline_scheduler::replica::{Begin, Config};
use swarmline_scheduler::router::RouterFactory as _;
use swarmline_scheduler::transfer::SketchSecret;
use swarmline_scheduler::{Directive, Instance, Role, StageIndex, Table, stage};
use tokio::sync::watch;

use super::applied_log::AppliedLog;
use super::notes::Notes;
use super::options::ReplicaOptions;
use super::serving::{Handles, Serving};
use super::shard::ShardBuilder;
use crate::config::{Manifest, Mode, Run};
use crate::error::Error;
use crate::net::control::{Control, ControlError, Placement, Registration};
use crate::net::digest::ManifestDigest;
use crate::net::quic::{BindError, bind_socket};
use crate::net::table_log::TableReader;
use crate::outcome::Outcome;
use crate::process::{Contact, Heartbeats, Network, NetworkOptions, join_after_former, registration};
use crate::report::{Event, Reporter};
use crate::stage::{Executor, chunk_digest, chunk_sketch, download_limits};

/// Pause between two attempts of an expelled process to register again while the coordinator cannot be reached.
const ATTEMPT_PAUSE: Duration = Duration::from_secs(1);

/// How long a process that was placed waits for the table that says so.
const TABLE_WITHIN: Duration = Duration::from_secs(10);

/// The place of a replica: weights that were learned there are of use nowhere else. A coordinator may begin another run
/// under its key, or the same run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    stage: StageIndex,
    manifest: ManifestDigest,
    launch: u64,
}

/// The state of a stage that a process had when it was expelled.
#[derive(Debug)]
pub(super) struct Kept {
    place: Place,
    /// The state, as a donor sends it.
    state: Bytes,
}

impl Kept {
    /// The state, if it is one of this place.
    fn of(self, place: Place) -> Option<Bytes> {
        let fits = self.place == place;
        if !fits {
            tracing::warn!(
                "the weights that this process has kept are of {:?}, not {place:?}; dropped",
                self.place
            );
        }
        fits.then_some(self.state)
    }
}

/// A member of the run that does not serve yet.
#[derive(Debug)]
pub(super) struct Registered {
    control: Control,
    run: Run,
    digest: ManifestDigest,
    placement: Placement,
    table: TableReader,
    heartbeats: Heartbeats,
    contact: Contact,
    socket: UdpSocket,
    address: SocketAddr,
    me: Instance,
    kept: Option<Kept>,
    sketch_secret: SketchSecret,
}

/// The purpose of the secret that a joiner compares donors with.
const SKETCHES: &str = "swarmline 2026-11-28 seeds of the sketches of states";

impl Registered {
    /// Opens the port and joins the run.
    pub(super) async fn register(
        options: &ReplicaOptions,
        kept: Option<&Kept>,
        take_over: bool,
    ) -> Result<Self, Error> {
        let socket = bind_socket(options.listen)?;
        let address = socket.local_addr().map_err(Error::Address)?;
        let holds = kept.map(|kept| kept.place.stage);
        let registration = Registration { take_over, holds, ..registration(Role::Replica, address)? };
        let (control, joined) = Control::join(&options.invite, &options.identity, registration).await?;
        // A secret of this start alone: donors learn the seeds drawn from it.
        let purpose = format!("{SKETCHES}, start {}", control.start().0);
        let sketch_secret = SketchSecret(options.identity.derive_secret(&purpose));
        let heartbeats = Heartbeats::start(control.clone());
        Ok(Self {
            sketch_secret,
            run: Manifest::from_bytes(&joined.manifest)?.run().clone(),
            digest: joined.digest,
            placement: joined.placement,
            table: control.follow(joined.tables),
            contact: heartbeats.contact(options.patience),
            heartbeats,
            me: Instance::new(options.identity.peer(), control.start()),
            control,
            socket,
            address,
            kept: None,
        })
    }

    /// Registers an expelled process again, as soon as the coordinator can be reached.
    pub(super) async fn register_again(
        options: &ReplicaOptions,
        kept: Option<Kept>,
        reporter: &Reporter,
    ) -> Result<Self, Error> {
        let (silent, silent_since) = watch::channel(None);
        let mut contact = Contact::new(silent_since, options.patience);
        let register = async {
            loop {
                let register = || Self::register(options, kept.as_ref(), false);
                match join_after_former(reporter, register).await {
                    Err(Error::Control(ControlError::Connect(_) | ControlError::Silent { .. })) => {
                        silent.send_if_modified(|since| {
                            since.replace(since.unwrap_or_else(Instant::now)).is_none()
                        });
                        tokio::time::sleep(ATTEMPT_PAUSE).await;
                    }
                    registered => return registered,
                }
            }
        };
        let registered = tokio::select! {
            registered = register => registered?,
            () = contact.patience_ends(reporter) => {
                return Err(contact.given_up("it was no member any more, and its weights are gone"));
            }
        };
        Ok(Self { kept, ..registered })
    }

    /// The state that the process had when it was expelled, if it had one.
    pub(super) fn take_kept(&mut self) -> Option<Kept> {
        self.kept.take()
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn stage(&self) -> Option<u16> {
        if let Placement::Stage(stage) = self.placement { Some(stage.0) } else { None }
    }

    pub(super) async fn leave(&mut self) {
        self.control.leave("done").await;
    }

    /// Waits for a stage, unless there is one, serves it, and leaves.
    pub(super) async fn take_part(
        &mut self,
        options: &ReplicaOptions,
        reporter: &Reporter,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Outcome, Error> {
        let stage = tokio::select! {
            () = stop.as_mut() => return Ok(Outcome::Stopped),
            placed = self.wait_for_stage(reporter) => match placed? {
                ControlFlow::Continue(stage) => stage,
                ControlFlow::Break(outcome) => return Ok(outcome),
            },
        };
        let (place, serving) = tokio::select! {
            () = stop.as_mut() => return Ok(Outcome::Stopped),
            prepared = Box::pin(async {
                let place = self.place(stage).await;
                self.prepare(place, options, reporter).await.map(|serving| (place, serving))
            }) => prepared?,
        };
        let mut state = None;
        let ended = Box::pin(serving.run(reporter, options.save.as_deref(), &mut state, stop)).await;
        self.kept = state.map(|state| Kept { place, state });
        ended
    }

    /// The place of this replica. A coordinator that was started again knows its launch when it places replicas, so the
    /// table that places this one names it.
    async fn place(&self, stage: StageIndex) -> Place {
        let mut tables = self.table.clone();
        let is_placed =
            |table: &Table| table.get(self.me).is_some_and(|member| member.state.stage() == Some(stage));
        let placed = async { while !is_placed(&tables.table()) && tables.changed().await.is_ok() {} };
        // Without it the newest table is the best guess.
        let _ = tokio::time::timeout(TABLE_WITHIN, placed).await;
        Place { stage, manifest: self.digest, launch: self.table.table().rest().launch }
    }

    /// The stage of this replica; an outcome if the run ends before the replica gets a stage.
    async fn wait_for_stage(
        &mut self,
        reporter: &Reporter,
    ) -> Result<ControlFlow<Outcome, StageIndex>, Error> {
        match self.placement {
            Placement::Stage(stage) => return Ok(ControlFlow::Continue(stage)),
            Placement::Standby => {
                let awaited = self.table.table().rest().awaited.iter().map(|stage| stage.0).collect();
                reporter.tell(&Event::Standby { stages: self.run.pipeline.stages, awaited });
            }
            Placement::Feeder { .. } | Placement::Keeper { .. } | Placement::Reader { .. } => {
                let fault = "it does not take this process for a replica".to_owned();
                return Err(ControlError::Reply(fault).into());
            }
        }
        loop {
            let directive = tokio::select! {
                directive = self.heartbeats.directive() => directive?,
                () = self.contact.patience_ends(reporter) => {
                    return Err(self.contact.given_up("it had no stage yet"));
                }
            };
            match directive {
                Directive::Continue => {}
                Directive::Serve(stage) => return Ok(ControlFlow::Continue(stage)),
                Directive::Finished => return Ok(ControlFlow::Break(Outcome::Finished)),
                Directive::Diverged { at } => {
                    return Err(Error::Diverged { at, sign: Divergence::Reported });
                }
                Directive::Leave(_) => return Ok(ControlFlow::Break(Outcome::Stopped)),
            }
        }
    }

    /// Builds the shard and starts the data plane.
    async fn prepare(
        &mut self,
        place: Place,
        options: &ReplicaOptions,
        reporter: &Reporter,
    ) -> Result<Serving, Error> {
        let stage = place.stage;
        reporter.tell(&self.placed(stage));
        let config = self.stage_config(stage);
        let kept = self.kept.take().and_then(|kept| kept.of(place));
        let begin = self.begin(stage, options, kept.is_some());
        let builder = ShardBuilder {
            kept,
            run: self.run.clone(),
            stage,
            stashes: config.slots + config.retries_max(),
            resume: options.resume.clone(),
            parameter_log: options.parameter_log.clone(),
        };
        let setup = options.setup;
        let executor = Executor::start(config.jobs_max(), move || setup.run(builder)).await?;
        let network_options = NetworkOptions {
            run: &self.run,
            digest: self.digest,
            identity: &options.identity,
            incarnation: self.me.incarnation,
            window: config.slots,
        };
        let socket = self.socket.try_clone();
        let socket = socket.map_err(|source| BindError::Socket { address: self.address, source })?;
        let (network, arrivals) = Network::start(&network_options, socket, &self.table.table())?;
        let machine = self.machine_config(config, executor.fragment_size(), begin);
        let router = self.run.pipeline.router.build(self.run.seed);
        let handles = Handles {
            executor,
            network,
            arrivals,
            table: self.table.clone(),
            heartbeats: self.heartbeats.clone(),
            contact: self.contact.clone(),
            control: self.control.clone(),
            notes: Notes::new(stage, options.applied_log.as_deref().map(AppliedLog::open).transpose()?),
        };
        Ok(Serving::new(swarmline_scheduler::Replica::new(machine, router), &self.run, handles))
    }

    fn placed(&self, stage: StageIndex) -> Event {
        let layers = self.run.layers_of(stage);
        Event::Placed {
            stage: stage.0,
            stages: self.run.pipeline.stages,
            first_layer: layers.start,
            end_layer: layers.end,
            parameters: self.run.stage_parameters(stage),
        }
    }

    fn stage_config(&self, stage: StageIndex) -> stage::Config {
        let pipeline = &self.run.pipeline;
        let mut config = stage::Config::new(self.me, stage, self.run.last_stage().0 + 1);
        // A window that grows is shared by more replicas. Each has room for twice the initial window: for a second feeder,
        // and for the microbatches of a lost neighbour.
        config.slots = 2 * pipeline.initial_in_flight.max(pipeline.gradient_accumulation_steps);
        config.synchronous = pipeline.mode == Mode::Synchronous;
        config
    }

    fn begin(&self, stage: StageIndex, options: &ReplicaOptions, has_kept: bool) -> Begin {
        let limits = download_limits(&self.run, stage);
        match &options.resume {
            _ if has_kept => Begin::Kept(limits),
            Some(_) => Begin::Given,
            None => Begin::FromDonor(limits),
        }
    }

    fn machine_config(
        &self,
        stage: stage::Config,
        fragment_size: FragmentSize,
        begin: Begin,
    ) -> Config<Bytes> {
        let averaging = &self.run.averaging;
        let fragments = if averaging.interval > 0 { averaging.fragments } else { 0 };
        Config {
            stage,
            gradient_accumulation_steps: self.run.pipeline.gradient_accumulation_steps as u64,
            fragments,
            fragment_size,
            begin,
            weights: self.run.policy.weights,
            digest: chunk_digest,
            sketch: chunk_sketch,
            secret: self.sketch_secret,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_that_were_kept_are_of_use_in_their_place_only() {
        let place = Place { stage: StageIndex(1), manifest: ManifestDigest([1; 32]), launch: 7 };
        let kept = || Kept { place, state: Bytes::from_static(b"state") };
        assert!(kept().of(place).is_some());
        for other in [
            Place { stage: StageIndex(2), ..place },
            Place { manifest: ManifestDigest([2; 32]), ..place },
            Place { launch: 8, ..place },
        ] {
            assert_eq!(kept().of(other), None);
        }
    }
}
