//! A volunteer's way into a run: preflight, placement, shard, the state of the others, service, farewell.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::{Pin, pin};

use swarmline_kernels::Backend;
use swarmline_kernels::device::{Setup, Work};
use swarmline_scheduler::stage::Config;
use swarmline_scheduler::{Membership, Role, StageIndex};
use tokio::sync::watch;

use super::download::{self, Beginning, Newcomer};
use super::engine::{Engine, Learning};
use super::executor::{Compute, Executor};
use super::ledger::Ledger;
use super::server::{Server, Wiring};
use crate::clock::{self, Clock};
use crate::config::{Manifest, Mode, Run};
use crate::error::Error;
use crate::member::{Heart, Plan, start_plane};
use crate::net::control::{Applicant, Control, Directive, Placement};
use crate::net::digest::ManifestDigest;
use crate::net::quic::bind_socket;
use crate::net::{Identity, Invite};
use crate::report::{Event, Reporter};

/// A process that was taken for gone joins anew this often; then something is wrong with it.
const REJOINS_MAX: u32 = 1_000;

/// How to take part as a replica.
#[derive(Clone, Debug)]
pub struct JoinOptions {
    /// The coordinator.
    pub invite: Invite,
    /// This peer's key.
    pub identity: Identity,
    /// Where the data plane listens.
    pub listen: SocketAddr,
    /// What computes.
    pub setup: Setup,
    /// Where to write the stage's weights at the end.
    pub save: Option<PathBuf>,
    /// Where to take initial weights from, instead of the run's seed or another replica of the stage.
    pub resume: Option<PathBuf>,
    /// Where to record every parameter that was ever present in this process.
    pub parameter_log: Option<PathBuf>,
    /// Where to append stage and id of every microbatch whose gradients are applied.
    pub ledger: Option<PathBuf>,
}

impl JoinOptions {
    /// On loopback with any free port and one computing thread of the CPU; starts from the run's seed and writes no file.
    #[must_use]
    pub fn new(invite: Invite, identity: Identity) -> Self {
        Self {
            invite,
            identity,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            setup: Setup::cpu(1),
            save: None,
            resume: None,
            parameter_log: None,
            ledger: None,
        }
    }
}

/// Joins a run and serves the stage it is given, until the run is over or `stop` resolves; then hands over and leaves.
///
/// # Errors
/// If the coordinator cannot be reached or says no, the device has no memory for the shard, or a file cannot be read
/// or written.
pub async fn join(
    options: JoinOptions,
    reporter: &Reporter,
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    let mut stop = pin!(stop);
    for _ in 0..REJOINS_MAX {
        match join_once(&options, reporter, stop.as_mut()).await {
            Err(Error::Expelled(reason)) => reporter.tell(&Event::Incident {
                message: format!("{reason}. What this process held is void; it joins anew"),
            }),
            outcome => return outcome,
        }
    }
    Err(Error::Expelled(format!(
        "the coordinator took this process for gone {REJOINS_MAX} times; is the connection to it good enough?"
    )))
}

/// One start of a replica: a new incarnation that knows nothing.
async fn join_once(
    options: &JoinOptions,
    reporter: &Reporter,
    mut stop: Pin<&mut impl Future<Output = ()>>,
) -> Result<(), Error> {
    tokio::select! {
        () = stop.as_mut() => Ok(()),
        entered = Entered::knock(options) => {
            let mut entered = entered?;
            let outcome = entered.take_part(options, reporter, stop).await;
            entered.control.leave("done").await;
            outcome
        }
    }
}

/// A member of the run that does not serve yet.
struct Entered {
    control: Control,
    run: Run,
    digest: ManifestDigest,
    placement: Placement,
    table: watch::Receiver<Membership>,
    heart: Heart,
    socket: Option<std::net::UdpSocket>,
    applicant: Applicant,
}

impl Entered {
    async fn knock(options: &JoinOptions) -> Result<Self, Error> {
        let socket = bind_socket(options.listen)?;
        let data_address = socket.local_addr().map_err(|error| Error::Network(error.to_string()))?;
        let applicant = Applicant { incarnation: clock::incarnation(), role: Role::Replica, data_address };
        let (control, entrance) = Control::enter(&options.invite, &options.identity, applicant).await?;
        let run = Manifest::from_bytes(&entrance.manifest)?.run().clone();
        let (table, _) = control.follow(entrance.membership);
        let heart = Heart::start(control.clone());
        let (digest, placement) = (entrance.digest, entrance.placement);
        Ok(Self { control, run, digest, placement, table, heart, socket: Some(socket), applicant })
    }

