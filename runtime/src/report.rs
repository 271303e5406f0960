//! What a process of a run tells, for people or for programs.
//!
//! Every command speaks in [`Event`]s. A [`Reporter`] prints them either as one calm line each or, with `--json`, as one
//! JSON object a line; `swarmline demo` reads the latter from the processes it starts. A program that embeds swarmline gets
//! the events themselves from [`Reporter::to`].

mod event;
mod incident;
mod rate_limit;
mod reporter;
mod text;

pub use event::{Event, FeederReport, ProgressReport, ReplicaReport};
pub use incident::Incident;
pub use reporter::{Audience, Reporter};

pub(crate) use rate_limit::RateLimit;
