//! A lying donor at work.

use crate::transfer::{StateId, TransferMessage};
use crate::{Envelope, Message, PeerId, Time};

use super::super::donor_act::DonorAct;
use super::super::payload::Payload;
use super::World;

/// Chunks of a state that a donor gives before it falls silent.
const GIVEN: u32 = 4;
/// Offers of a donor to one joiner, each time that it says something to it.
const OFFERS: u64 = 16;

impl World {
    pub(super) fn lie_to_joiners(&mut self, index: usize, act: DonorAct, until: Time) {
        self.replicas[index].donor_act = Some((act, until));
        self.model.lying_donors.insert(self.replicas[index].instance.peer);
    }

    pub(super) fn donor_act(&self, index: usize) -> Option<DonorAct> {
        let (act, until) = self.replicas[index].donor_act?;
        (self.now() < until).then_some(act)
    }

    /// What a lying donor sends in place of a message of its machine.
    pub(super) fn forge_transfer(
        &mut self,
        index: usize,
        to: PeerId,
        mut envelope: Envelope<Payload>,
    ) -> Envelope<Payload> {
        let act = self.donor_act(index);
        let Message::Transfer(TransferMessage::Offer { state, manifest, age, clock }) = &mut envelope.message
        else {
            return envelope;
        };
        match act {
            Some(DonorAct::WrongManifest) if state.0.is_multiple_of(2) => manifest.bytes = u64::MAX,
            Some(DonorAct::WrongManifest) => manifest.hashes.truncate(1),
            Some(DonorAct::EndlessOffers) => {
                let me = self.replicas[index].instance;
                let others = (1..=OFFERS).map(|other| StateId(state.0.wrapping_add(other)));
                let (age, clock) = (*age, *clock);
                let offer = |state| TransferMessage::Offer { state, manifest: manifest.clone(), age, clock };
                let offers: Vec<_> = others.map(offer).collect();
                for offer in offers {
                    self.post(me, to, Message::Transfer(offer).into());
                }
            }
            _ => {}
        }
        envelope
    }

    /// The words of a chunk as a donor sends them; `None` if it sends nothing.
    pub(super) fn forge_chunk(&self, index: usize, chunk: u32, mut words: Vec<u64>) -> Option<Vec<u64>> {
        match self.donor_act(index) {
            Some(DonorAct::WrongChunks) => words.iter_mut().for_each(|word| *word ^= 1),
            Some(DonorAct::HalfAState) if chunk >= GIVEN => return None,
            _ => {}
        }
        Some(words)
    }
}
