//! A state from donor to joiner, without a network.

use swarmline_scheduler::transfer::{
    Download, DownloadAction, DownloadEvent, SketchSecret, TransferMessage, Upload, UploadAction, UploadEvent,
};
use swarmline_scheduler::{Incarnation, Instance, PeerId, Time};

use super::*;
use crate::config::{Kind, Packing};
use crate::model::tests::tiny;

const NOW: Time = Time(1);
const STAGE: StageIndex = StageIndex(1);

fn instance(index: u8) -> Instance {
    Instance::new(PeerId([index; 32]), Incarnation(1))
}

/// Lets a joiner download `state` from one donor; returns the state that it imports, if any.
fn download(state: &Bytes, limits: Limits, tamper: impl Fn(u32, Bytes) -> Bytes) -> Option<Bytes> {
    let (joiner, donor) = (instance(1), instance(2));
    let mut upload = Upload::new();
    upload.handle(NOW, UploadEvent::Joiners(vec![joiner]));
    let mut download = Download::<Bytes>::new(limits, SketchSecret::default());
    download.handle(NOW, DownloadEvent::Donors(vec![donor]));
    let (mut copy, mut inbox) = (None, StateInbox::default());
    loop {
        let mut idle = true;
        while let Some(action) = download.poll_action() {
            idle = false;
            match action {
                DownloadAction::Send { message, .. } => {
                    upload.handle(NOW, UploadEvent::Received { from: joiner, message });
                }
                DownloadAction::Begin { bytes } => inbox.begin(bytes).unwrap(),
                DownloadAction::Store { offset, payload } => inbox.store(offset, &payload),
                DownloadAction::Import { .. } => return Some(inbox.into_bytes()),
                DownloadAction::Counted(_) => {}
            }
        }
        while let Some(action) = upload.poll_action() {
            idle = false;
            match action {
                UploadAction::Export { state: id } => {
                    copy = StateCopy::new(WeightVersion(5), state.clone());
                    let manifest = copy.as_ref().map(|copy| copy.manifest().clone());
                    upload.handle(NOW, UploadEvent::Exported { state: id, manifest });
                }
                UploadAction::Send { message: TransferMessage::Chunk { .. }, .. } => panic!("without bytes"),
                UploadAction::Send { message, .. } => {
                    download.handle(NOW, DownloadEvent::Received { from: donor, message });
                }
                UploadAction::SendChunk { state, chunk, offset, bytes, .. } => {
                    let payload = tamper(chunk, copy.as_ref().unwrap().chunk(offset, bytes));
                    let (bytes, hash) = chunk_digest(&payload);
                    let (from, sketch) = (donor, None);
                    let event = DownloadEvent::Chunk { from, state, chunk, bytes, hash, sketch, payload };
                    download.handle(NOW, event);
                }
                UploadAction::Sketch { .. } => panic!("there is one donor"),
                UploadAction::Release { .. } => copy = None,
                UploadAction::Counted(_) => {}
            }
        }
        if idle {
            return None;
        }
    }
}

fn long_state() -> Bytes {
    (0..(10 * CHUNK_BYTES + 17)).map(|i| (i % 251) as u8).collect()
}

#[test]
fn every_chunk_arrives_at_its_place() {
    let limits = Limits { bytes_max: 1 << 30, chunk_bytes_max: CHUNK_BYTES };
    for state in [Bytes::from_static(&[7]), long_state().slice(..3 * CHUNK_BYTES as usize), long_state()] {
        assert_eq!(download(&state, limits, |_, chunk| chunk), Some(state));
    }
}

#[test]
fn a_tampered_chunk_is_not_taken() {
    let limits = Limits { bytes_max: 1 << 30, chunk_bytes_max: CHUNK_BYTES };
    let flip = |chunk: u32, bytes: Bytes| {
        let mut bytes = bytes.to_vec();
        bytes[0] ^= u8::from(chunk == 9);
        bytes.into()
    };
    assert_eq!(download(&long_state(), limits, flip), None);
    let cut = |chunk, bytes: Bytes| if chunk == 10 { bytes.slice(1..) } else { bytes };
    assert_eq!(download(&long_state(), limits, cut), None);
}

#[test]
fn no_state_is_longer_than_its_stage_allows() {
    let run = tiny(Kind::Subspace, Packing::F32);
    assert_eq!(download(&long_state(), download_limits(&run, STAGE), |_, chunk| chunk), None);
}

#[test]
fn a_chunk_that_does_not_fit_is_left_out() {
    let mut inbox = StateInbox::default();
    inbox.begin(4).unwrap();
    inbox.store(3, &[1, 1]);
    inbox.store(u64::MAX, &[1]);
    inbox.store(2, &[8, 9]);
    assert_eq!(inbox.into_bytes(), [0, 0, 8, 9][..]);
    assert!(StateInbox::default().begin(u64::MAX).is_err());
}

/// A state of numbers: a header of 24 bytes, and the length before it.
fn state_of(numbers: impl Iterator<Item = f32>, counter: u8) -> StateCopy {
    let mut bytes = 24_u64.to_le_bytes().to_vec();
    bytes.extend([counter; 24]);
    bytes.extend(numbers.flat_map(f32::to_le_bytes));
    StateCopy::new(WeightVersion(1), bytes.into()).unwrap()
}

fn squared_distance(a: &[ChunkSketch], b: &[ChunkSketch]) -> f64 {
    let both = a.iter().flatten().zip(b.iter().flatten());
    both.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>() / 4.0
}

#[test]
fn the_distance_of_sketches_is_that_of_the_states_on_average() {
    const NUMBERS: u16 = 10_000;
    let numbers = |of: f32| (0..NUMBERS).map(move |place| f32::from(place % 97) + of * f32::from(place % 7));
    let (near, far) = (state_of(numbers(0.0), b'1'), state_of(numbers(0.1), b'9'));
    let expected: f64 = (0..NUMBERS).map(|place| f64::from(0.1 * f32::from(place % 7)).powi(2)).sum();
    let seeds = (0..400).map(SketchSeed);
    let mean = seeds.map(|seed| squared_distance(&near.sketch(seed), &far.sketch(seed))).sum::<f64>() / 400.0;
    assert!((0.8..1.25).contains(&(mean / expected)), "{mean} for {expected}");
    let twin = state_of(numbers(0.0), b'7');
    assert_eq!(near.sketch(SketchSeed(3)), twin.sketch(SketchSeed(3)), "counters are no numbers");
}

#[test]
fn the_sketch_of_a_chunk_is_that_of_its_state() {
    let copy = StateCopy::new(WeightVersion(1), long_state()).unwrap();
    let sketch = copy.sketch(SketchSeed(5));
    assert_eq!(sketch.len(), 11);
    for (chunk, of_state) in (0..).zip(&sketch) {
        let bytes = copy.chunk(u64::from(chunk * CHUNK_BYTES), CHUNK_BYTES);
        assert_eq!(chunk_sketch(&bytes, chunk, SketchSeed(5)).map(f32::to_bits), of_state.map(f32::to_bits));
    }
}
