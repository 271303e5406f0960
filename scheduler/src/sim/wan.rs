//! Distances and bandwidths of a swarm that is spread over the world.

use crate::{Duration, Envelope};

use super::payload::Payload;

/// The way from one region to another, and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Time of a message in one direction.
    pub delay: Duration,
    /// Bits a second.
    pub bandwidth: u64,
}

/// The lengths of frames, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameBytes {
    /// The token ids of a microbatch.
    pub ids: u64,
    /// An activation or a gradient at a cut.
    pub tensor: u64,
    /// What each number of a simulated state stands for. A fragment has 8 numbers, and a state has all fragments.
    pub number: u64,
}

impl FrameBytes {
    fn of(&self, envelope: &Envelope<Payload>) -> u64 {
        let ids = if envelope.ids == Payload::Empty { 0 } else { self.ids };
        let numbers = |count: usize| self.number.saturating_mul(count as u64);
        ids + match &envelope.payload {
            Payload::Empty | Payload::Tokens => 0,
            Payload::Activation | Payload::Gradient => self.tensor,
            Payload::Numbers(part) => numbers(part.values.len()),
            Payload::Chunk(words) => numbers(words.len()),
        }
    }
}

/// A swarm over several regions: each replica is in one of them. Coordinator, feeders and keeper are in the first.
#[derive(Clone, Debug)]
pub struct Wan {
    /// The ways between regions: row and column are numbers of regions. A way within a region is on the diagonal.
    pub paths: Vec<Vec<Path>>,
    /// The region of each replica, by index; the list repeats.
    pub regions: Vec<usize>,
    /// The rate of each replica's uplink, bits a second, by index; the list repeats. Empty: a frame takes what its way
    /// takes.
    pub uplinks: Vec<u64>,
    /// The lengths of frames.
    pub bytes: FrameBytes,
}

impl Wan {
    /// The way between two replicas; `None` stands for a process that is none.
    #[must_use]
    pub fn path(&self, from: Option<usize>, to: Option<usize>) -> Path {
        let region =
            |replica: Option<usize>| replica.map_or(0, |index| self.regions[index % self.regions.len()]);
        self.paths[region(from)][region(to)]
    }

    /// The rate of a replica's uplink; `None` if only its ways limit it.
    #[must_use]
    pub fn uplink(&self, replica: usize) -> Option<u64> {
        (!self.uplinks.is_empty()).then(|| self.uplinks[replica % self.uplinks.len()])
    }

    /// The time of a frame on the uplink of its sender. A feeder gets no gradient: token ids have none.
    pub(super) fn frame_time(
        &self,
        from: Option<usize>,
        to: Option<usize>,
        envelope: &Envelope<Payload>,
    ) -> Duration {
        if to.is_none() && envelope.payload == Payload::Gradient {
            return Duration::ZERO;
        }
        let limit = from.and_then(|from| self.uplink(from)).unwrap_or(u64::MAX);
        time_of(self.bytes.of(envelope), self.path(from, to).bandwidth.min(limit))
    }
}

/// The time of so many bytes at so many bits a second.
pub(super) fn time_of(bytes: u64, bits_per_s: u64) -> Duration {
    let nanos = u128::from(bytes) * 8 * 1_000_000_000 / u128::from(bits_per_s.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attempt, Loss, Message, MicrobatchId};

    fn wan() -> Wan {
        let path = |millis, bandwidth| Path { delay: Duration::from_millis(millis), bandwidth };
        Wan {
            paths: vec![
                vec![path(3, 1_000_000_000), path(80, 100_000_000)],
                vec![path(80, 100_000_000), path(3, 1_000_000_000)],
            ],
            regions: vec![0, 1],
            uplinks: vec![1_000_000_000, 10_000_000],
            bytes: FrameBytes { ids: 1_000, tensor: 1_000_000, number: 100 },
        }
    }

    #[test]
    fn a_frame_takes_what_the_narrower_of_uplink_and_way_takes() {
        let gradient = Envelope::with_payload(
            Message::Backward {
                microbatch: MicrobatchId(1),
                attempt: Attempt(0),
                loss: Loss::default(),
                path: Vec::new(),
            },
            Payload::Gradient,
        );
        let time = |from, to| wan().frame_time(from, to, &gradient).as_millis();
        assert_eq!([time(Some(0), Some(2)), time(Some(0), Some(1)), time(Some(1), Some(0))], [8, 80, 800]);
        assert_eq!(time(Some(1), None), 0, "token ids have no gradient");
    }

    #[test]
    fn processes_that_are_no_replicas_are_in_the_first_region() {
        let delay = |from, to| wan().path(from, to).delay.as_millis();
        assert_eq!([delay(None, Some(0)), delay(Some(3), None), delay(Some(1), Some(3))], [3, 80, 3]);
    }
}
