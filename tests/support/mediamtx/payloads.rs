//! The control API's objects, with every field that v1.20.1 sends, the deprecated ones among them.

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::node::{Connection, Flow, PathEntry, PathSource, Stage, State};
use super::options::Release;
use super::requests::{Action, ConnectionKind, Track};

/// Counters of an SRT connection that stay 0 here.
const SRT_ZEROS: &[&str] = &[
    "packetsSent",
    "packetsSentUnique",
    "packetsSendLoss",
    "packetsReceivedLoss",
    "packetsRetrans",
    "packetsReceivedRetrans",
    "packetsReceivedACK",
    "packetsSentNAK",
    "packetsReceivedNAK",
    "packetsSentKM",
    "packetsReceivedKM",
    "usSndDuration",
    "packetsReceivedBelated",
    "packetsSendDrop",
    "packetsReceivedDrop",
    "packetsReceivedUndecrypt",
    "bytesSent",
    "bytesSentUnique",
    "bytesReceivedLoss",
    "bytesRetrans",
    "bytesReceivedRetrans",
    "bytesReceivedBelated",
    "bytesSendDrop",
    "bytesReceivedDrop",
    "bytesReceivedUndecrypt",
    "packetsFlightSize",
    "mbpsSendRate",
    "bytesAvailSendBuf",
    "bytesAvailReceiveBuf",
    "packetsSendBuf",
    "bytesSendBuf",
    "msSendBuf",
    "packetsReceiveBuf",
    "bytesReceiveBuf",
    "msReceiveBuf",
    "packetsReorderTolerance",
    "packetsReceivedAvgBelatedTime",
    "packetsSendLossRate",
    "packetsReceivedLossRate",
    "outboundFramesDiscarded",
];

/// Bytes of a packet, to make packet counts of bytes.
const PACKET_BYTES: u64 = 1_316;

pub(super) fn info(state: &State, version: &str) -> Value {
    json!({ "version": version, "started": rfc3339(state.started) })
}

pub(super) fn path(state: &State, name: &str, entry: &PathEntry, release: Release) -> Value {
    let readers = readers(state, name);
    let nothing = (Flow::still(0), Vec::new());
    let (flow, tracks) = match &entry.source {
        PathSource::Waiting => nothing,
        PathSource::Pulled { flow, tracks, .. } => (*flow, tracks.clone()),
        PathSource::Publisher(id) => {
            state.connections.get(id).map_or(nothing, |connection| (connection.flow, connection.tracks.clone()))
        }
    };
    let source = state.source(name);
    let is_online = source.is_some();
    let since = is_online.then(|| rfc3339(entry.since));
    let inbound = flow.bytes();
    let outbound = inbound * readers.len() as u64;
    let mut item = json!({
        "name": name,
        "confName": "all_others",
        "ready": is_online,
        "readyTime": since,
        "source": source.map(|(source_type, id)| json!({ "type": source_type, "id": id })),
        "tracks": tracks.iter().map(|track| track.codec.as_str()).collect::<Vec<_>>(),
        "readers": readers,
        "bytesReceived": inbound,
        "bytesSent": outbound,
    });
    if release == Release::V1_20 {
        let newer = json!({
            "available": is_online,
            "availableTime": since,
            "online": is_online,
            "onlineTime": since,
            "tracks2": tracks.iter().map(track2).collect::<Vec<_>>(),
            "inboundBytes": inbound,
            "outboundBytes": outbound,
            "inboundFramesInError": 0,
        });
        merge(&mut item, newer);
    }
    item
}

fn readers(state: &State, path: &str) -> Vec<Value> {
    let reads = state.connections.values().filter(|connection| connection.reads(path));
    reads.map(|reader| json!({ "type": reader.client.kind.type_name(), "id": reader.id })).collect()
}

fn track2(track: &Track) -> Value {
    json!({ "codec": track.codec, "codecProps": track.codec_props })
}

pub(super) fn connection(connection: &Connection, release: Release) -> Value {
    let mut item = common(connection);
    let own = match connection.client.kind {
        ConnectionKind::RtmpConn | ConnectionKind::RtmpsConn => rtmp(connection),
        ConnectionKind::RtspSession | ConnectionKind::RtspsSession => rtsp(connection),
        ConnectionKind::SrtConn => srt(connection),
        ConnectionKind::WebRtcSession => webrtc(connection),
        ConnectionKind::HlsSession => json!({ "isCDN": false, "outboundBytes": 0 }),
    };
    merge(&mut item, own);
    remove_foreign(&mut item, connection.client.kind, release);
    item
}

/// The connection under an RTSP session.
pub(super) fn rtsp_connection(session: &Connection, release: Release) -> Value {
    let bytes = session.flow.bytes();
    let mut item = json!({
        "id": session.transport_id,
        "created": rfc3339(session.created),
        "remoteAddr": session.remote_address,
        "session": session.id,
        "tunnel": "none",
        "inboundBytes": bytes,
        "outboundBytes": 0,
        "bytesReceived": bytes,
        "bytesSent": 0,
    });
    remove_foreign(&mut item, session.client.kind, release);
    item
}

