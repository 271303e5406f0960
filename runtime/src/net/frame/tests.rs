//! Frames: valid, truncated, mutated and arbitrary bytes.

use proptest::collection::vec;
use proptest::prelude::*;
use swarmline_scheduler::averaging::{
    AveragingMessage, Content, GroupId, MeanId, MemberSet, PartIndex, Round,
};
use swarmline_scheduler::prediction::{Decline, Pass};
use swarmline_scheduler::recovery_report::{Item, Possession, RecoveryReport};
use swarmline_scheduler::transfer::{DeclineReason, SketchSeed, StateId};
use swarmline_scheduler::{
    AckRange, Attempt, Duration, Heartbeat, Hop, Incarnation, Instance, Loss, MicrobatchId, PeerId, Purpose,
    Refusal, RouteKey, RouteProof, StageIndex, Status, WeightVersion,
};

use super::*;

const LIMITS: FrameLimits = FrameLimits {
    header_bytes_max: 2048,
    ids_bytes_max: 64,
    activation_bytes_max: 256,
    logits_bytes_max: 1024,
};

fn hop(stage: Option<u16>) -> Hop {
    let instance = Instance::new(PeerId([3; 32]), Incarnation(u64::MAX));
    Hop { stage: stage.map(StageIndex), instance }
}

fn forward() -> Envelope<Bytes> {
    let message = Message::Forward {
        microbatch: MicrobatchId(u64::MAX),
        attempt: Attempt(2),
        purpose: Purpose::EvaluateCut,
        is_retry: true,
        key: KEY,
        downstream_holder: Some(hop(Some(4))),
        route: vec![hop(None), hop(Some(0)), hop(Some(u16::MAX))],
        version: WeightVersion(77),
    };
    Envelope { message, ids: Bytes::from_static(&[1, 2, 3]), payload: Bytes::from_static(&[9; 200]) }
}

fn backward(path: Vec<Hop>, gradient: impl Into<Bytes>) -> Envelope<Bytes> {
    let (microbatch, attempt) = (MicrobatchId(5), Attempt(1));
    let loss = Loss { sum: 2.5, tokens: 4 };
    Envelope::with_payload(Message::Backward { microbatch, attempt, loss, path }, gradient.into())
}

fn one_of_each() -> Vec<Envelope<Bytes>> {
    let reasons = [
        Refusal::NonFinite,
        Refusal::Malformed("shape 3x4".into()),
        Refusal::Unknown,
        Refusal::Busy,
        Refusal::Undeliverable,
        Refusal::Abandoned,
        Refusal::Device("out of memory".into()),
    ];
    let refused = reasons.map(|reason| Message::Refused { proof: proof(), by: hop(Some(1)), reason });
    let mut all = vec![
        forward(),
        backward(vec![hop(Some(3)), hop(Some(2))], vec![7; 256]),
        backward(Vec::new(), Vec::new()),
    ];
    all.extend(refused.map(Envelope::from));
    all.extend(without_payload().into_iter().map(Envelope::from));
    all.extend(between_replicas());
    all
}

const KEY: RouteKey = RouteKey([7; 16]);

fn proof() -> RouteProof {
    RouteProof { microbatch: MicrobatchId(5), route: vec![hop(None), hop(Some(0))], key: KEY }
}

