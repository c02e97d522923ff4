//! The stand-in for a media node behaves as the measured contract says.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use support::asked_service::{AskedService, KEY, REFUSAL, client, get, post};
use support::mediamtx::{
    ApiAuth, ConnectionKind, Going, HookBehaviour, HookEncoding, HookEvent, KickBehaviour, MediaMtx, MediaMtxOptions,
    OnAir, Override, PublishRequest, ReadOutcome, ReadRequest, Release, WAIT_MAX,
};

const PATH: &str = "live/ch1";

fn options(service: &AskedService) -> MediaMtxOptions {
    MediaMtxOptions {
        hooks: Some(service.hooks(HookEncoding::Json)),
        api_auth: ApiAuth::Excluded,
        ..MediaMtxOptions::new("edge-1", service.auth_url())
    }
}

async fn service_and_node() -> (AskedService, MediaMtx) {
    let service = AskedService::start().await;
    let node = MediaMtx::start(options(&service)).await;
    (service, node)
}

fn publisher(path: &str) -> PublishRequest {
    PublishRequest::rtmp_query_key(path, KEY)
}

async fn kick(node: &MediaMtx, collection: &str, id: impl std::fmt::Display) -> (u16, Value) {
    post(node, &format!("/v3/{collection}/kick/{id}")).await
}

fn ends_called(service: &AskedService) -> Vec<String> {
    service.called().into_iter().map(|called| called.end).collect()
}

#[tokio::test]
async fn every_auth_call_comes_on_a_connection_of_its_own_as_go_sends_it() {
    let (service, node) = service_and_node().await;
    for number in 0..5 {
        node.publish(publisher(&format!("live/{number}"))).await.admitted();
    }
    let asked = service.asked();
    let peers: BTreeSet<_> = asked.iter().map(|it| it.peer).collect();
    assert_eq!(peers.len(), 5);
    for it in asked {
        assert_eq!(it.headers["content-type"], "application/json");
        assert_eq!(it.headers["user-agent"], "Go-http-client/1.1");
        assert_eq!(it.headers["authorization"], "Basic ZWRnZS0xOnB3");
    }
}

#[tokio::test]
async fn clients_are_asked_about_one_after_another() {
    let (service, node) = service_and_node().await;
    service.hold_answers();
    let attempts = futures_util::future::join_all((0..8).map(|it| node.publish(publisher(&format!("live/{it}")))));
    let watch = async {
        node.until("eight clients are connected", || node.connections().len() == 8).await;
        node.until("one call is open", || node.counts().auth_calls == 1).await;
        service.answer();
    };
    let (outcomes, ()) = tokio::join!(attempts, watch);
    for outcome in outcomes {
        outcome.admitted();
    }
    assert_eq!(node.counts().auth_calls, 8);
    assert_eq!(node.counts().client_auth_calls_parallel_max, 1);
}

#[tokio::test]
async fn only_paths_wait_for_an_open_auth_call() {
    let (service, node) = service_and_node().await;
    service.hold_answers();
    let attempt = node.publish(publisher(PATH));
    let watch = async {
        node.until("the call is open", || service.asked().len() == 1).await;
        let (_, list) = get(&node, "/v3/rtmpconns/list").await;
        assert_eq!(list["items"][0]["state"], "idle");
        assert_eq!(list["items"][0]["path"], "");
        assert_eq!(get(&node, "/v3/info").await.0, 200);

        let waiting = tokio::time::timeout(Duration::from_millis(100), get(&node, "/v3/paths/list"));
        assert!(waiting.await.is_err(), "paths/list was answered while a call was open");
        service.answer();
    };
    let (outcome, ()) = tokio::join!(attempt, watch);
    outcome.admitted();
    assert_eq!(get(&node, "/v3/paths/list").await.1["itemCount"], 1);
}

#[tokio::test]
async fn a_call_that_is_not_answered_in_time_refuses() {
    let service = AskedService::start().await;
    let read_timeout = Duration::from_millis(100);
    let node = MediaMtx::start(MediaMtxOptions { read_timeout, ..options(&service) }).await;
    service.hold_answers();
    let answer = node.publish(publisher(PATH)).await.refused();
    assert_eq!(answer.status, None);
    assert!(node.connections().is_empty());
}

