//! Real endpoints on the loopback interface, some of them hostile.

use std::collections::BTreeSet;

use prost::Message as _;
use quinn::Connection;
use swarmline_proto::v1;
use swarmline_scheduler::{Attempt, Loss, Message, MicrobatchId, Purpose, WeightVersion};

use super::*;
use crate::net::frame::Part;
use crate::net::tls::Pin;

/// Limit of each step of a test.
const PATIENCE: Duration = Duration::from_secs(20);
const LIMITS: FrameLimits =
    FrameLimits { header_bytes_max: 2048, ids_bytes_max: 4096, activation_bytes_max: 64 << 10 };
const SETTINGS: Settings = Settings { limits: LIMITS, window: 64, congestion: Congestion::Bbr };
const RUN: ManifestDigest = ManifestDigest([7; 32]);

/// A data plane with its identity and events.
struct Side {
    identity: Identity,
    plane: DataPlane,
    events: mpsc::Receiver<NetEvent>,
    address: SocketAddr,
}

impl Side {
    fn new(seed: u8) -> Self {
        Self::with(seed, HandshakeInfo::new(RUN, Incarnation(seed.into())), Trust::anyone())
    }

    fn with(seed: u8, handshake: HandshakeInfo, trust: Trust) -> Self {
        let identity = Identity::from_seed([seed; 32]);
        let anywhere = "127.0.0.1:0".parse().unwrap();
        let (plane, events) = DataPlane::bind(&identity, anywhere, handshake, trust, SETTINGS).unwrap();
        let address = plane.local_addr().unwrap();
        Self { identity, plane, events, address }
    }

    fn peer(&self) -> PeerId {
        self.identity.peer()
    }