/// Messages of feeders and replicas without ids or payload.
fn without_payload() -> Vec<Message> {
    let (microbatch, attempt) = (MicrobatchId(5), Attempt(1));
    let microbatches = vec![microbatch, MicrobatchId(u64::MAX)];
    let range = AckRange { first: 1, end: 50, open: vec![1, 5, 49] };
    let heartbeat = Heartbeat {
        counter: 9,
        queued: 3,
        oldest: Duration::from_micros(7),
        service: Some(Duration::from_micros(8)),
        credit: 2,
    };
    let statuses = [Status::Held, Status::Missing, Status::Busy];
    let statuses = statuses.map(|status| Message::StatusReply { microbatch, attempt, status });
    let mut messages = vec![
        Message::Evaluated { proof: proof(), attempt, loss: Loss { sum: 2.5, tokens: 4 } },
        Message::StatusRequest { microbatch, attempt, route: vec![hop(None)], key: KEY },
        Message::Forwarded { microbatch, attempt, next: hop(Some(2)) },
        Message::OrphanNotice { microbatch, holder: hop(Some(2)) },
        Message::Claim { stage: StageIndex(3), claimed: vec![proof()], forfeited: vec![microbatch] },
        Message::ClaimReply { granted: microbatches, denied: Vec::new(), forged: vec![microbatch] },
        Message::Outcomes { ranges: vec![range.clone()] },
        Message::RoundCall { round: Round(6), is_closing: true, weights: vec![(PeerId([7; 32]), 90)] },
        Message::RoundReport { round: Round(7), carried: None, is_complete: false },
        Message::RoundReport { round: Round(7), carried: Some(Round(3)), is_complete: true },
        Message::RecoverRange { first: MicrobatchId(1), epoch: 2, from: MicrobatchId(3) },
        Message::RecoveryReport(recovery_report(range)),
        Message::Heartbeat(heartbeat),
        Message::Heartbeat(Heartbeat { service: None, ..heartbeat }),
    ];
    messages.extend(statuses);
    messages
}

fn recovery_report(range: AckRange) -> RecoveryReport {
    let item = |possession, granted| Item {
        microbatch: MicrobatchId(4),
        granted,
        possession,
        may_have_been_granted: vec![StageIndex(0), StageIndex(u16::MAX)],
    };
    RecoveryReport {
        first: MicrobatchId(1),
        epoch: 2,
        from: MicrobatchId(3),
        next: Some(MicrobatchId(9)),
        stage: StageIndex(4),
        ended: vec![range],
        items: vec![
            item(Possession::Gone, None),
            item(Possession::Held, Some(false)),
            item(Possession::Returned, Some(true)),
        ],
    }
}

fn averaging(content: Content) -> Envelope<Bytes> {
    let payload = if content.has_payload() { numbers() } else { Bytes::new() };
    with_numbers(content, payload)
}

fn with_numbers(content: Content, payload: Bytes) -> Envelope<Bytes> {
    let group = GroupId { round: Round(7), members: u64::MAX };
    let (part, attempt) = (PartIndex(u32::MAX), Attempt(2));
    Envelope::with_payload(Message::Averaging(AveragingMessage { group, part, attempt, content }), payload)
}

/// Longer than any activation of this run.
fn numbers() -> Bytes {
    Bytes::from_static(&[4; 1200])
}

fn offer(chunks: u8) -> TransferMessage {
    let hashes = (0..chunks).map(|chunk| [chunk; 32]).collect();
    let bytes = 1000 * u64::from(chunks) - 999;
    let manifest = Manifest { version: WeightVersion(9), bytes, chunk_bytes: 1000, hashes };
    let age = Duration::from_millis(u64::from(chunks));
    TransferMessage::Offer { state: StateId(3), manifest, age, clock: Some(70) }
}

fn between_replicas() -> Vec<Envelope<Bytes>> {
    let state = StateId(3);
    let contents = [
        Content::Contribution { weight: 1 << 40 },
        Content::Copying,
        Content::Promise { of: Attempt(1), contributors: MemberSet(5) },
        Content::Accept { contributors: MemberSet(u64::MAX) },
        Content::Accepted { mean: MeanId { contributors: MemberSet(3), digest: [7; 32] } },
        Content::Empty { heard: MemberSet(2) },
        Content::NotAMember,
    ];
    let transfers = [
        TransferMessage::Request,
        offer(1),
        offer(200),
        TransferMessage::SketchRequest { state, seed: SketchSeed(1 << 63) },
        TransferMessage::Sketch { state, seed: SketchSeed(7), sketch: vec![[1.5, -2.0, 0.0, 1e30]; 3] },
        TransferMessage::ChunkRequest { state, chunk: 8 },
        TransferMessage::Declined(DeclineReason::Busy),
        TransferMessage::Declined(DeclineReason::NotEntitled),
        TransferMessage::Done { state },
    ];
    let chunk = Message::Transfer(TransferMessage::Chunk { state, chunk: 8 });
    let transfers = transfers.map(|message| Envelope::from(Message::Transfer(message)));
    let mut all: Vec<_> = contents.into_iter().map(averaging).chain(transfers).collect();
    all.push(Envelope::with_payload(chunk, numbers()));
    all.extend(predictions());
    all
}