#[tokio::test]
async fn a_refused_publisher_gets_the_answer_and_leaves_nothing() {
    let (service, node) = service_and_node().await;
    let answer = node.publish(PublishRequest::rtmp_query_key(PATH, "wrong")).await.refused();
    assert_eq!((answer.status, answer.body.as_str()), (Some(401), REFUSAL));
    assert!(node.connections().is_empty());
    node.publish(publisher("live/~ch1")).await.refused();
    assert_eq!(service.asked().len(), 1, "a path that cannot be is refused without a call");
}

#[tokio::test]
async fn an_rtsp_publisher_shows_its_key_when_asked_under_the_same_id() {
    let (service, node) = service_and_node().await;
    let publisher = node.publish(PublishRequest::rtsp(PATH, "ch1", KEY)).await.admitted();
    let ids: Vec<_> = service.asked().iter().map(|it| it.body["id"].clone()).collect();
    assert_eq!(ids, [publisher.id().to_string(), publisher.id().to_string()]);
    node.publish(PublishRequest::rtsp_without_credentials("live/ch2")).await.refused();
    assert_eq!(service.asked().len(), 3);
}

#[tokio::test]
async fn the_asked_id_is_the_source_id_everywhere() {
    let (service, node) = service_and_node().await;
    for (collection, request) in [
        ("rtmpconns", publisher(PATH)),
        ("rtmpsconns", publisher(PATH).over_tls()),
        ("srtconns", PublishRequest::srt_streamid(PATH, "ch1", KEY)),
        ("rtspssessions", PublishRequest::rtsp(PATH, "ch1", KEY).over_tls()),
        ("webrtcsessions", PublishRequest::whip_bearer(PATH, KEY)),
    ] {
        let publisher = node.publish(request).await.admitted();
        let id = publisher.id().to_string();
        assert_eq!(service.asked().pop().expect("it was asked").body["id"], id);
        let (_, path) = get(&node, &format!("/v3/paths/get/{PATH}")).await;
        assert_eq!(path["source"]["id"], id);
        assert_eq!(path["source"]["type"], publisher.source_type());
        let (_, connection) = get(&node, &format!("/v3/{collection}/get/{id}")).await;
        assert_eq!(connection["state"], "publish", "{collection}");
        let source_id = node.on_air().remove(0).source_id;
        assert_eq!(source_id, id);
    }
}

#[tokio::test]
async fn an_admitted_publisher_may_never_come_online() {
    let (service, node) = service_and_node().await;
    let publisher = node.publish(publisher(PATH).stays_connecting()).await.admitted();
    assert!(publisher.is_connected() && !publisher.is_online());
    assert_eq!(get(&node, &format!("/v3/paths/get/{PATH}")).await.0, 404);
    publisher.disconnect();
    publisher.until_gone().await;
    node.until_hooks_settled().await;
    assert_eq!(service.called(), []);
}

#[tokio::test]
async fn a_publisher_comes_online_after_its_delay() {
    let (_service, node) = service_and_node().await;
    let request = publisher(PATH).going(Going::OnlineAfter(Duration::from_millis(50)));
    let publisher = node.publish(request).await.admitted();
    assert!(!publisher.is_online());
    publisher.until_online().await;
    let bytes = publisher.inbound_bytes();
    node.until("bytes come in", || publisher.inbound_bytes() > bytes).await;
}

#[tokio::test]
async fn a_second_publisher_closes_the_first_when_it_comes_online() {
    let (service, node) = service_and_node().await;
    let first = node.publish(publisher(PATH)).await.admitted();
    let second = node.publish(publisher(PATH).stays_connecting()).await.admitted();
    assert!(first.is_online() && !second.is_online());
    let third = node.publish(publisher(PATH)).await.admitted();
    assert!(!first.is_connected() && third.is_online());
    node.until_hooks_settled().await;
    let mut ends = ends_called(&service);
    ends.sort();
    assert_eq!(ends, ["publish", "publish", "unpublish"]);
}

#[tokio::test]
async fn without_override_the_second_publisher_is_closed() {
    let service = AskedService::start().await;
    let node = MediaMtx::start(MediaMtxOptions { override_publisher: Override::No, ..options(&service) }).await;
    let first = node.publish(publisher(PATH)).await.admitted();
    let second = node.publish(publisher(PATH)).await.admitted();
    assert!(first.is_online() && !second.is_connected());
    assert_eq!(get(&node, "/v3/config/pathdefaults/get").await.1["overridePublisher"], false);
}

