//! The part of swarmline that decides.
//!
//! Pure and sans-IO: no socket, no clock, no entropy, no tensor. Time and seeds come in as arguments, so a
//! seed gives a run again, bit for bit. State machines have four verbs and nothing else: `handle(now, event)`,
//! `poll_action()`, `poll_timeout()` and getters. After every `handle`, drain the actions before the next.

mod id;
mod message;
mod time;

pub use id::{Attempt, Incarnation, MicrobatchId, PeerId, StageIndex, WeightVersion};
pub use message::{Hop, Loss, Member, Membership, Message, Purpose, Refusal, Role, Standing};
pub use time::{Duration, Time};