    async fn take_part(
        &mut self,
        options: &JoinOptions,
        reporter: &Reporter,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), Error> {
        let stage = match self.placement {
            Placement::Stage(stage) => stage,
            Placement::Standby => {
                reporter.tell(&Event::Standby { stages: self.run.pipeline.stages });
                tokio::select! {
                    () = stop.as_mut() => return Ok(()),
                    stage = self.called_up() => match stage? {
                        Some(stage) => stage,
                        None => return Ok(()),
                    },
                }
            }
            Placement::Feeder { .. } => {
                return Err(Error::Network("the coordinator takes this replica for a feeder".to_owned()));
            }
        };
        tokio::select! {
            () = stop.as_mut() => Ok(()),
            server = Box::pin(self.prepare(stage, options, reporter)) => match server? {
                Some(server) => Box::pin(server.serve(reporter, options.save.as_deref(), stop)).await,
                None => Ok(()),
            },
        }
    }

    /// A standby waits until a stage needs it; `None` when the run ends first.
    async fn called_up(&mut self) -> Result<Option<StageIndex>, Error> {
        loop {
            match self.heart.directive().await? {
                Directive::Continue => {}
                Directive::Serve(stage) => return Ok(Some(stage)),
                Directive::Finished | Directive::Leave(_) => return Ok(None),
            }
        }
    }

    /// Builds the shard, opens the data plane and takes over what others of the stage have learned, then tells the
    /// coordinator; `None` if the run ends first.
    async fn prepare(
        &mut self,
        stage: StageIndex,
        options: &JoinOptions,
        reporter: &Reporter,
    ) -> Result<Option<Server>, Error> {
        let layers = self.run.layers_of(stage);
        reporter.tell(&Event::Placed {
            stage: stage.0,
            stages: self.run.pipeline.stages,
            first_layer: layers.start,
            end_layer: layers.end,
            parameters: self.run.stage_parameters(stage),
        });
        let me = options.identity.peer();
        let last = self.run.last_stage().0;
        let config = Config {
            // A feeder keeps at most the run's window in flight; the rest is room for a second one, or for what a
            // lost neighbour had.
            slots: 2 * self.run.pipeline.max_in_flight.max(self.run.pipeline.gradient_accumulation_steps),
            in_step: self.run.pipeline.mode == Mode::Synchronous,
            ..Config::new(me, self.applicant.incarnation, stage, last + 1)
        };
        let executor = self.start_executor(stage, &config, options).await?;
        let plan = Plan {
            run: &self.run,
            digest: self.digest,
            incarnation: self.applicant.incarnation,
            identity: &options.identity,
            window: config.slots,
        };
        let socket = self.socket.take();
        let socket = socket.ok_or_else(|| Error::Defect("a replica is prepared once".to_owned()))?;
        let (plane, mut arrivals, trust) = start_plane(&plan, socket, &self.table.borrow())?;
        let clock = Clock::start();
        if options.resume.is_none() {
            let wiring = download::Wiring {
                executor: &executor,
                plane: &plane,
                arrivals: &mut arrivals,
                trust: &trust,
                table: &mut self.table,
                heart: &mut self.heart,
                reporter,
                clock,
            };
            if Newcomer::new(&self.run, me, stage, wiring).take_state().await? == Beginning::None {
                return Ok(None);
            }
        }
        self.control.ready(stage).await?;
        reporter.tell(&Event::Serving { stage: stage.0 });
        Ok(Some(Server::new(
            config,
            &self.run,
            Wiring {
                executor,
                plane,
                arrivals,
                trust,
                table: self.table.clone(),
                heart: self.heart.clone(),
                control: self.control.clone(),
                ledger: options.ledger.as_deref().map(Ledger::open).transpose()?,
            },
            clock,
        )))
    }

    async fn start_executor(
        &self,
        stage: StageIndex,
        config: &Config,
        options: &JoinOptions,
    ) -> Result<Executor, Error> {
        let begin = Begin {
            run: self.run.clone(),
            stage,
            stashes: config.slots + config.restored_max(),
            resume: options.resume.clone(),
            parameter_log: options.parameter_log.clone(),
        };
        let setup = options.setup;
        Executor::start(config.jobs_max(), move || setup.run(begin)).await
    }
}

/// What an engine begins with, on whichever device.
struct Begin {
    run: Run,
    stage: StageIndex,
    stashes: usize,
    resume: Option<PathBuf>,
    parameter_log: Option<PathBuf>,
}

impl Work for Begin {
    type Output = Result<Box<dyn Compute>, Error>;

    fn on<B: Backend>(self, mut open: impl FnMut() -> swarmline_kernels::Result<B>) -> Self::Output {
        let mut engine = Engine::new(open()?, &self.run, self.stage, self.stashes, Learning::Active)?;
        engine.record_parameters(self.parameter_log)?;
        if let Some(path) = self.resume {
            let resumed = engine.resume(&path);
            engine.write_parameter_log()?;
            resumed?;
        }
        Ok(Box::new(engine))
    }
}