#[tokio::test]
async fn a_frozen_publisher_stays_online_with_standing_bytes_until_the_read_timeout() {
    let service = AskedService::start().await;
    let read_timeout = Duration::from_secs(1);
    let node = MediaMtx::start(MediaMtxOptions { read_timeout, ..options(&service) }).await;
    let publisher = node.publish(publisher(PATH)).await.admitted();
    publisher.freeze();
    let (_, before) = get(&node, &format!("/v3/paths/get/{PATH}")).await;
    let (_, after) = get(&node, &format!("/v3/paths/get/{PATH}")).await;
    assert_eq!(before["online"], true);
    assert_eq!(before["inboundBytes"], after["inboundBytes"]);
    publisher.until_gone().await;
    node.until_hooks_settled().await;
    assert!(ends_called(&service).contains(&"unpublish".to_owned()));
}

#[tokio::test]
async fn a_kick_takes_the_path_away_at_once_and_a_second_finds_nothing() {
    let (service, node) = service_and_node().await;
    let publisher = node.publish(publisher(PATH)).await.admitted();
    assert_eq!(kick(&node, "srtconns", publisher.id()).await.0, 404, "another kind's kick finds nothing");

    node.set_kick_behaviour(KickBehaviour::Failing);
    assert_eq!(kick(&node, "rtmpconns", publisher.id()).await.0, 500);
    node.set_kick_behaviour(KickBehaviour::Ignored);
    assert_eq!(kick(&node, "rtmpconns", publisher.id()).await.0, 200);
    assert!(publisher.is_online());

    node.set_kick_behaviour(KickBehaviour::Obeyed);
    assert_eq!(kick(&node, "rtmpconns", publisher.id()).await.0, 200);
    assert_eq!(get(&node, &format!("/v3/paths/get/{PATH}")).await.0, 404);
    assert_eq!(kick(&node, "rtmpconns", publisher.id()).await.0, 404);
    assert_eq!(node.counts().kicks_to("rtmpconns"), 4);
    node.until_hooks_settled().await;
    assert_eq!(service.called().len(), 2);
}

#[tokio::test]
async fn a_caller_of_the_control_api_is_asked_about_outside_the_path_loop() {
    let service = AskedService::start().await;
    let node = MediaMtx::start(MediaMtxOptions { api_auth: ApiAuth::Required, ..options(&service) }).await;
    let url = format!("{}/v3/info", node.control_url());
    let refused = client().get(&url).send().await.expect("the control API answers");
    assert_eq!(refused.status(), 401);
    assert!(refused.headers().contains_key("www-authenticate"));
    let body: Value = refused.json().await.expect("it answers JSON");
    assert_eq!(body["error"], "authentication error");

    let bearer = client().get(&url).bearer_auth(KEY).send().await.expect("the control API answers");
    assert_eq!(bearer.status(), 200);
    let call = service.asked().pop().expect("it was asked").body;
    assert_eq!((&call["action"], &call["token"]), (&"api".into(), &KEY.into()));
    assert!(call["id"].is_null());
    assert_eq!(node.counts().auth_calls_of("api"), 2);
}

#[tokio::test]
async fn a_killed_node_sends_no_off_and_comes_back_empty_with_a_new_start() {
    let (service, node) = service_and_node().await;
    let publisher = node.publish(publisher(PATH)).await.admitted();
    node.until_hooks_settled().await;
    let (_, before) = get(&node, "/v3/info").await;

    node.kill();
    assert!(!publisher.is_connected());
    let refused = client().get(format!("{}/v3/info", node.control_url())).send().await;
    assert!(refused.expect_err("the port is closed").is_connect());

    node.restart().await;
    let (_, after) = get(&node, "/v3/info").await;
    assert_ne!(before["started"], after["started"]);
    assert_eq!(get(&node, "/v3/paths/list").await.1["itemCount"], 0);
    assert_eq!(ends_called(&service), ["publish"]);
}

#[tokio::test]
async fn a_kill_cuts_the_auth_call_under_way() {
    let (service, node) = service_and_node().await;
    service.hold_answers();
    let attempt = node.publish(publisher(PATH));
    let watch = async {
        node.until("the call is open", || service.asked().len() == 1).await;
        node.kill();
    };
    let (outcome, ()) = tokio::join!(attempt, watch);
    let answer = outcome.refused();
    assert_eq!((answer.status, answer.body.as_str()), (None, "the node died"));
}

