//! Frames and what is almost a frame.

use proptest::collection::vec;
use proptest::prelude::*;
use swarmline_scheduler::averaging::{AveragingMessage, Content, GatheringId, PartIndex, Round};
use swarmline_scheduler::transfer::StateId;
use swarmline_scheduler::{
    Attempt, Beat, Holding, Hop, Incarnation, Loss, MicrobatchId, PeerId, Purpose, Refusal, Span, StageIndex,
    WeightVersion,
};

use super::*;

const LIMITS: FrameLimits = FrameLimits { header_bytes_max: 2048, ids_bytes_max: 64, code_bytes_max: 256 };

fn hop(stage: Option<u16>) -> Hop {
    Hop { stage: stage.map(StageIndex), peer: PeerId([3; 32]), incarnation: Incarnation(u64::MAX) }
}

fn forward() -> Message<Bytes> {
    Message::Forward {
        microbatch: MicrobatchId(u64::MAX),
        attempt: Attempt(2),
        purpose: Purpose::EvaluateCut,
        anew: true,
        holder: Some(hop(Some(4))),
        route: vec![hop(None), hop(Some(0)), hop(Some(u16::MAX))],
        version: WeightVersion(77),
        ids: Bytes::from_static(&[1, 2, 3]),
        code: Bytes::from_static(&[9; 200]),
    }
}

fn one_of_each() -> Vec<Message<Bytes>> {
    let (microbatch, attempt) = (MicrobatchId(5), Attempt(1));
    let loss = Loss { sum: 2.5, tokens: 4 };
    let reasons = [
        Refusal::NonFinite,
        Refusal::Malformed("shape 3x4".into()),
        Refusal::Unknown,
        Refusal::Busy,
        Refusal::Undeliverable,
        Refusal::Abandoned,
        Refusal::Device("out of memory".into()),
    ];
    let refused = reasons.map(|reason| Message::Refused { microbatch, by: hop(Some(1)), reason });
    let mut messages = vec![
        forward(),
        Message::Backward {
            microbatch,
            attempt,
            loss,
            path: vec![hop(Some(3)), hop(Some(2))],
            gradient: Bytes::from_static(&[7; 256]),
        },
        Message::Backward { microbatch, attempt, loss, path: Vec::new(), gradient: Bytes::new() },
        Message::Evaluated { microbatch, attempt, loss },
    ];
    messages.extend(refused);
    messages.extend(words(microbatch, attempt));
    messages.extend(between_replicas());
    messages
}

fn averaging(content: Content<Bytes>) -> Message<Bytes> {
    let gathering = GatheringId { round: Round(7), members: u64::MAX };
    let (part, attempt) = (PartIndex(u32::MAX), Attempt(2));
    Message::Averaging(AveragingMessage { gathering, part, attempt, content })
}

/// Longer than any code of this run.
fn numbers() -> Bytes {
    Bytes::from_static(&[4; 1200])
}

fn offer(chunks: u8) -> TransferMessage<Bytes> {
    let hashes = (0..chunks).map(|chunk| [chunk; 32]).collect();
    let bytes = 1000 * u64::from(chunks) - 999;
    let manifest = Manifest { version: WeightVersion(9), bytes, chunk_bytes: 1000, hashes };
    TransferMessage::Offer { state: StateId(3), manifest }
}

fn between_replicas() -> Vec<Message<Bytes>> {
    let state = StateId(3);
    let contents = [
        Content::Share { weight: 1 << 40, share: numbers() },
        Content::Kept { of: Attempt(1), mean: numbers() },
        Content::Mean { mean: numbers() },
        Content::Held,
        Content::Settled,
        Content::Nothing,
        Content::Absent,
    ];
    let transfers = [
        TransferMessage::Ask,
        offer(1),
        offer(200),
        TransferMessage::Want { state, chunk: 8 },
        TransferMessage::Chunk { state, chunk: 8, payload: numbers() },
        TransferMessage::Declined,
        TransferMessage::Done { state },
    ];
    contents.into_iter().map(averaging).chain(transfers.map(Message::Transfer)).collect()
}