    async fn send(&self, to: &Self, message: &Envelope<Bytes>) {
        let sending = async {
            while let Err(error) = self.plane.send(to.peer(), to.address, message.clone()) {
                assert!(matches!(error.reason, SendFailure::Full { .. }), "{error}");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        soon(sending).await;
    }

    async fn event(&mut self) -> NetEvent {
        soon(self.events.recv()).await.expect("the data plane goes on")
    }

    /// Skips events until `pick` takes one.
    async fn until<T>(&mut self, mut pick: impl FnMut(NetEvent) -> Option<T>) -> T {
        loop {
            if let Some(picked) = pick(self.event().await) {
                return picked;
            }
        }
    }

    async fn message(&mut self) -> (PeerId, Envelope<Bytes>) {
        self.until(|event| match event {
            NetEvent::Received { from, envelope } => Some((from.peer, envelope)),
            _ => None,
        })
        .await
    }

    async fn malformed(&mut self) -> FrameError {
        self.until(|event| match event {
            NetEvent::Malformed { error, .. } => Some(error),
            _ => None,
        })
        .await
    }

    async fn unreachable(&mut self) -> (LinkError, Vec<Envelope<Bytes>>) {
        self.until(|event| match event {
            NetEvent::Unreachable { reason, undelivered, .. } => Some((reason, undelivered)),
            _ => None,
        })
        .await
    }
}

async fn soon<T>(step: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, step).await.expect("a step of the test took too long")
}

fn forward(id: u64, activation: Vec<u8>) -> Envelope<Bytes> {
    let message = Message::Forward {
        microbatch: MicrobatchId(id),
        attempt: Attempt(0),
        purpose: Purpose::Train,
        is_retry: false,
        downstream_holder: None,
        route: Vec::new(),
        version: WeightVersion(1),
    };
    Envelope { message, ids: Bytes::from_static(&[1; 100]), payload: activation.into() }
}

fn backward(id: u64) -> Envelope<Bytes> {
    let loss = Loss { sum: 1.0, tokens: 1 };
    let (microbatch, attempt) = (MicrobatchId(id), Attempt(0));
    let message = Message::Backward { microbatch, attempt, loss, path: Vec::new() };
    Envelope::with_payload(message, Bytes::from_static(&[2; 3000]))
}

fn id_of(envelope: &Envelope<Bytes>) -> u64 {
    match envelope.message {
        Message::Forward { microbatch, .. }
        | Message::Backward { microbatch, .. }
        | Message::Evaluated { microbatch, .. }
        | Message::Refused { microbatch, .. } => microbatch.0,
        _ => unreachable!("these tests send none"),
    }
}

/// Sends `count` messages as fast as the queue takes them.
async fn send_all(plane: &DataPlane, (peer, address): (PeerId, SocketAddr), count: u64, bytes: usize) {
    for id in 0..count {
        while let Err(error) = plane.send(peer, address, forward(id, vec![3; bytes])) {
            assert!(matches!(error.reason, SendFailure::Full { .. }), "{error}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Receives `count` messages, each id once.
async fn receive_ids(events: &mut mpsc::Receiver<NetEvent>, count: u64) {
    let mut ids = BTreeSet::new();
    while (ids.len() as u64) < count {
        match soon(events.recv()).await.unwrap() {
            NetEvent::Received { envelope, .. } => {
                assert!(ids.insert(id_of(&envelope)), "{} arrived twice", id_of(&envelope));
            }
            NetEvent::Connected(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(ids, (0..count).collect());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_peers_that_dial_each_other_at_once_exchange_a_thousand_messages_each() {
    const COUNT: u64 = 1000;
    let (mut left, mut right) = (Side::new(1), Side::new(2));
    let (to_left, to_right) = ((left.peer(), left.address), (right.peer(), right.address));
    let (left_plane, right_plane) = (&left.plane, &right.plane);
    soon(async {
        tokio::join!(
            send_all(left_plane, to_right, COUNT, 1000),
            send_all(right_plane, to_left, COUNT, 10),
            receive_ids(&mut left.events, COUNT),
            receive_ids(&mut right.events, COUNT),
        )
    })
    .await;
    let sent = left.plane.bytes_sent();
    assert_eq!((sent.backward, sent.other), (0, 0));
    assert!((1_100_000..1_300_000).contains(&sent.total()), "{sent:?}");
}

#[tokio::test]
async fn a_peer_that_dialled_is_answered_over_its_connection() {
    let (mut left, mut right) = (Side::new(1), Side::new(2));
    left.send(&right, &forward(0, vec![5; 60_000])).await;
    let connected = right.event().await;
    assert!(
        matches!(connected, NetEvent::Connected(instance) if instance == Instance::new(left.peer(), Incarnation(1))),
        "{connected:?}"
    );
    assert_eq!(right.message().await, (left.peer(), forward(0, vec![5; 60_000])));
    // No peer listens at this address: only the existing connection can carry the answer.
    let nowhere = "127.0.0.1:9".parse().unwrap();
    right.plane.send(left.peer(), nowhere, backward(0)).unwrap();
    assert_eq!(left.message().await, (right.peer(), backward(0)));
    assert!(right.plane.bytes_sent().backward > 3000);
}

#[tokio::test]
async fn another_run_names_both_digests() {
    let mut left = Side::new(1);
    let other = ManifestDigest([8; 32]);
    let right = Side::with(2, HandshakeInfo::new(other, Incarnation(0)), Trust::anyone());
    left.send(&right, &forward(0, Vec::new())).await;
    let (reason, undelivered) = left.unreachable().await;
    let expected = HandshakeError::Digest { ours: RUN, theirs: other };
    assert!(matches!(&reason, LinkError::Dial { cause, .. } if *cause == expected), "{reason}");
    let message = reason.to_string();
    assert!(message.contains(&RUN.to_string()) && message.contains(&other.to_string()), "{message}");
    assert_eq!(undelivered, [forward(0, Vec::new())]);
}

#[tokio::test]
async fn another_protocol_version_names_both_versions() {
    let mut left = Side::new(1);
    let handshake = HandshakeInfo { protocol_version: 99, ..HandshakeInfo::new(RUN, Incarnation(0)) };
    let right = Side::with(2, handshake, Trust::anyone());
    left.send(&right, &forward(0, Vec::new())).await;
    let (reason, _) = left.unreachable().await;
    let expected = HandshakeError::Version { ours: PROTOCOL_VERSION, theirs: 99 };
    assert!(matches!(&reason, LinkError::Dial { cause, .. } if *cause == expected), "{reason}");
}

#[tokio::test]
async fn an_untrusted_key_is_refused_and_can_be_admitted_later() {
    let mut stranger = Side::new(1);
    let trust = Trust::keys([]);
    let mut closed = Side::with(2, HandshakeInfo::new(RUN, Incarnation(0)), trust.clone());
    stranger.send(&closed, &forward(0, Vec::new())).await;
    let (reason, _) = stranger.unreachable().await;
    assert!(matches!(&reason, LinkError::Dial { cause: HandshakeError::Untrusted, .. }), "{reason}");

    trust.set_keys([stranger.peer()]);
    stranger.send(&closed, &forward(1, Vec::new())).await;
    assert_eq!(closed.message().await.0, stranger.peer());

    trust.set_keys([]);
    stranger.send(&closed, &forward(2, Vec::new())).await;
    stranger.until(|event| matches!(event, NetEvent::Disconnected { .. }).then_some(())).await;
    stranger.send(&closed, &forward(3, Vec::new())).await;
    let (reason, _) = stranger.unreachable().await;
    assert!(reason.to_string().contains("does not trust"), "{reason}");
}

#[tokio::test]
async fn a_peer_with_another_key_than_expected_gets_nothing() {
    let mut left = Side::new(1);
    let right = Side::new(2);
    let expected = Identity::from_seed([3; 32]).peer();
    left.plane.send(expected, right.address, forward(0, Vec::new())).unwrap();
    let (reason, undelivered) = left.unreachable().await;
    let message = reason.to_string();
    assert!(
        message.contains(&expected.to_string()) && message.contains(&right.peer().to_string()),
        "{message}"
    );
    assert_eq!(undelivered.len(), 1);
}

#[tokio::test]
async fn a_peer_that_is_not_there_gives_everything_back() {
    let mut left = Side::new(1);
    let absent = Side::new(2);
    let (peer, address) = (absent.peer(), absent.address);
    absent.plane.close().await;
    drop(absent);
    for id in 0..3 {
        left.plane.send(peer, address, forward(id, Vec::new())).unwrap();
    }
    let (reason, mut undelivered) = left.unreachable().await;
    assert!(reason.to_string().contains(&address.to_string()), "{reason}");
    while undelivered.len() < 3 {
        undelivered.extend(left.unreachable().await.1);
    }
    assert_eq!(undelivered.iter().map(id_of).collect::<Vec<_>>(), [0, 1, 2]);
}

#[tokio::test]
async fn a_full_queue_gives_the_message_back_at_once() {
    let left = Side::new(1);
    let nowhere = "127.0.0.1:9".parse().unwrap();
    let peer = Identity::from_seed([3; 32]).peer();
    let capacity = left.plane.shared.outbox_frames() as u64;
    let error = (0..=capacity + 1)
        .find_map(|id| left.plane.send(peer, nowhere, forward(id, Vec::new())).err())
        .expect("the queue is bounded");
    assert!(matches!(error.reason, SendFailure::Full { .. }), "{error}");
    assert_eq!(id_of(&error.envelope), capacity);
}

#[tokio::test]
async fn a_clean_close_flushes_and_is_seen_at_once() {
    let left = Side::new(1);
    let mut right = Side::new(2);
    for id in 0..20 {
        left.send(&right, &forward(id, vec![1; 50_000])).await;
    }
    let peer = left.peer();
    let began = std::time::Instant::now();
    let (_, ()) = tokio::join!(left.plane.close(), receive_ids(&mut right.events, 20));
    let (gone, reason) = right
        .until(|event| match event {
            NetEvent::Disconnected { instance, reason } => Some((instance.peer, reason)),
            _ => None,
        })
        .await;
    assert_eq!(gone, peer);
    assert!(reason.contains("the peer left"), "{reason}");
    assert!(began.elapsed() < tuning::IDLE_MAX, "seen by the farewell, not by the idle timeout");
    let after = left.plane.send(right.peer(), right.address, forward(0, Vec::new()));
    assert_eq!(after.unwrap_err().reason, SendFailure::Closed);
}

#[tokio::test]
async fn a_restarted_peer_is_a_new_incarnation_and_gets_what_is_sent_to_it() {
    let mut left = Side::new(1);
    let first = Side::with(2, HandshakeInfo::new(RUN, Incarnation(1)), Trust::anyone());
    left.send(&first, &forward(0, Vec::new())).await;
    left.until(|event| {
        matches!(event, NetEvent::Connected(instance) if instance.incarnation == Incarnation(1)).then_some(())
    })
    .await;
    drop(first);
    left.until(|event| matches!(event, NetEvent::Disconnected { .. }).then_some(())).await;
    let mut second = Side::with(2, HandshakeInfo::new(RUN, Incarnation(2)), Trust::anyone());
    left.send(&second, &forward(1, Vec::new())).await;
    left.until(|event| {
        matches!(event, NetEvent::Connected(instance) if instance.incarnation == Incarnation(2)).then_some(())
    })
    .await;
    // The first message may come again: the first incarnation may not have acknowledged it.
    while id_of(&second.message().await.1) != 1 {}
}

/// A hostile peer with a trusted key.
struct Hostile {
    endpoint: Endpoint,
    identity: Identity,
    connection: Connection,
}

impl Hostile {
    /// Connects without a handshake.
    async fn mute(victim: &Side) -> Self {
        let identity = Identity::from_seed([66; 32]);
        let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let transport = Arc::new(tuning::transport(&SETTINGS));
        let config = tuning::client(&identity, &Pin::new(victim.peer()), transport).unwrap();
        let connecting = endpoint.connect_with(config, victim.address, "swarmline").unwrap();
        let connection = soon(connecting).await.unwrap();
        Self { endpoint, identity, connection }
    }

    async fn new(victim: &Side) -> Self {
        let hostile = Self::mute(victim).await;
        let hello = HandshakeInfo::new(RUN, Incarnation(5));
        soon(handshake::greet(&hostile.connection, &hello)).await.unwrap();
        hostile
    }

    /// Sends these bytes on a stream; returns the code that stops the stream.
    async fn stream(&self, bytes: &[u8]) -> Option<VarInt> {
        let mut stream = soon(self.connection.open_uni()).await.unwrap();
        let _ = soon(stream.write_all(bytes)).await;
        let stopped = stream.stopped();
        let _ = stream.finish();
        soon(stopped).await.ok().flatten()
    }
}

fn whole_frame() -> Vec<u8> {
    frame::encode(&forward(4, vec![1; 500]), &LIMITS).unwrap().to_vec()
}

#[tokio::test]
async fn malformed_frames_harm_no_other_peer() {
    let mut victim = Side::new(1);
    let hostile = Hostile::new(&victim).await;

    let backward = v1::Backward { loss: Some(v1::Loss::default()), ..Default::default() };
    let message = Some(v1::frame::Message::Backward(backward));
    let header = v1::Frame { message, payload_bytes: 4 << 30, ..Default::default() }.encode_to_vec();
    let huge = [&0x5357_4C02_u32.to_be_bytes()[..], &(header.len() as u32).to_be_bytes(), &header].concat();
    hostile.stream(&huge).await;
    let allowed = LIMITS.activation_bytes_max as u64;
    assert_eq!(
        victim.malformed().await,
        FrameError::TooLong { part: Part::Activation, announced: 4 << 30, allowed }
    );

    let truncated = whole_frame();
    hostile.stream(&truncated[..truncated.len() - 1]).await;
    assert!(matches!(victim.malformed().await, FrameError::Truncated { part: Part::Activation, .. }));

    hostile.stream(&[0xEE; 300]).await;
    assert!(matches!(victim.malformed().await, FrameError::Magic { .. }));

    hostile.stream(&[whole_frame(), vec![0]].concat()).await;
    assert!(matches!(victim.malformed().await, FrameError::Trailing { .. }));

    // Messages of the same connection and of another peer still arrive.
    hostile.stream(&whole_frame()).await;
    assert_eq!(victim.message().await, (hostile.identity.peer(), forward(4, vec![1; 500])));
    let honest = Side::new(2);
    honest.send(&victim, &forward(8, Vec::new())).await;
    assert_eq!(victim.message().await.0, honest.peer());
}

#[tokio::test]
async fn repeated_malformed_frames_end_the_connection() {
    let mut victim = Side::new(1);
    let hostile = Hostile::new(&victim).await;
    for _ in 0..20 {
        let Ok(mut stream) = soon(hostile.connection.open_uni()).await else { break };
        let _ = soon(stream.write_all(&[0; 64])).await;
    }
    let end = soon(hostile.connection.closed()).await;
    assert!(end.to_string().contains("too many malformed frames"), "{end}");
    victim.until(|event| matches!(event, NetEvent::Disconnected { .. }).then_some(())).await;
}

#[tokio::test]
async fn a_connection_without_a_handshake_is_dropped_and_never_announced() {
    let mut victim = Side::new(1);
    let hostile = Hostile::mute(&victim).await;
    let (mut send, mut receive) = soon(hostile.connection.open_bi()).await.unwrap();
    soon(send.write_all(&[0xFF; 5000])).await.unwrap();
    let _ = send.finish();
    let _ = soon(receive.read_to_end(4096)).await;
    soon(hostile.connection.closed()).await;
    let honest = Side::new(2);
    honest.send(&victim, &forward(8, Vec::new())).await;
    assert!(matches!(victim.event().await, NetEvent::Connected(instance) if instance.peer == honest.peer()));
    hostile.endpoint.close(code::CLOSED, b"");
}

#[tokio::test]
async fn a_frame_the_receiver_refuses_comes_back() {
    // Longer than the receiver's window, so that the refusal comes before the end of the frame.
    let wide = Settings { limits: FrameLimits { activation_bytes_max: 1 << 20, ..LIMITS }, ..SETTINGS };
    let (sender, mut events) = bind(1, wide);
    let (receiver, _received) = bind(2, SETTINGS);
    let envelope = forward(3, vec![0; 1 << 20]);
    let address = receiver.local_addr().unwrap();
    sender.send(Identity::from_seed([2; 32]).peer(), address, envelope.clone()).unwrap();
    loop {
        match soon(events.recv()).await.unwrap() {
            NetEvent::Unreachable { reason: LinkError::FrameRefused { .. }, undelivered, .. } => {
                break assert_eq!(undelivered, [envelope]);
            }
            NetEvent::Connected(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn bind(seed: u8, settings: Settings) -> (DataPlane, mpsc::Receiver<NetEvent>) {
    let handshake = HandshakeInfo::new(RUN, Incarnation(0));
    let anywhere = "127.0.0.1:0".parse().unwrap();
    DataPlane::bind(&Identity::from_seed([seed; 32]), anywhere, handshake, Trust::anyone(), settings).unwrap()
}

#[test]
fn silence_is_noticed_within_seconds_and_memory_is_bounded() {
    let huge = FrameLimits { activation_bytes_max: usize::MAX, ..LIMITS };
    let config =
        format!("{:?}", tuning::transport(&Settings { limits: huge, window: usize::MAX, ..SETTINGS }));
    for part in ["max_idle_timeout: Some(5000)", "keep_alive_interval: Some(1s)", "receive_window: 268435456"]
    {
        assert!(config.contains(part), "{part} in {config}");
    }
}