/// RTMP and SRT know their path only once they publish or read; WebRTC, RTSP and HLS from their request on.
fn common(connection: &Connection) -> Value {
    let client = &connection.client;
    let on_path = connection.stage == Stage::OnPath;
    let tells_path_late =
        matches!(client.kind, ConnectionKind::RtmpConn | ConnectionKind::RtmpsConn | ConnectionKind::SrtConn);
    let knows_path = on_path || !tells_path_late;
    let knows_user = if tells_path_late { on_path } else { connection.stage != Stage::Asking };
    let state = match (client.kind, connection.stage) {
        (ConnectionKind::WebRtcSession, _) | (_, Stage::OnPath) => client.action.name(),
        _ => "idle",
    };
    let when = |known: bool, text: &str| if known { text.to_owned() } else { String::new() };
    json!({
        "id": connection.id,
        "created": rfc3339(connection.created),
        "remoteAddr": connection.remote_address,
        "state": state,
        "path": when(knows_path, &client.path),
        "query": when(knows_path, &client.query),
        "user": when(knows_user, &client.credentials.user),
        "userAgent": client.user_agent,
    })
}

fn rtmp(connection: &Connection) -> Value {
    let bytes = connection.flow.bytes();
    json!({
        "inboundBytes": bytes,
        "outboundBytes": 3_467,
        "outboundFramesDiscarded": 0,
        "bytesReceived": bytes,
        "bytesSent": 3_467,
    })
}

fn rtsp(connection: &Connection) -> Value {
    let is_set_up = connection.stage == Stage::OnPath;
    let bytes = connection.flow.bytes();
    let packets = bytes / PACKET_BYTES;
    json!({
        "transport": is_set_up.then_some("TCP"),
        "profile": is_set_up.then_some("AVP"),
        "conns": [connection.transport_id],
        "inboundBytes": bytes,
        "inboundRTPPackets": packets,
        "inboundRTPPacketsLost": 0,
        "inboundRTPPacketsInError": 0,
        "inboundRTPPacketsJitter": 0.0,
        "inboundRTCPPackets": 0,
        "inboundRTCPPacketsInError": 0,
        "outboundBytes": 0,
        "outboundRTPPackets": 0,
        "outboundRTPPacketsReportedLost": 0,
        "outboundRTPPacketsDiscarded": 0,
        "outboundRTCPPackets": 0,
        "bytesReceived": bytes,
        "bytesSent": 0,
        "rtpPacketsReceived": packets,
        "rtpPacketsSent": 0,
        "rtpPacketsLost": 0,
        "rtpPacketsInError": 0,
        "rtpPacketsJitter": 0.0,
        "rtcpPacketsReceived": 0,
        "rtcpPacketsSent": 0,
        "rtcpPacketsInError": 0,
    })
}

fn webrtc(connection: &Connection) -> Value {
    let is_established = connection.stage == Stage::OnPath;
    let bytes = connection.flow.bytes();
    let packets = bytes / PACKET_BYTES;
    let candidate = |text: &'static str| if is_established { text } else { "" };
    json!({
        "peerConnectionEstablished": is_established,
        "localCandidate": candidate("host/udp/127.0.0.1/8189"),
        "remoteCandidate": candidate("host/udp/192.0.2.2/57981"),
        "inboundBytes": bytes,
        "inboundRTPPackets": packets,
        "inboundRTPPacketsLost": 0,
        "inboundRTPPacketsJitter": 0.0,
        "inboundRTCPPackets": 0,
        "outboundBytes": 0,
        "outboundRTPPackets": 0,
        "outboundRTCPPackets": 0,
        "outboundFramesDiscarded": 0,
        "bytesReceived": bytes,
        "bytesSent": 0,
        "rtpPacketsReceived": packets,
        "rtpPacketsSent": 0,
        "rtpPacketsLost": 0,
        "rtpPacketsJitter": 0.0,
        "rtcpPacketsReceived": 0,
        "rtcpPacketsSent": 0,
    })
}

fn srt(connection: &Connection) -> Value {
    let bytes = connection.flow.bytes();
    let packets = bytes / PACKET_BYTES;
    let mut item: Map<String, Value> = SRT_ZEROS.iter().map(|name| ((*name).to_owned(), json!(0))).collect();
    for (name, value) in [
        ("packetsReceived", json!(packets)),
        ("packetsReceivedUnique", json!(packets)),
        ("packetsSentACK", json!(packets * 2)),
        ("bytesReceived", json!(bytes)),
        ("bytesReceivedUnique", json!(bytes)),
        ("usPacketsSendPeriod", json!(10.967)),
        ("packetsFlowWindow", json!(25_600)),
        ("msRTT", json!(0.285)),
        ("mbpsReceiveRate", json!(0.245)),
        ("mbpsLinkCapacity", json!(12.88)),
        ("mbpsMaxBW", json!(-1)),
        ("byteMSS", json!(1_500)),
        ("msSendTsbPdDelay", json!(120)),
        ("msReceiveTsbPdDelay", json!(120)),
    ] {
        item.insert(name.to_owned(), value);
    }
    Value::Object(item)
}

/// Takes away what this kind or this release does not have.
fn remove_foreign(item: &mut Value, kind: ConnectionKind, release: Release) {
    let Some(item) = item.as_object_mut() else { return };
    if kind == ConnectionKind::SrtConn {
        item.remove("userAgent");
    }
    if kind == ConnectionKind::HlsSession {
        item.remove("state");
    }
    if release == Release::V1_15 {
        let is_newer = |name: &str| name.starts_with("inbound") || name.starts_with("outbound") || name == "userAgent";
        item.retain(|name, _| !is_newer(name));
    }
}

fn merge(item: &mut Value, more: Value) {
    if let (Value::Object(item), Value::Object(more)) = (item, more) {
        item.extend(more);
    }
}

fn rfc3339(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).expect("a time of this century can be written")
}
