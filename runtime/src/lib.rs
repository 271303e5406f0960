//! Trains transformers that no single machine holds: the library behind the `swarmline` command.
//!
//! A run has one [`Coordinator`], a [`Feeder`] that injects microbatches, and [`Replica`]s that serve its stages. Each
//! of them opens its port first, and then runs until the run is over or the caller stops it. In this example all of
//! them share a process and train on real text over real sockets:
//!
//! ```
//! use std::future::pending;
//! use std::path::Path;
//!
//! use swarmline::report::Reporter;
//! use swarmline::{
//!     Coordinator, CoordinatorOptions, Feeder, FeederOptions, Identity, Outcome, Replica, ReplicaOptions, Run,
//! };
//!
//! const RUN: &str = r#"
//!     [model]
//!     hidden_size = 32
//!     num_hidden_layers = 2
//!     max_position_embeddings = 32
//!
//!     [pipeline]
//!     stages = 2
//!
//!     [optimizer]
//!     steps = 4
//!
//!     [data]
//!     paths = ["src"]
//!     extensions = ["rs"]
//! "#;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let run = Run::parse(RUN, "the run of this example", Path::new("."))?;
//! let coordinator = Coordinator::bind(CoordinatorOptions::new(run, Identity::ephemeral()?)).await?;
//! let invite = coordinator.invite().clone();
//! let first = Replica::join(ReplicaOptions::new(invite.clone(), Identity::ephemeral()?));
//! let second = Replica::join(ReplicaOptions::new(invite.clone(), Identity::ephemeral()?));
//! let feeder = Feeder::open(FeederOptions::new(invite, Identity::ephemeral()?));
//!
//! let reporter = Reporter::silent();
//! // Peers get in once the coordinator runs, so all of them are polled together.
//! let outcomes = tokio::try_join!(
//!     coordinator.run(&reporter, pending()),
//!     async { first.await?.run(&reporter, pending()).await },
//!     async { second.await?.run(&reporter, pending()).await },
//!     async { feeder.await?.run(&reporter, pending()).await },
//! )?;
//! assert_eq!(outcomes.3, Outcome::Finished);
//! # Ok(())
//! # }
//! ```
//!
//! A process reports [`report::Event`]s; a fault is a [`report::Incident`]. [`train`] trains the whole model of a run
//! in this process, as a reference. `swarmline_scheduler` has the rules and `swarmline_kernels` the arithmetic; this
//! crate has the threads, sockets, weights and files.
//!
//! The feature `internals` makes the modules public that tests and benchmarks of this workspace use. Their interface is
//! not stable.

// Without `internals`, some parts of those modules are unused: only tests and benchmarks use them.
#![cfg_attr(not(feature = "internals"), allow(dead_code, unreachable_pub, unused_imports))]

mod atomic_file;
#[doc(hidden)]
pub mod cli;
pub mod config;
mod coordinator;
pub mod error;
pub mod export;
mod feeder;
pub mod generate;
mod hashing;
mod import;
mod keeper;
mod outcome;
mod process;
mod reader;
mod replica;
pub mod report;
mod telemetry;
pub mod train;

#[cfg(feature = "internals")]
pub mod averaging;
#[cfg(not(feature = "internals"))]
mod averaging;
#[cfg(feature = "internals")]
pub mod bench;
#[cfg(not(feature = "internals"))]
mod bench;
#[cfg(feature = "internals")]
pub mod checkpoint;
#[cfg(not(feature = "internals"))]
mod checkpoint;
#[cfg(feature = "internals")]
pub mod data;
#[cfg(not(feature = "internals"))]
mod data;
#[cfg(feature = "internals")]
pub mod model;
#[cfg(not(feature = "internals"))]
mod model;
#[cfg(feature = "internals")]
pub mod net;
#[cfg(not(feature = "internals"))]
mod net;
#[cfg(feature = "internals")]
pub mod optim;
#[cfg(not(feature = "internals"))]
mod optim;
#[cfg(feature = "internals")]
pub mod packing;
#[cfg(not(feature = "internals"))]
mod packing;
#[cfg(feature = "internals")]
pub mod stage;
#[cfg(not(feature = "internals"))]
mod stage;
#[cfg(feature = "internals")]
pub mod subspace;
#[cfg(not(feature = "internals"))]
mod subspace;

#[cfg(feature = "internals")]
pub mod weights;
#[cfg(not(feature = "internals"))]
mod weights;

pub use config::Run;
pub use coordinator::{Coordinator, CoordinatorOptions, Resume, RunFolder};
pub use error::Error;
pub use feeder::{Feeder, FeederOptions};
pub use keeper::{Every, Keeper, KeeperOptions};
pub use net::{Identity, Invite};
pub use outcome::Outcome;
pub use reader::{Reader, ReaderOptions};
pub use replica::{Replica, ReplicaOptions};
pub use swarmline_kernels::{Profile, device};
pub use swarmline_scheduler::{PeerId, StageIndex};
