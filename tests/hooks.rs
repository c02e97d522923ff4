//! Hooks are hints: doubled, late, in the wrong order or lost, what is on air ends up right.

mod support;

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use support::{
    bench::Bench,
    mediamtx::{Hook, HookBehaviour, HookEncoding, HookEvent},
    stack::{Stack, node_password},
    stores::until,
    waiting::id_of,
};
use uuid::Uuid;

impl Bench {
    /// Nobody looks at the node: what becomes right, becomes right by its hooks.
    async fn by_hooks_alone(encoding: HookEncoding, behaviour: HookBehaviour) -> Self {
        Self::polled_every(Duration::from_mins(1), encoding, behaviour).await
    }

    async fn polled_every(poll_interval: Duration, encoding: HookEncoding, behaviour: HookBehaviour) -> Self {
        let poll_interval_ms = u64::try_from(poll_interval.as_millis()).unwrap();
        let stack = Stack::start_with(|config| {
            config.reconciler.poll_interval_ms = poll_interval_ms;
            config.history.poll_interval_ms = 25;
        })
        .await;
        Self::start_on(stack, |options| {
            options.hook_behaviour = behaviour;
            if let Some(hooks) = &mut options.hooks {
                hooks.encoding = encoding;
            }
        })
        .await
    }

    /// What the service made of a hook that the test sends.
    async fn result_of(&self, hook: &Hook) -> String {
        let end = if hook.event == HookEvent::On { "publish" } else { "unpublish" };
        let body = json!({"path": hook.path, "source_type": hook.source_type, "source_id": hook.source_id});
        let caller = self.replica.api.as_node("edge-1", &node_password("edge-1"));
        caller.post(&format!("/v1/hooks/{end}"), &body).await.expect(200).text_at("/result")
    }

    /// All streams of a path that have ended, the latest first.
    async fn ended_on(&self, path: &str) -> Vec<Value> {
        let ended = self.replica.api.get(&format!("/v1/streams?state=ended&path={path}")).await.expect(200);
        ended.json["items"].as_array().unwrap().clone()
    }
}

#[tokio::test]
async fn hooks_as_json_and_as_a_form_once_and_doubled_bring_one_stream_on_air_and_off() {
    let encodings = [HookEncoding::Json, HookEncoding::Form];
    let behaviours = [HookBehaviour::Delivered, HookBehaviour::Doubled];
    let cases = encodings.map(|encoding| behaviours.map(|behaviour| one_stream_comes_and_goes(encoding, behaviour)));
    join_all(cases.into_iter().flatten()).await;
}

async fn one_stream_comes_and_goes(encoding: HookEncoding, behaviour: HookBehaviour) {
    let bench = Bench::by_hooks_alone(encoding, behaviour).await;
    let key = bench.replica.key("live/ada").await;
    let publisher = bench.publish(&key).await;
    let stream = bench.replica.until_live(&key.path).await;
    bench.node.until_hooks_settled().await;
    assert_eq!(bench.replica.until_live(&key.path).await["started_at"], stream["started_at"]);

    publisher.disconnect();
    bench.replica.until_off_air(&key.path).await;
    bench.node.until_hooks_settled().await;
    let recorded = bench.replica.until_recorded(&id_of(&stream)).await;
    assert_eq!(recorded["end_reason"], "unpublished", "{encoding:?} {behaviour:?}");
    assert_eq!(bench.ended_on(&key.path).await.len(), 1, "{encoding:?} {behaviour:?}: one end is one record");
    assert_eq!(bench.replica.on_air().await, Vec::<Value>::new());
    let hooks = bench.node.hook_log();
    assert_eq!(hooks.len(), if behaviour == HookBehaviour::Doubled { 4 } else { 2 });
    assert!(hooks.iter().all(|hook| hook.status == Some(200)), "{hooks:?}");
    bench.replica.stop().await;
}

#[tokio::test]
async fn an_off_that_overtakes_its_on_ends_the_stream_and_the_on_brings_nothing_back() {
    let bench = Bench::by_hooks_alone(HookEncoding::Form, HookBehaviour::Reordered).await;
    let key = bench.replica.key("live/ada").await;
    for _ in 0..5 {
        let publisher = bench.publish(&key).await;
        let stream = bench.replica.stream_on(&key.path).await.unwrap();
        assert_eq!(stream["state"], "connecting");
        publisher.disconnect();
        bench.node.until_hooks_settled().await;
        assert_eq!(bench.replica.on_air().await, Vec::<Value>::new());
        assert_eq!(bench.replica.until_recorded(&id_of(&stream)).await["end_reason"], "unpublished");
    }
    assert_eq!(bench.ended_on(&key.path).await.len(), 5);
    bench.replica.stop().await;
}

