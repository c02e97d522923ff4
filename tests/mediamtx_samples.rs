//! The stand-in for a media node, field by field against the recorded payloads of a real v1.20.1. Where the recording is
//! not beside the project, the tests say so and compare nothing.

mod support;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use support::asked_service::{AskedService, KEY, client, get, post};
use support::mediamtx::{ApiAuth, ConnectionKind, MediaMtx, MediaMtxOptions, PublishRequest, ReadRequest};

const PATH: &str = "live/ch1";

fn samples() -> Option<Value> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/mediamtx/samples.json");
    let Ok(text) = std::fs::read_to_string(file) else {
        println!("skipped the comparison: no recorded payloads here");
        return None;
    };
    Some(serde_json::from_str(&text).expect("the recording is JSON"))
}

async fn node(service: &AskedService, api_auth: ApiAuth) -> MediaMtx {
    MediaMtx::start(MediaMtxOptions { api_auth, ..MediaMtxOptions::new("edge-1", service.auth_url()) }).await
}

/// Ids differ from run to run: what counts is whether there is one.
fn without_id_value(mut body: Value) -> Value {
    if body["id"].is_string() {
        body["id"] = json!("an id");
    }
    body
}

#[track_caller]
fn assert_asked_as(samples: &Value, name: &str, asked: &Value) {
    let recorded = &samples["auth"][name];
    assert!(recorded.is_object(), "{name} is not in the recording");
    assert_eq!(without_id_value(asked.clone()), without_id_value(recorded.clone()), "{name}");
}

/// Every field's place and kind of value, without the values: lists count as their first element.
fn shape(value: &Value) -> BTreeSet<String> {
    fn walk(value: &Value, at: &str, shape: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                for (name, field) in fields {
                    walk(field, &format!("{at}.{name}"), shape);
                }
            }
            Value::Array(items) => match items.first() {
                Some(first) => walk(first, &format!("{at}[]"), shape),
                None => drop(shape.insert(format!("{at}[]"))),
            },
            Value::String(_) => drop(shape.insert(format!("{at}: text"))),
            Value::Number(_) => drop(shape.insert(format!("{at}: number"))),
            Value::Bool(_) => drop(shape.insert(format!("{at}: yes or no"))),
            Value::Null => drop(shape.insert(format!("{at}: null"))),
        }
    }
    let mut places = BTreeSet::new();
    walk(value, "", &mut places);
    places
}

#[tokio::test]
async fn publishers_are_asked_about_as_recorded() {
    let Some(samples) = samples() else { return };
    let service = AskedService::start().await;
    let node = node(&service, ApiAuth::Excluded).await;
    let rows = [
        ("rtmp_user_pass", PublishRequest::rtmp_user_pass(PATH, "ch1", KEY)),
        ("rtmp_query_key", PublishRequest::rtmp_query_key(PATH, KEY)),
        ("rtmp_query_token", PublishRequest::rtmp_query_token(PATH, KEY)),
        ("rtmp_key_as_path", PublishRequest::rtmp_key_as_path("live", KEY)),
        ("srt_streamid", PublishRequest::srt_streamid(PATH, "ch1", KEY)),
        ("srt_streamid_query", PublishRequest::srt_streamid_query(PATH, &format!("key={KEY}"))),
        ("whip_bearer", PublishRequest::whip_bearer(PATH, KEY)),
        ("whip_basic", PublishRequest::whip_basic(PATH, "ch1", KEY)),
        ("whip_basic", PublishRequest::whip_bearer(PATH, &format!("ch1:{KEY}"))),
        ("whip_query_key", PublishRequest::whip_query_key(PATH, KEY)),
    ];
    for (name, request) in rows {
        let _ = node.publish(request.over_tls()).await;
        let asked = service.asked().pop().expect("the service was asked");
        assert_asked_as(&samples, name, &asked.body);
    }
}

#[tokio::test]
async fn an_rtsp_publisher_is_asked_about_twice_as_recorded() {
    let Some(samples) = samples() else { return };
    let service = AskedService::start().await;
    let node = node(&service, ApiAuth::Excluded).await;

    node.publish(PublishRequest::rtsp(PATH, "ch1", KEY)).await.admitted();

    let asked = service.asked();
    assert_eq!(asked.len(), 2);
    assert_asked_as(&samples, "rtsp_first_call", &asked[0].body);
    assert_asked_as(&samples, "rtsp_second_call", &asked[1].body);
}

