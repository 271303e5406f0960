//! The loss on held-out text, as a feeder measures it and the coordinator passes it on to keepers.

use swarmline_proto::v1;
use swarmline_scheduler::Loss;

use super::wire;

/// A loss on held-out text, and when it was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeldOut {
    /// Summed over the held-out text.
    pub loss: Loss,
    /// Microbatches of the run that had their outcome then; `None` if the feeder did not say.
    pub after: Option<u64>,
}

impl HeldOut {
    /// What a message says; `None` without a loss, or if that is no number.
    pub(crate) fn decode(loss: Option<&v1::Loss>, after: Option<u64>) -> Option<Self> {
        let loss = wire::decode_loss(loss?);
        loss.mean().is_finite().then_some(Self { loss, after })
    }

    /// The loss in a message.
    pub(crate) fn encode_loss(&self) -> v1::Loss {
        wire::encode_loss(self.loss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_that_is_no_number_is_none() {
        let sum = |sum| HeldOut::decode(Some(&v1::Loss { sum, tokens: 2 }), Some(7));
        assert_eq!(sum(5.0), Some(HeldOut { loss: Loss { sum: 5.0, tokens: 2 }, after: Some(7) }));
        assert_eq!((sum(f64::NAN), HeldOut::decode(None, Some(7))), (None, None));
    }
}