/// Messages without a payload.
fn words(microbatch: MicrobatchId, attempt: Attempt) -> Vec<Message<Bytes>> {
    let microbatches = vec![microbatch, MicrobatchId(u64::MAX)];
    let beat = Beat {
        counter: 9,
        queued: 3,
        oldest: std::time::Duration::from_micros(7),
        service: Some(std::time::Duration::from_micros(8)),
        credit: 2,
    };
    let holds = [Holding::Held, Holding::Missing, Holding::Busy];
    let holds = holds.map(|holding| Message::Holds { microbatch, attempt, holding });
    let mut words = vec![
        Message::Ask { microbatch, attempt, route: vec![hop(None)] },
        Message::Passed { microbatch, attempt, next: hop(Some(2)) },
        Message::Held { microbatch, holder: hop(Some(2)) },
        Message::Claim { stage: StageIndex(3), microbatches: microbatches.clone() },
        Message::Granted { granted: microbatches, denied: Vec::new() },
        Message::Ended {
            spans: vec![Span { first: 1, below: 5, beyond: vec![3, 0, 1] }],
            round: Round(6),
            over: true,
        },
        Message::Averaged { round: Round(7) },
        Message::Beat(beat),
        Message::Beat(Beat { service: None, ..beat }),
    ];
    words.extend(holds);
    words
}

fn encoded(message: &Message<Bytes>) -> Vec<u8> {
    encode(message, &LIMITS).unwrap().to_vec()
}

fn decoded(frame: impl Into<Bytes>) -> Result<Message<Bytes>, FrameError> {
    decode(&frame.into(), &LIMITS)
}

/// A frame with this header and nothing behind it.
fn announcing(message: v1::frame::Message) -> Vec<u8> {
    let header = v1::Frame { message: Some(message) }.encode_to_vec();
    [&MAGIC.to_be_bytes()[..], &(header.len() as u32).to_be_bytes(), &header].concat()
}

#[test]
fn every_message_survives_the_wire() {
    for message in one_of_each() {
        assert_eq!(decoded(encoded(&message)), Ok(message));
    }
}

#[test]
fn announcing_four_gigabytes_is_refused_before_memory_is_reserved() {
    let four_gigabytes = 4 << 30;
    let code =
        v1::Backward { loss: Some(v1::Loss::default()), code_bytes: four_gigabytes, ..Default::default() };
    let error = decoded(announcing(v1::frame::Message::Backward(code))).unwrap_err();
    assert_eq!(error, FrameError::TooLong { part: Part::Code, announced: four_gigabytes, allowed: 256 });
    assert!(error.to_string().contains("4294967296") && error.to_string().contains("256"), "{error}");

    let ids = v1::Forward { purpose: 1, ids_bytes: u64::MAX, ..Default::default() };
    let error = decoded(announcing(v1::frame::Message::Forward(ids))).unwrap_err();
    assert_eq!(error, FrameError::TooLong { part: Part::Ids, announced: u64::MAX, allowed: 64 });

    let header = [MAGIC.to_be_bytes(), u32::MAX.to_be_bytes()].concat();
    let error = decoded(header).unwrap_err();
    assert_eq!(error, FrameError::TooLong { part: Part::Header, announced: u32::MAX.into(), allowed: 2048 });
}

#[test]
fn what_replicas_tell_each_other_has_limits_of_its_own() {
    let check = |message, part| {
        let error = decoded(announcing(message)).unwrap_err();
        assert!(matches!(error, FrameError::TooLong { part: found, .. } if found == part), "{error}");
    };
    let at = Some(v1::PartOfRound::default());
    let share_bytes = BULK_BYTES_MAX as u64 + 1;
    check(v1::frame::Message::Share(v1::Share { at, weight: 1, share_bytes }), Part::Share);
    check(v1::frame::Message::Mean(v1::Mean { at, mean_bytes: u64::MAX }), Part::Share);
    let chunk = v1::Chunk { chunk_bytes: 1 << 40, ..Default::default() };
    check(v1::frame::Message::Chunk(chunk), Part::Chunk);
    for bytes in [32_769, u64::MAX] {
        let offer = v1::StateOffer { bytes, chunk_bytes: 1, ..Default::default() };
        check(v1::frame::Message::StateOffer(offer), Part::Hashes);
    }
    let longest = Content::Mean { mean: vec![0; BULK_BYTES_MAX].into() };
    assert!(encode(&averaging(longest), &LIMITS).is_ok());
    let longer = Content::Mean { mean: vec![0; BULK_BYTES_MAX + 1].into() };
    assert!(encode(&averaging(longer), &LIMITS).is_err());
}

