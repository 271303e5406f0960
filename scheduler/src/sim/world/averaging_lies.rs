//! A liar in averaging rounds: its machine works as any other, and what it sends says something else.

use crate::averaging::{Content, WEIGHT_MAX};
use crate::{Envelope, Message, PeerId};

use super::super::act::Act;
use super::super::payload::Payload;
use super::World;

/// What is added to each wild number: far more than a run can learn.
const WILD: f64 = 1e12;

/// How a message of a liar leaves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    AsItIs,
    Falsified,
    Nothing,
}

impl World {
    /// Sends what a replica says, or what it says instead while it lies about averaging or about its state.
    pub(super) fn say(&mut self, index: usize, to: PeerId, mut envelope: Envelope<Payload>) {
        let me = self.replicas[index].instance;
        let said = self.act_of(index).map_or(Said::AsItIs, |(act, _)| falsify(act, to, &mut envelope));
        if said != Said::AsItIs {
            self.model.path("lied in a round");
            self.model.means.lies(me);
        }
        if said == Said::Nothing {
            return;
        }
        if let Message::Averaging(message) = &envelope.message {
            let rule = self.model.means.send(me, message, &envelope.payload);
            self.model.check(rule);
        }
        let envelope = self.forge_transfer(index, to, envelope);
        self.post(me, to, envelope);
    }
}

fn falsify(act: Act, to: PeerId, envelope: &mut Envelope<Payload>) -> Said {
    let Message::Averaging(message) = &mut envelope.message else { return Said::AsItIs };
    match (act, &mut message.content) {
        (Act::HugeWeight, Content::Contribution { weight }) => *weight = WEIGHT_MAX,
        (Act::WildNumbers, Content::Contribution { .. }) => shift(&mut envelope.payload, WILD),
        (Act::TwoMeans, Content::Accept { .. }) if is_even(to) => shift(&mut envelope.payload, 1.0),
        (Act::SilentOwner, Content::Accept { .. } | Content::Accepted { .. } | Content::Empty { .. }) => {
            return Said::Nothing;
        }
        _ => return Said::AsItIs,
    }
    Said::Falsified
}

/// Every second key.
fn is_even(peer: PeerId) -> bool {
    peer.0[0].is_multiple_of(2)
}

fn shift(payload: &mut Payload, by: f64) {
    if let Payload::Numbers(numbers) = payload {
        numbers.values.iter_mut().for_each(|number| *number += by);
    }
}