/// Messages between a reader and a replica.
fn predictions() -> Vec<Envelope<Bytes>> {
    let pass = Pass { number: 1 << 50, stage: StageIndex(3), position: 31 };
    let request = Message::Prediction(PredictionMessage::Request(pass));
    let reply = Message::Prediction(PredictionMessage::Reply(pass));
    let declined = [Decline::Busy, Decline::NotAReader, Decline::Failed("a number is not finite".to_owned())];
    let declined =
        declined.map(|reason| Message::Prediction(PredictionMessage::Declined { pass, reason }).into());
    let mut all = Vec::from(declined);
    all.push(Envelope { message: request, ids: vec![1; 64].into(), payload: vec![2; 256].into() });
    all.push(Envelope::with_payload(reply, vec![3; 1024].into()));
    all
}

fn encoded(message: &Envelope<Bytes>) -> Vec<u8> {
    encode(message, &LIMITS).unwrap().to_vec()
}

fn decoded(frame: impl Into<Bytes>) -> Result<Envelope<Bytes>, FrameError> {
    decode(&frame.into(), &LIMITS)
}

/// A frame that ends after this header.
fn announcing(message: v1::frame::Message, ids_bytes: u64, payload_bytes: u64) -> Vec<u8> {
    let header = v1::Frame { message: Some(message), ids_bytes, payload_bytes }.encode_to_vec();
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
    let announced = 4 << 30;
    let backward = v1::Backward { loss: Some(v1::Loss::default()), ..Default::default() };
    let error = decoded(announcing(v1::frame::Message::Backward(backward), 0, announced)).unwrap_err();
    assert_eq!(error, FrameError::TooLong { part: Part::Activation, announced, allowed: 256 });
    assert!(error.to_string().contains("4294967296") && error.to_string().contains("256"), "{error}");

    let forward = v1::Forward { purpose: 1, key: KEY.0.to_vec(), ..Default::default() };
    let error = decoded(announcing(v1::frame::Message::Forward(forward), u64::MAX, 0)).unwrap_err();
    assert_eq!(error, FrameError::TooLong { part: Part::Ids, announced: u64::MAX, allowed: 64 });

    let header = [MAGIC.to_be_bytes(), u32::MAX.to_be_bytes()].concat();
    let error = decoded(header).unwrap_err();
    assert_eq!(error, FrameError::TooLong { part: Part::Header, announced: u32::MAX.into(), allowed: 2048 });
}