#[test]
fn every_truncation_is_an_error() {
    for frame in [forward(), averaging(Content::Mean { mean: numbers() }), Message::Transfer(offer(3))] {
        let frame = encoded(&frame);
        for length in 0..frame.len() {
            let error = decoded(frame[..length].to_vec()).unwrap_err();
            assert!(matches!(error, FrameError::Truncated { .. }), "{length}: {error}");
        }
    }
}

#[test]
fn trailing_bytes_are_an_error() {
    let frame = encoded(&forward());
    let longer = [frame.as_slice(), &[0]].concat();
    assert_eq!(decoded(longer), Err(FrameError::Trailing { announced: frame.len() }));
}

#[test]
fn another_protocol_and_another_version_are_told_apart() {
    assert_eq!(decoded(b"GET / HTTP/1.1".to_vec()), Err(FrameError::Magic { found: 0x4745_5420 }));
    let mut frame = encoded(&forward());
    frame[3] = 9;
    assert_eq!(decoded(frame), Err(FrameError::Version { theirs: 9, ours: 1 }));
}

#[test]
fn a_header_that_breaks_the_contract_names_the_field() {
    let check = |message, part: &str| {
        let error = decoded(announcing(message)).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    };
    let backward = v1::Backward::default();
    check(v1::frame::Message::Backward(backward), "the loss is missing");
    let purpose = v1::Forward { purpose: 99, ..Default::default() };
    check(v1::frame::Message::Forward(purpose), "purpose is 99");
    let hop = v1::Hop { stage: Some(70_000), peer: vec![0; 32], incarnation: 0 };
    let stage = v1::Forward { purpose: 1, route: vec![hop], ..Default::default() };
    check(v1::frame::Message::Forward(stage), "70000");
    let hop = v1::Hop { stage: None, peer: vec![0; 31], incarnation: 0 };
    let peer = v1::Forward { purpose: 1, route: vec![hop], ..Default::default() };
    check(v1::frame::Message::Forward(peer), "31 bytes long");
    check(v1::frame::Message::MeanHeld(v1::MeanHeld { at: None }), "the part of the round is missing");
    let late = v1::PartOfRound { attempt: 3, ..Default::default() };
    check(v1::frame::Message::MeanSettled(v1::MeanSettled { at: Some(late) }), "attempt is 3");
    let heavy = v1::Share { weight: u64::MAX, ..Default::default() };
    check(v1::frame::Message::Share(heavy), "the weight of a share");
    check(v1::frame::Message::StateOffer(v1::StateOffer::default()), "length of a chunk is 0");
}

#[test]
fn a_message_beyond_the_limits_is_not_sent() {
    let loss = Loss::default();
    let gradient = Bytes::from(vec![0; 257]);
    let message = Message::Backward {
        microbatch: MicrobatchId(1),
        attempt: Attempt(0),
        loss,
        path: Vec::new(),
        gradient,
    };
    let error = encode(&message, &LIMITS).unwrap_err();
    assert_eq!(error, FrameError::TooLong { part: Part::Code, announced: 257, allowed: 256 });
}

#[test]
fn a_refusal_cannot_write_lines_into_a_log() {
    let reason = Refusal::Malformed(format!("first\nsecond {}", "x".repeat(5000)));
    let message = Message::Refused { microbatch: MicrobatchId(1), by: hop(None), reason };
    let Ok(Message::Refused { reason: Refusal::Malformed(detail), .. }) = decoded(encoded(&message)) else {
        panic!("not the refusal that was sent");
    };
    assert!(detail.len() <= wire::DETAIL_BYTES_MAX && !detail.contains('\n'), "{detail}");
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..512)) {
        let _ = decoded(bytes);
    }

    #[test]
    fn arbitrary_headers_never_panic(header in vec(any::<u8>(), 0..512), rest in vec(any::<u8>(), 0..64)) {
        let length = (header.len() as u32).to_be_bytes();
        let _ = decoded([&MAGIC.to_be_bytes()[..], &length, &header, &rest].concat());
    }

    /// What a mutated frame decodes to is again a frame within the limits.
    #[test]
    fn mutated_frames_never_panic(
        which in any::<prop::sample::Index>(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut frame = encoded(which.get(&one_of_each()));
        for (place, byte) in changes {
            let place = place.index(frame.len());
            frame[place] = byte;
        }
        if let Ok(message) = decoded(frame) {
            prop_assert!(encode(&message, &LIMITS).is_ok());
        }
    }
}