#[tokio::test]
async fn an_unreachable_node_refuses_connections_cuts_kept_ones_and_keeps_its_publishers() {
    let (_service, node) = service_and_node().await;
    let publisher = node.publish(publisher(PATH)).await.admitted();
    let keeping = client();
    let url = format!("{}/v3/info", node.control_url());
    let kept = keeping.get(&url).send().await.expect("it is reachable");
    kept.bytes().await.expect("a connection whose answer was read is kept");

    node.unreachable();
    assert!(keeping.get(&url).send().await.is_err());
    assert!(publisher.is_online());

    node.reachable().await;
    assert_eq!(get(&node, "/v3/paths/list").await.1["itemCount"], 1);
}

#[tokio::test]
async fn a_hanging_node_accepts_and_answers_when_it_is_back() {
    let (_service, node) = service_and_node().await;
    node.hang();
    let answer = get(&node, "/v3/info");
    let watch = async {
        node.until("the request is there", || node.counts().control_calls_to("/v3/info") == 1).await;
        node.reachable().await;
    };
    let ((status, _), ()) = tokio::join!(answer, watch);
    assert_eq!(status, 200);
}

#[tokio::test]
async fn a_node_that_goes_away_cuts_the_request_under_way() {
    let (_service, node) = service_and_node().await;
    node.hang();
    let request = client().get(format!("{}/v3/info", node.control_url())).timeout(WAIT_MAX).send();
    let watch = async {
        node.until("the request is there", || node.counts().control_calls == 1).await;
        node.unreachable();
    };
    let (answer, ()) = tokio::join!(request, watch);
    assert!(!answer.expect_err("the connection is cut").is_timeout());
}

#[tokio::test]
async fn hooks_are_doubled_reordered_lost_or_held_as_told() {
    for (behaviour, expected) in [
        (HookBehaviour::Delivered, vec!["publish", "unpublish"]),
        (HookBehaviour::Doubled, vec!["publish", "publish", "unpublish", "unpublish"]),
        (HookBehaviour::Reordered, vec!["unpublish", "publish"]),
        (HookBehaviour::Lost, vec![]),
        (HookBehaviour::OnlyOn, vec!["publish"]),
        (HookBehaviour::OnlyOff, vec!["unpublish"]),
    ] {
        let (service, node) = service_and_node().await;
        node.set_hook_behaviour(behaviour);
        let publisher = node.publish(publisher(PATH)).await.admitted();
        node.until_hooks_settled().await;
        publisher.disconnect();
        node.until_hooks_settled().await;
        assert_eq!(ends_called(&service), expected, "{behaviour:?}");
    }
    let (service, node) = service_and_node().await;
    node.set_hook_behaviour(HookBehaviour::Held);
    let publisher = node.publish(publisher(PATH)).await.admitted();
    publisher.disconnect();
    let held = node.take_held_hooks();
    assert_eq!(held, [publisher.on_hook(), publisher.off_hook()]);
    assert_eq!(held[1].event, HookEvent::Off);
    assert_eq!(node.send_hook(&held[1]).await, Some(204));
    assert_eq!(ends_called(&service), ["unpublish"]);
}

#[tokio::test]
async fn a_hook_names_its_source_as_json_or_as_a_form() {
    let (service, node) = service_and_node().await;
    let publisher = node.publish(publisher(PATH)).await.admitted();
    node.until_hooks_settled().await;
    node.point_at(service.auth_url(), Some(service.hooks(HookEncoding::Form)));
    publisher.disconnect();
    node.until_hooks_settled().await;

    let id = publisher.id();
    let called = service.called();
    let json: Value = serde_json::from_str(&called[0].body).expect("it is JSON");
    assert_eq!(json, serde_json::json!({ "path": PATH, "source_type": "rtmpConn", "source_id": id }));
    assert_eq!(called[1].body, format!("path=live%2Fch1&source_type=rtmpConn&source_id={id}"));
    assert_eq!(called[1].content_type, "application/x-www-form-urlencoded");
    assert_eq!(called[1].authorization, "Basic ZWRnZS0xOnB3");
    assert_eq!(node.hook_log().len(), 2);
}