#[tokio::test]
async fn late_words_about_an_older_source_change_nothing_about_the_newer_one() {
    let bench = Bench::by_hooks_alone(HookEncoding::Json, HookBehaviour::Held).await;
    let key = bench.replica.key_with("live/ada", json!({"on_conflict": "take_over"})).await;
    let older = bench.publish(&key).await;
    let older_stream = bench.replica.stream_on(&key.path).await.unwrap();
    let newer = bench.publish(&key).await;
    older.until_gone().await;
    let newer_stream = bench.replica.stream_on(&key.path).await.unwrap();
    assert_ne!(newer_stream["id"], older_stream["id"]);

    let unchanged = async |state: &str| {
        let now = bench.replica.stream_on(&key.path).await.unwrap();
        assert_eq!((&now["id"], &now["state"]), (&newer_stream["id"], &json!(state)));
    };
    for late in [older.on_hook(), older.off_hook(), older.off_hook(), older.on_hook()] {
        assert_eq!(bench.result_of(&late).await, "ignored");
        unchanged("connecting").await;
    }
    assert_eq!(bench.result_of(&newer.on_hook()).await, "confirmed");
    for late in [newer.on_hook(), older.off_hook(), older.on_hook()] {
        assert_eq!(bench.result_of(&late).await, "ignored");
        unchanged("live").await;
    }
    assert_eq!(bench.result_of(&newer.off_hook()).await, "ended");
    assert_eq!(bench.result_of(&newer.off_hook()).await, "ignored");
    assert_eq!(bench.result_of(&newer.on_hook()).await, "ignored");
    assert_eq!(bench.replica.on_air().await, Vec::<Value>::new());

    let first = bench.replica.until_recorded(&id_of(&older_stream)).await;
    let second = bench.replica.until_recorded(&id_of(&newer_stream)).await;
    assert_eq!((&first["end_reason"], &second["end_reason"]), (&json!("taken_over"), &json!("unpublished")));
    assert_eq!(bench.node.take_held_hooks().len(), 3, "what MediaMTX would have told was told by the test alone");
    bench.replica.stop().await;
}

#[tokio::test]
async fn lost_hooks_are_made_up_for_by_looking() {
    let cases =
        [(HookBehaviour::Lost, "lost"), (HookBehaviour::OnlyOn, "lost"), (HookBehaviour::OnlyOff, "unpublished")];
    join_all(cases.map(|(behaviour, reason)| found_without(behaviour, reason))).await;
}

async fn found_without(behaviour: HookBehaviour, reason: &str) {
    let bench = Bench::polled_every(Duration::from_millis(100), HookEncoding::Form, behaviour).await;
    let key = bench.replica.key("live/ada").await;
    let publisher = bench.publish(&key).await;
    let stream = bench.replica.until_live(&key.path).await;
    until("its bytes are known", async || {
        bench.replica.details(&id_of(&stream)).await["inbound_bytes"].as_u64().is_some_and(|bytes| bytes > 0)
    })
    .await;
    publisher.disconnect();
    bench.replica.until_off_air(&key.path).await;
    let recorded = bench.replica.until_recorded(&id_of(&stream)).await;
    assert_eq!(recorded["end_reason"], reason, "{behaviour:?}");
    bench.publish(&key).await;
    bench.replica.until_live(&key.path).await;
    bench.replica.stop().await;
}

#[tokio::test]
async fn however_the_hooks_of_two_publishers_race_the_newer_stays_on_air() {
    let bench = Bench::polled_every(Duration::from_millis(100), HookEncoding::Form, HookBehaviour::Doubled).await;
    let key = bench.replica.key_with("live/ada", json!({"on_conflict": "take_over"})).await;
    bench.publish(&key).await;
    for round in 0..15 {
        let older = bench.replica.until_live(&key.path).await;
        // MediaMTX closes the older one the moment the newer comes online: the hooks of both leave at once.
        let newer = bench.publish(&key).await;
        bench.node.until_hooks_settled().await;
        let now = bench.replica.until_live(&key.path).await;
        assert_ne!(now["id"], older["id"], "round {round}");
        let details = bench.replica.details(&id_of(&now)).await;
        assert_eq!(details["source"]["id"], json!(newer.id()), "round {round}");
        assert_eq!(bench.replica.until_recorded(&id_of(&older)).await["end_reason"], "taken_over", "round {round}");
        assert!(newer.is_online(), "round {round}: nobody kicks the one that is on air");
    }
    assert_eq!(bench.replica.on_air().await.len(), 1);
    bench.replica.stop().await;
}

#[tokio::test]
async fn hooks_about_nobody_whom_onair_admitted_are_heard_and_ignored() {
    let bench = Bench::by_hooks_alone(HookEncoding::Form, HookBehaviour::Delivered).await;
    bench.node.add_pulled_path("live/camera", "rtspSource", "");
    bench.node.until_hooks_settled().await;
    bench.node.remove_path("live/camera");
    bench.node.until_hooks_settled().await;
    let statuses: Vec<_> = bench.node.hook_log().iter().map(|hook| hook.status).collect();
    assert_eq!(statuses, [Some(200), Some(200)]);

    let key = bench.replica.key("live/ada").await;
    let publisher = bench.publish(&key).await;
    let stream = bench.replica.until_live(&key.path).await;
    let stranger = Hook { source_id: Uuid::new_v4().to_string(), ..publisher.off_hook() };
    let elsewhere = Hook { path: "live/elsewhere".into(), ..publisher.off_hook() };
    let of_tomorrow = Hook { source_type: "quicConn".into(), ..publisher.off_hook() };
    for hook in [&stranger, &elsewhere, &of_tomorrow] {
        assert_eq!(bench.result_of(hook).await, "ignored");
    }
    // A node speaks for itself only.
    bench.replica.add_node("edge-2").await;
    let edge_2 = bench.replica.api.as_node("edge-2", &node_password("edge-2"));
    let off = publisher.off_hook();
    let form = format!("path={}&source_type={}&source_id={}", off.path, off.source_type, off.source_id);
    let answer = edge_2.post_form("/v1/hooks/unpublish", &form).await.expect(200);
    assert_eq!(answer.json["result"], "ignored");
    assert_eq!(bench.replica.stream_on(&key.path).await.unwrap()["id"], stream["id"]);

    for wrong in ["path=live//ada&source_type=rtmpConn&source_id=x", "source_type=rtmpConn", "path=live%2Fada"] {
        let refused = edge_2.post_form("/v1/hooks/unpublish", wrong).await;
        refused.expect_problem(422, "invalid_input");
    }
    bench.replica.stop().await;
}