#[test]
fn every_message_has_limits_of_its_own() {
    let check = |message, payload_bytes, part| {
        let error = decoded(announcing(message, 0, payload_bytes)).unwrap_err();
        assert!(matches!(error, FrameError::TooLong { part: found, .. } if found == part), "{error}");
    };
    let at = Some(v1::PartOfRound::default());
    let longer = BULK_BYTES_MAX as u64 + 1;
    let contribution = v1::Contribution { at, weight: 1 };
    check(v1::frame::Message::Contribution(contribution), longer, Part::Numbers);
    check(v1::frame::Message::Accept(v1::Accept { at, contributors: 3 }), u64::MAX, Part::Numbers);
    let accepted = v1::Accepted { at, contributors: 3, digest: vec![7; 32] };
    check(v1::frame::Message::Accepted(accepted), 1, Part::Nothing);
    check(v1::frame::Message::StateRequest(v1::StateRequest {}), 1, Part::Nothing);
    check(v1::frame::Message::Chunk(v1::Chunk::default()), 1 << 40, Part::Chunk);
    let offer = v1::StateOffer { bytes: 1, chunk_bytes: 1, ..Default::default() };
    check(v1::frame::Message::StateOffer(offer), longer, Part::Hashes);
    check(v1::frame::Message::Sketch(v1::Sketch::default()), longer, Part::Sketch);
    let pass = Some(v1::PredictionPass::default());
    let reply = v1::PredictionReply { pass };
    check(v1::frame::Message::PredictionReply(reply), 1025, Part::Prediction);
    let request = v1::PredictionRequest { pass };
    check(v1::frame::Message::PredictionRequest(request), 257, Part::Activation);
    let ids = decoded(announcing(v1::frame::Message::Accept(v1::Accept { at, contributors: 3 }), 1, 0))
        .unwrap_err();
    assert_eq!(ids, FrameError::TooLong { part: Part::Ids, announced: 1, allowed: 0 });
    assert!(
        encode(
            &with_numbers(Content::Accept { contributors: MemberSet(3) }, vec![0; BULK_BYTES_MAX].into()),
            &LIMITS
        )
        .is_ok()
    );
    assert!(
        encode(
            &with_numbers(Content::Accept { contributors: MemberSet(3) }, vec![0; BULK_BYTES_MAX + 1].into()),
            &LIMITS
        )
        .is_err()
    );
}

#[test]
fn an_offer_has_a_digest_for_each_chunk() {
    for (bytes, digests) in [(2, 32), (2, 65), (u64::MAX, 32), (0, 32)] {
        let offer = v1::StateOffer { bytes, chunk_bytes: 1, ..Default::default() };
        let error = decoded(announcing(v1::frame::Message::StateOffer(offer), 0, digests)).unwrap_err();
        assert!(error.to_string().contains("the length of the digests"), "{error}");
    }
}

#[test]
fn every_truncation_is_an_error() {
    for frame in [
        forward(),
        averaging(Content::Accept { contributors: MemberSet(3) }),
        Message::Transfer(offer(3)).into(),
    ] {
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
    assert_eq!(decoded(frame), Err(FrameError::Version { theirs: 9, ours: 2 }));
}

#[test]
fn a_header_that_breaks_the_contract_names_the_field() {
    let check = |message, part: &str| {
        let error = decoded(announcing(message, 0, 0)).unwrap_err();
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
    let short = v1::Accepted { at: None, contributors: 3, digest: vec![7; 31] };
    check(v1::frame::Message::Accepted(short.clone()), "31 bytes long");
    let nowhere = v1::Accepted { digest: vec![7; 32], ..short };
    check(v1::frame::Message::Accepted(nowhere), "the part of the round is missing");
    let late = v1::PartOfRound { attempt: 3, ..Default::default() };
    check(v1::frame::Message::Accept(v1::Accept { at: Some(late), contributors: 3 }), "attempt is 3");
    let heavy = v1::Contribution { weight: u64::MAX, ..Default::default() };
    check(v1::frame::Message::Contribution(heavy), "the weight of a contribution");
    check(v1::frame::Message::StateOffer(v1::StateOffer::default()), "length of a chunk is 0");
}

#[test]
fn a_message_beyond_the_limits_is_not_sent() {
    let error = encode(&backward(Vec::new(), vec![0; 257]), &LIMITS).unwrap_err();
    assert_eq!(error, FrameError::TooLong { part: Part::Activation, announced: 257, allowed: 256 });
}

#[test]
fn a_refusal_cannot_write_lines_into_a_log() {
    let reason = Refusal::Malformed(format!("first\nsecond {}", "x".repeat(5000)));
    let message = Message::Refused { proof: proof(), by: hop(None), reason };
    let received = decoded(encoded(&message.into())).unwrap().message;
    let Message::Refused { reason: Refusal::Malformed(detail), .. } = received else {
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

    /// A mutated frame that decodes gives an envelope within the limits.
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