#[tokio::test]
async fn readers_preflights_and_control_calls_are_asked_about_as_recorded() {
    let Some(samples) = samples() else { return };
    let service = AskedService::start().await;
    let node = node(&service, ApiAuth::Required).await;

    node.preflight(&PublishRequest::whip_without_credentials(PATH)).await;
    node.read(ReadRequest::hls(PATH, "u", "p")).await.refused();
    node.read(ReadRequest::rtmp_query_token(PATH, "abc")).await.refused();
    let url = format!("{}/v3/paths/list?itemsPerPage=100000&page=0", node.control_url());
    client().get(url).basic_auth("node", Some("ctl")).send().await.expect("the control API answers");

    let asked = service.asked();
    for (name, asked) in
        ["whip_options_preflight", "hls_read", "rtmp_read_token", "control_api_call"].iter().zip(&asked)
    {
        assert_asked_as(&samples, name, &asked.body);
    }
    assert_eq!(asked.len(), 4);
}

#[tokio::test]
async fn lists_have_the_recorded_fields() {
    let Some(samples) = samples() else { return };
    let service = AskedService::start().await;
    let node = node(&service, ApiAuth::Excluded).await;
    for (collection, request) in [
        ("rtmpconns", PublishRequest::rtmp_user_pass("live/ch1", "ch1", KEY)),
        ("srtconns", PublishRequest::srt_streamid("live/ch2", "ch1", KEY)),
        ("rtspsessions", PublishRequest::rtsp("live/ch3", "ch1", KEY)),
    ] {
        node.publish(request).await.admitted();
        let (status, list) = get(&node, &format!("/v3/{collection}/list")).await;
        let recorded = &samples["control_api"][format!("{collection}_list")];
        assert_eq!((status, shape(&list)), (200, shape(recorded)), "{collection}");
    }
    let (_, info) = get(&node, "/v3/info").await;
    assert_eq!(shape(&info), shape(&samples["control_api"]["info"]));
    assert_eq!(info["version"], samples["control_api"]["info"]["version"]);
}

#[tokio::test]
async fn a_webrtc_session_has_the_recorded_fields_and_those_that_the_source_adds() {
    let Some(samples) = samples() else { return };
    let service = AskedService::start().await;
    let node = node(&service, ApiAuth::Excluded).await;
    node.publish(PublishRequest::whip_basic(PATH, "ch1", KEY)).await.admitted();

    let (_, list) = get(&node, "/v3/webrtcsessions/list").await;

    // The recording ends at `outboundBytes`; the field list of v1.20.1 goes on.
    let missing: Vec<_> =
        shape(&samples["control_api"]["webrtcsessions_list"]).difference(&shape(&list)).cloned().collect();
    assert_eq!(missing, Vec::<String>::new());
    assert!(list["items"][0]["outboundFramesDiscarded"].is_number());
}

#[tokio::test]
async fn a_path_and_its_readers_have_the_recorded_fields() {
    let Some(samples) = samples() else { return };
    let service = AskedService::start().await;
    let node = node(&service, ApiAuth::Excluded).await;
    node.publish(PublishRequest::rtmp_user_pass(PATH, "ch1", KEY)).await.admitted();

    let (_, list) = get(&node, "/v3/paths/list").await;
    let recorded = &samples["control_api"]["paths_list"];
    assert_eq!(shape(&list), shape(recorded));
    for field in ["name", "confName", "tracks", "tracks2", "ready", "available", "online"] {
        assert_eq!(list["items"][0][field], recorded["items"][0][field], "{field}");
    }

    node.add_reader(PATH, ConnectionKind::HlsSession);
    let (_, path) = get(&node, "/v3/paths/get/live/ch1").await;
    let readers = &samples["control_api"]["readers"];
    assert_eq!(shape(&path["readers"]), shape(readers));
    assert_eq!(path["readers"][0]["type"], readers[0]["type"]);
}

#[tokio::test]
async fn kicks_and_missing_paths_are_answered_as_recorded() {
    let Some(samples) = samples() else { return };
    let service = AskedService::start().await;
    let node = node(&service, ApiAuth::Excluded).await;
    let publisher = node.publish(PublishRequest::rtmp_query_key(PATH, KEY)).await.admitted();
    let kick = format!("/v3/rtmpconns/kick/{}", publisher.id());

    let answers =
        [post(&node, &kick).await, post(&node, &kick).await, get(&node, &format!("/v3/paths/get/{PATH}")).await];

    for (name, (status, body)) in ["kick_ok", "kick_again", "path_not_found"].iter().zip(answers) {
        let recorded = &samples["control_api"][name];
        assert_eq!(json!({ "status": status, "body": body }), *recorded, "{name}");
    }
}
