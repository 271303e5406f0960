//! Real endpoints on the loopback interface, some of them hostile.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};

use prost::Message as _;
use quinn::Connection;
use std::time::Instant;
use swarmline_proto::v1;

use swarmline_scheduler::{
    Attempt, Health, Heartbeat, Loss, Message, MicrobatchId, Purpose, RouteKey, Time, Verdict, WeightVersion,
};

use super::*;
use crate::net::frame::Part;
use crate::net::tls::Pin;

/// Limit of each step of a test.
const PATIENCE: Duration = Duration::from_secs(20);
const LIMITS: FrameLimits = FrameLimits {
    header_bytes_max: 2048,
    ids_bytes_max: 4096,
    activation_bytes_max: 64 << 10,
    logits_bytes_max: 1024,
};
const SETTINGS: Settings =
    Settings { limits: LIMITS, window: 64, congestion: Congestion::Bbr, connections_max: CONNECTIONS_MAX };
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
        key: RouteKey::default(),
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
    match &envelope.message {
        Message::Forward { microbatch, .. } | Message::Backward { microbatch, .. } => microbatch.0,
        Message::Evaluated { proof, .. } | Message::Refused { proof, .. } => proof.microbatch.0,
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
    let capacity = lane::Lane::Bulk.capacity(&SETTINGS) as u64;
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
    let began = Instant::now();
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

/// Accepts connections with a trusted key and closes each as if to make room, without an end.
struct Recycler {
    peer: PeerId,
    address: SocketAddr,
    dialled: Arc<AtomicU32>,
    task: tokio::task::JoinHandle<()>,
}

impl Recycler {
    /// Closes a connection `pause` after the first bytes of a frame. It never takes a long frame as a whole, which would
    /// be delivered then.
    fn start(pause: Duration) -> Self {
        let identity = Identity::from_seed([66; 32]);
        let mut transport = tuning::transport(&SETTINGS);
        transport.stream_receive_window(VarInt::from_u32(500));
        let server = tuning::server(&identity, Trust::anyone(), Arc::new(transport)).unwrap();
        let endpoint = Endpoint::server(server, "127.0.0.1:0".parse().unwrap()).unwrap();
        let (address, dialled) = (endpoint.local_addr().unwrap(), Arc::new(AtomicU32::new(0)));
        let task = tokio::spawn(recycle_all(endpoint, Arc::clone(&dialled), pause));
        Self { peer: identity.peer(), address, dialled, task }
    }
}

impl Drop for Recycler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn recycle_all(endpoint: Endpoint, dialled: Arc<AtomicU32>, pause: Duration) {
    while let Some(incoming) = endpoint.accept().await {
        let Ok(connection) = incoming.await else { continue };
        let hello = HandshakeInfo::new(RUN, Incarnation(5));
        if handshake::answer(&connection, &hello).await.is_ok() {
            dialled.fetch_add(1, Ordering::Relaxed);
            let _stream = connection.accept_uni().await;
            tokio::time::sleep(pause).await;
            connection.close(code::RECYCLED, b"room for another peer");
        }
    }
}

#[tokio::test]
async fn a_peer_that_recycles_every_connection_is_lost_and_dialled_no_more() {
    let mut victim = Side::new(1);
    let hostile = Recycler::start(Duration::ZERO);
    victim.plane.send(hostile.peer, hostile.address, forward(0, vec![1; 1000])).unwrap();
    let (mut given_back, mut told) = (false, false);
    while !(given_back && told) {
        match victim.event().await {
            NetEvent::Unreachable { reason: LinkError::Lost { .. }, undelivered, .. } => {
                assert_eq!(undelivered, [forward(0, vec![1; 1000])]);
                given_back = true;
            }
            NetEvent::Disconnected { instance, .. } => told = instance.peer == hostile.peer,
            NetEvent::Connected(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let dials = hostile.dialled.load(Ordering::Relaxed);
    assert!((recycling::RECYCLED_MAX..recycling::RECYCLED_MAX + 6).contains(&dials), "{dials} dials");
}

#[tokio::test]
async fn a_peer_that_takes_short_frames_and_recycles_under_a_long_one_gets_that_a_limited_number_of_times() {
    let mut victim = Side::new(1);
    let hostile = Recycler::start(Duration::from_millis(60));
    let long = forward(0, vec![1; 1000]);
    victim.plane.send(hostile.peer, hostile.address, long.clone()).unwrap();
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    let given_back = async {
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    let short = Message::Heartbeat(Heartbeat::default()).into();
                    victim.plane.send(hostile.peer, hostile.address, short).unwrap();
                }
                event = victim.events.recv() => match event.unwrap() {
                    NetEvent::Unreachable { undelivered, .. } if undelivered.contains(&long) => return,
                    _ => {}
                }
            }
        }
    };
    soon(given_back).await;
    let dials = hostile.dialled.load(Ordering::Relaxed);
    assert!((recycling::RECYCLED_MAX..2 * recycling::RECYCLED_MAX).contains(&dials), "{dials} dials");
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

#[test]
fn long_frames_leave_streams_and_bytes_to_short_messages() {
    for (window, activation_bytes_max) in
        [(1, 100), (64, 64 << 10), (1024, 32 << 20), (usize::MAX, usize::MAX)]
    {
        let limits = FrameLimits { activation_bytes_max, ..LIMITS };
        let settings = Settings { limits, window, ..SETTINGS };
        let config = format!("{:?}", tuning::transport(&settings));
        let (frames, bytes) = lane::Lane::Bulk.unacknowledged_max(&settings);
        let allowed = format!("max_concurrent_uni_streams: {}", frames as u32 + tuning::CONTROL_STREAMS);
        assert!(config.contains(&allowed), "{allowed} in {config}");
        assert!(bytes + limits.frame_bytes_max().min(64 << 20) + (1 << 20) <= 256 << 20, "{bytes}");
        assert!(bytes >= 10 << 20, "{bytes}");
    }
}

/// Carries datagrams between two sockets, one way at `bytes_per_second` through a short buffer that drops from its end,
/// like a home router with a thin uplink.
struct ThinUplink {
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl ThinUplink {
    async fn to(inner: SocketAddr, bytes_per_second: u32) -> Self {
        const BUFFER: usize = 64;
        let outside = Arc::new(tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let inside = Arc::new(tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap());
        inside.connect(inner).await.unwrap();
        let address = outside.local_addr().unwrap();
        let (buffer, mut buffered) = mpsc::channel::<Vec<u8>>(BUFFER);
        let (client, mut known) = watch::channel(None);
        let slow = Arc::clone(&inside);
        let task = tokio::spawn(async move {
            let up = async {
                let mut bytes = vec![0; 2048];
                while let Ok((length, from)) = outside.recv_from(&mut bytes).await {
                    client.send_replace(Some(from));
                    let _ = buffer.try_send(bytes[..length].to_vec());
                }
            };
            let out = async {
                let mut free_at = tokio::time::Instant::now();
                while let Some(datagram) = buffered.recv().await {
                    let takes = Duration::from_secs(1) * datagram.len() as u32 / bytes_per_second;
                    free_at = free_at.max(tokio::time::Instant::now()) + takes;
                    tokio::time::sleep_until(free_at).await;
                    let _ = slow.send(&datagram).await;
                }
            };
            let down = async {
                let mut bytes = vec![0; 2048];
                while let Ok(length) = inside.recv(&mut bytes).await {
                    let to = *known.borrow_and_update();
                    if let Some(to) = to {
                        let _ = outside.send_to(&bytes[..length], to).await;
                    }
                }
            };
            tokio::join!(up, out, down);
        });
        Self { address, task }
    }
}

impl Drop for ThinUplink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// 4 MB at 400 kB/s take 10 s. Meanwhile heartbeats overtake them, and their own bytes show that the sender lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_frame_over_a_thin_uplink_delays_no_heartbeat_and_shows_that_its_sender_lives() {
    const BYTES: usize = 4_000_000;
    let wide = Settings { limits: FrameLimits { activation_bytes_max: BYTES, ..LIMITS }, ..SETTINGS };
    let (left, _left_events) = bind(1, wide);
    let (right, mut events) = bind(2, wide);
    let uplink = ThinUplink::to(right.local_addr().unwrap(), 400_000).await;
    let receiver = Identity::from_seed([2; 32]).peer();
    let beat = |counter| {
        let heartbeat = Heartbeat { counter, ..Heartbeat::default() };
        left.send(receiver, uplink.address, Message::Heartbeat(heartbeat).into()).unwrap();
    };
    let began = Instant::now();
    let now = || Time(u64::try_from(began.elapsed().as_nanos()).unwrap());
    let sender = Instance::new(Identity::from_seed([1; 32]).peer(), Incarnation(0));
    // One judge hears everything, the other only bytes of the unfinished frame.
    let (mut all, mut bytes_only) = (Health::default(), Health::default());
    [&mut all, &mut bytes_only].into_iter().for_each(|health| health.watch(now(), sender));
    left.send(receiver, uplink.address, forward(0, vec![5; BYTES])).unwrap();
    let (mut beats, mut latest, mut worst) = (0, 0, Duration::ZERO);
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut sent_at = Vec::new();
    loop {
        tokio::select! {
            _ = tick.tick() => {
                sent_at.push(Instant::now());
                beat(sent_at.len() as u64);
                [&mut all, &mut bytes_only].into_iter().for_each(|health| health.reached(now()));
            }
            event = events.recv() => match event.unwrap() {
                NetEvent::Received { envelope, .. } => match envelope.message {
                    Message::Heartbeat(heartbeat) => {
                        (beats, latest) = (beats + 1, heartbeat.counter);
                        worst = worst.max(sent_at[latest as usize - 1].elapsed());
                        all.heard(now(), sender, heartbeat);
                    }
                    _ => break,
                },
                NetEvent::Arriving(from) => {
                    assert_eq!(from, sender);
                    all.message(now(), sender);
                    bytes_only.message(now(), sender);
                }
                _ => {}
            },
        }
        for health in [&all, &bytes_only] {
            assert_ne!(health.verdict(now(), sender), Verdict::Dead, "after {:?}", began.elapsed());
        }
        assert!(began.elapsed() < PATIENCE * 3, "the frame does not arrive");
    }
    let took = began.elapsed();
    println!("{BYTES} bytes in {took:?}; {beats} heartbeats meanwhile, the slowest in {worst:?}");
    assert!(took > Duration::from_secs(9), "the uplink is thin: {took:?}");
    assert!(beats + 2 >= latest && worst < Duration::from_secs(2), "{beats} of {latest}, {worst:?}");
    assert!(sent_at.len() as u64 <= latest + 3, "heartbeats pass while the frame is on its way");
}

#[tokio::test]
async fn a_status_request_does_not_overtake_the_microbatch_it_asks_about() {
    let left = Side::new(1);
    let mut right = Side::new(2);
    let route = Vec::new();
    let status = Message::StatusRequest {
        microbatch: MicrobatchId(0),
        attempt: Attempt(0),
        route,
        key: RouteKey::default(),
    };
    let (to, at) = (right.peer(), right.address);
    left.plane.send(to, at, forward(0, vec![1; 60_000])).unwrap();
    left.plane.send(to, at, status.clone().into()).unwrap();
    left.plane.send(to, at, forward(0, vec![1; 60_000])).unwrap();
    assert_eq!(id_of(&right.message().await.1), 0);
    // The acknowledgement may come a moment after the microbatch.
    let mut outstanding = left.plane.shared.outstanding.subscribe();
    soon(outstanding.wait_for(|frames| *frames == 0)).await.unwrap();
    left.plane.send(to, at, status.clone().into()).unwrap();
    assert_eq!(right.message().await.1.message, status, "neither a second forward nor an early question");
}

#[tokio::test]
async fn a_peer_speaks_to_more_peers_than_it_may_have_connections() {
    const CONNECTIONS: usize = 4;
    let few = Settings { connections_max: CONNECTIONS, ..SETTINGS };
    let (hub, mut events) = bind(1, few);
    let mut spokes: Vec<Side> = (2..12).map(Side::new).collect();
    for round in 0..2 {
        for spoke in &mut spokes {
            let message = forward(round, vec![1; 1000]);
            hub.send(spoke.peer(), spoke.address, message.clone()).unwrap();
            assert_eq!(spoke.message().await.1, message);
            let mut outstanding = hub.shared.outstanding.subscribe();
            soon(outstanding.wait_for(|frames| *frames == 0)).await.unwrap();
            assert!(hub.round_trips().len() <= CONNECTIONS);
        }
    }
    // And in the other direction: strangers that dial it.
    let hub_address = hub.local_addr().unwrap();
    let hub_peer = Identity::from_seed([1; 32]).peer();
    for spoke in &spokes {
        spoke.plane.send(hub_peer, hub_address, backward(7)).unwrap();
        loop {
            match soon(events.recv()).await.unwrap() {
                NetEvent::Received { from, .. } if from.peer == spoke.peer() => break,
                NetEvent::Received { .. } | NetEvent::Connected(_) | NetEvent::Arriving(_) => {}
                other => panic!("a recycled connection is no loss: {other:?}"),
            }
        }
    }
    for spoke in &mut spokes {
        while let Ok(event) = spoke.events.try_recv() {
            assert!(
                !matches!(event, NetEvent::Disconnected { .. } | NetEvent::Unreachable { .. }),
                "{event:?}"
            );
        }
    }
}

/// Waits until the peer has acknowledged every frame.
async fn delivered(plane: &DataPlane) {
    let mut outstanding = plane.shared.outstanding.subscribe();
    soon(outstanding.wait_for(|frames| *frames == 0)).await.unwrap();
}

/// Closes the connection with a peer as if to make room for another.
fn recycle(plane: &DataPlane, peer: PeerId) {
    let connection = plane.shared.peers.connection(&peer).unwrap();
    connection.close(code::RECYCLED, b"room for another peer");
}

fn assert_no_loss(side: &mut Side) {
    while let Ok(event) = side.events.try_recv() {
        let loss = matches!(event, NetEvent::Disconnected { .. } | NetEvent::Unreachable { .. });
        assert!(!loss, "{event:?}");
    }
}

#[tokio::test]
async fn a_peer_that_recycles_often_and_takes_frames_in_between_is_never_lost() {
    let (mut left, mut right) = (Side::new(1), Side::new(2));
    for id in 0..3 * u64::from(recycling::RECYCLED_MAX) {
        left.send(&right, &forward(id, vec![1; 1000])).await;
        assert_eq!(id_of(&right.message().await.1), id);
        delivered(&left.plane).await;
        let connection = left.plane.shared.peers.connection(&right.peer()).unwrap();
        recycle(&right.plane, left.peer());
        soon(connection.closed()).await;
    }
    left.send(&right, &forward(999, Vec::new())).await;
    delivered(&left.plane).await;
    assert_no_loss(&mut left);
}

#[tokio::test]
async fn connections_that_this_process_recycles_are_not_held_against_the_peer() {
    let (hub, mut events) = bind(1, Settings { connections_max: 1, ..SETTINGS });
    let (hub_peer, hub_address) = (Identity::from_seed([1; 32]).peer(), hub.local_addr().unwrap());
    let spokes = [Side::new(2), Side::new(3)];
    for spoke in &spokes {
        hub.send(spoke.peer(), spoke.address, forward(0, Vec::new())).unwrap();
        delivered(&hub).await;
    }
    for id in 0..2 * u64::from(recycling::RECYCLED_MAX) {
        for spoke in &spokes {
            spoke.plane.send(hub_peer, hub_address, forward(id, Vec::new())).unwrap();
            received_without_loss(&mut events, id).await;
        }
    }
    let connection = hub.shared.peers.connection(&spokes[1].peer()).unwrap();
    recycle(&spokes[1].plane, hub_peer);
    soon(connection.closed()).await;
    // Opens when the hub has seen that end.
    spokes[1].plane.send(hub_peer, hub_address, forward(99, Vec::new())).unwrap();
    received_without_loss(&mut events, 99).await;
}

/// Waits for a microbatch; no peer is lost before it comes.
async fn received_without_loss(events: &mut mpsc::Receiver<NetEvent>, id: u64) {
    loop {
        match soon(events.recv()).await.unwrap() {
            NetEvent::Received { envelope, .. } if id_of(&envelope) == id => return,
            NetEvent::Received { .. } | NetEvent::Connected(_) | NetEvent::Arriving(_) => {}
            other => panic!("a recycled connection is no loss: {other:?}"),
        }
    }
}