#[tokio::test]
async fn readers_come_and_go_with_the_path() {
    let (_service, node) = service_and_node().await;
    let request = ReadRequest::rtsp(PATH, "u", KEY);
    assert!(matches!(node.read(request.clone()).await, ReadOutcome::NotOnline));
    let publisher = node.publish(publisher(PATH)).await.admitted();
    let asked = node.counts().auth_calls_of("read");
    let reader = node.read(request).await.reading();
    let calls: Vec<_> = node.auth_log().into_iter().rev().take(3).map(|it| it.call.id).collect();
    assert_eq!(node.counts().auth_calls_of("read") - asked, 3, "two DESCRIBE and a SETUP");
    assert_eq!(calls[0], Some(reader.id()), "SETUP names the session");
    assert_ne!(calls[1], calls[0], "DESCRIBE names the connection");

    node.add_reader(PATH, ConnectionKind::WebRtcSession).leave();
    let (_, path) = get(&node, &format!("/v3/paths/get/{PATH}")).await;
    assert_eq!(path["readers"], serde_json::json!([{ "type": "rtspSession", "id": reader.id() }]));
    publisher.disconnect();
    assert!(!reader.is_connected());
}

#[tokio::test]
async fn pulled_and_waiting_paths_are_listed_and_pages_begin_at_zero() {
    let (service, node) = service_and_node().await;
    node.add_pulled_path("cam/1", "rtspSource", "");
    node.add_waiting_path("cam/2");
    node.publish(publisher(PATH)).await.admitted();
    let pulled = OnAir { path: "cam/1".into(), source_type: "rtspSource".into(), source_id: String::new() };
    assert_eq!(node.on_air()[0], pulled);

    let (_, page) = get(&node, "/v3/paths/list?itemsPerPage=2&page=1").await;
    assert_eq!((&page["itemCount"], &page["pageCount"]), (&3.into(), &2.into()));
    assert_eq!(page["items"][0]["name"], PATH);
    assert_eq!(get(&node, "/v3/paths/list?itemsPerPage=0").await.0, 400);
    let (_, waiting) = get(&node, "/v3/paths/get/cam/2").await;
    assert_eq!((&waiting["online"], &waiting["source"]), (&false.into(), &Value::Null));

    node.remove_path("cam/1");
    node.until_hooks_settled().await;
    assert_eq!(ends_called(&service).iter().filter(|end| *end == "unpublish").count(), 1);
}

#[tokio::test]
async fn an_older_release_has_only_the_older_names() {
    let service = AskedService::start().await;
    let node = MediaMtx::start(MediaMtxOptions { release: Release::V1_15, ..options(&service) }).await;
    let publisher = node.publish(PublishRequest::rtsp(PATH, "ch1", KEY)).await.admitted();
    let (_, path) = get(&node, &format!("/v3/paths/get/{PATH}")).await;
    let names: Vec<_> = path.as_object().expect("a path").keys().map(String::as_str).collect();
    let older = ["bytesReceived", "bytesSent", "confName", "name", "readers", "ready", "readyTime", "source", "tracks"];
    assert_eq!(names, older);

    let asked = service.asked().pop().expect("it was asked").body;
    assert!(asked.get("userAgent").is_none());
    let (_, connection) = get(&node, &format!("/v3/rtspconns/get/{}", asked["id"].as_str().expect("an id"))).await;
    assert_eq!(connection["session"], publisher.id().to_string());
    let info = get(&node, "/v3/info").await.1;
    assert_eq!(info["version"], "v1.15.6");
}

#[tokio::test]
async fn the_configuration_shows_the_wiring_and_what_a_test_made_of_it() {
    let service = AskedService::start().await;
    let node = MediaMtx::start(options(&service)).await;
    let (_, global) = get(&node, "/v3/config/global/get").await;
    assert_eq!(global["authHTTPAddress"], service.auth_url());
    assert_eq!(global["authHTTPExclude"][0]["action"], "api");
    let (_, defaults) = get(&node, "/v3/config/pathdefaults/get").await;
    assert!(defaults["runOnOffline"].as_str().is_some_and(|command| command.contains("/v1/hooks/unpublish")));

    node.set_global_config("authMethod", "internal".into());
    assert_eq!(get(&node, "/v3/config/global/get").await.1["authMethod"], "internal");
}
