//! What operators look at: the dashboards are well formed, and a real Prometheus has an answer to every query of theirs and
//! of the alerts while the service runs under a small load.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use fred::prelude::{Builder, ClientLike as _, Config, ConfigInterface as _};
use onair::metrics::{ALL, Kind};
use serde_json::{Value, json};
use support::{
    files::{items, json as json_file, stems, str_of, yaml},
    mediamtx::{ConnectionKind, MediaMtx, PublishRequest, ReadRequest},
    prometheus::Prometheus,
    promql::selectors,
    stack::{Replica, Stack, TestKey},
    stores::until,
};

const DASHBOARDS: &str = "grafana/dashboards";

/// What Grafana brings along: a dashboard must need nothing else.
const CORE_PANELS: [&str; 6] = ["bargauge", "row", "stat", "state-timeline", "table", "timeseries"];

/// How long the load is played at most until every query has an answer.
const LOAD_LIMIT: Duration = Duration::from_secs(120);

fn boards() -> BTreeMap<String, Value> {
    let names = stems(DASHBOARDS, ".json");
    names.into_iter().map(|name| (name.clone(), json_file(&format!("{DASHBOARDS}/{name}.json")))).collect()
}

/// The panels of a dashboard that show something.
fn panels(board: &Value) -> impl Iterator<Item = &Value> {
    items(&board["panels"]).iter().filter(|panel| panel["type"] != "row")
}

/// The queries of all panels, each with where it stands.
fn queries() -> Vec<(String, String)> {
    let mut queries = Vec::new();
    for (name, board) in boards() {
        for panel in panels(&board) {
            for target in items(&panel["targets"]) {
                let place = format!("{name}: {} ({})", str_of(&panel["title"]), str_of(&target["refId"]));
                queries.push((place, str_of(&target["expr"]).to_owned()));
            }
        }
    }
    queries
}

/// A query as Grafana would send it, over a short time.
fn filled_in(query: &str) -> String {
    let values = [("$__rate_interval", "10s"), ("$__range", "1m"), ("$node", ".*"), ("$instance", ".*")];
    values.iter().fold(query.to_owned(), |query, (name, value)| query.replace(name, value))
}

fn overlaps(one: &Value, other: &Value) -> bool {
    let edges = |panel: &Value, start: &str, size: &str| {
        let number = |name: &str| panel["gridPos"][name].as_u64().expect("a number");
        (number(start), number(start) + number(size))
    };
    let meets = |start, size| {
        let ((from, to), (other_from, other_to)) = (edges(one, start, size), edges(other, start, size));
        from < other_to && other_from < to
    };
    meets("x", "w") && meets("y", "h")
}

#[test]
fn selectors_are_found_with_their_labels() {
    let query =
        r#"sum by (up_to) (rate(onair_a_total{route=~"/v1/{id}|b,c",status!="2"}[5m])) > on () up or x{job="up"}"#;
    let found: Vec<_> = selectors(query).into_iter().map(|it| (it.metric, it.labels, it.text)).collect();
    let labels = vec!["route".to_owned(), "status".to_owned()];
    let text = r#"onair_a_total{route=~"/v1/{id}|b,c",status!="2"}"#.to_owned();
    assert_eq!(found, [("onair_a_total".to_owned(), labels, text), ("up".to_owned(), vec![], "up".to_owned())]);
}

#[test]
fn each_dashboard_keeps_its_uid_and_needs_core_panels_only() {
    let uids: Vec<_> = boards().iter().map(|(name, board)| (name.clone(), str_of(&board["uid"]).to_owned())).collect();
    let expected = [("capacity", "onair-capacity"), ("health", "onair-health"), ("on-air", "onair-on-air")];
    assert_eq!(uids, expected.map(|(name, uid)| (name.to_owned(), uid.to_owned())));
    for (name, board) in boards() {
        for panel in items(&board["panels"]) {
            assert!(CORE_PANELS.contains(&str_of(&panel["type"])), "{name}: {}", panel["type"]);
        }
    }
}

#[test]
fn every_panel_says_what_it_shows_and_has_a_place_of_its_own() {
    for (name, board) in boards() {
        let all = items(&board["panels"]);
        let ids: BTreeSet<_> = all.iter().map(|panel| panel["id"].as_u64().expect("an id")).collect();
        assert_eq!(ids.len(), all.len(), "{name}: ids are unique");
        for (number, panel) in all.iter().enumerate() {
            let title = str_of(&panel["title"]);
            let right = panel["gridPos"]["x"].as_u64().unwrap() + panel["gridPos"]["w"].as_u64().unwrap();
            assert!(right <= 24, "{name}: {title} is too far right");
            let other = all[..number].iter().find(|other| overlaps(panel, other));
            assert!(other.is_none(), "{name}: {title} lies over another");
        }
        for panel in panels(&board) {
            let title = str_of(&panel["title"]);
            assert!(!title.is_empty() && str_of(&panel["description"]).ends_with(['.', '?']), "{name}: {title}");
            assert!(!items(&panel["targets"]).is_empty(), "{name}: {title} asks nothing");
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{name}: {title}");
        }
    }
}

#[test]
fn every_variable_of_a_dashboard_is_declared_and_used() {
    for (name, board) in boards() {
        let declared: BTreeSet<_> =
            items(&board["templating"]["list"]).iter().map(|variable| str_of(&variable["name"]).to_owned()).collect();
        let text = board.to_string().replace("${", "$");
        let used: BTreeSet<_> = text
            .split('$')
            .skip(1)
            .map(|behind| behind.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').next().unwrap())
            .filter(|variable| !variable.starts_with("__"))
            .map(str::to_owned)
            .collect();
        assert_eq!(used, declared, "{name}");
    }
}

#[test]
fn every_query_is_about_metrics_and_labels_that_are_declared() {
    let alerts = yaml("grafana/prometheus/alerts.yml");
    let rules = items(&alerts["groups"]).iter().flat_map(|group| items(&group["rules"]));
    let of_alerts = rules.map(|rule| (str_of(&rule["alert"]).to_owned(), str_of(&rule["expr"]).to_owned()));
    for (place, query) in queries().into_iter().chain(of_alerts) {
        let selectors = selectors(&query);
        assert!(!selectors.is_empty(), "{place} asks for nothing of ours: {query}");
        for selector in selectors.iter().filter(|selector| selector.metric.starts_with("onair_")) {
            let known = ALL.iter().find(|metric| match metric.kind {
                Kind::Histogram => ["_bucket", "_sum", "_count"]
                    .iter()
                    .any(|end| selector.metric.strip_suffix(end).is_some_and(|name| name == metric.name)),
                Kind::Counter | Kind::Gauge => metric.name == selector.metric,
            });
            let known = known.unwrap_or_else(|| panic!("{place}: {} is not declared", selector.metric));
            let wrong = selector.labels.iter().find(|label| {
                !known.labels.contains(&label.as_str()) && !["instance", "job", "le"].contains(&label.as_str())
            });
            assert_eq!(wrong, None, "{place}: no such label of {}", selector.metric);
        }
    }
}

/// A service with a little of everything: what is on air, what is refused, what fails.
struct Load {
    replica: Replica,
    edge_1: Arc<MediaMtx>,
    _edge_2: Arc<MediaMtx>,
    ada: TestKey,
    carol: TestKey,
    tina: TestKey,
}

impl Load {
    async fn start(stack: &Stack) -> Self {
        let replica = stack.replica().await;
        let edge_1 = replica.mediamtx("edge-1").await;
        let edge_2 = replica.mediamtx("edge-2").await;
        edge_2.set_global_config("authMethod", json!("internal"));
        replica.add_node("edge-3").await;
        let (ada, bob) = (replica.key("live/ada").await, replica.key("live/bob").await);
        let carol = replica.key("live/carol").await;
        let tina = replica.key_with("live/tina", json!({"on_conflict": "take_over"})).await;
        edge_1.publish(publisher(&ada)).await.admitted();
        edge_2.publish(PublishRequest::whip_bearer(&bob.path, &bob.secret)).await.admitted();
        let reader = ReadRequest::without_credentials(&ada.path, ConnectionKind::HlsSession);
        edge_1.read(reader).await.reading();

        stack.redis.suspend().expect("it stops");
        edge_1.publish(publisher(&carol)).await.refused();
        stack.redis.resume().expect("it goes on");
        until("Redis answers again", async || replica.api.get("/readyz").await.status == 200).await;
        Self { replica, edge_1, _edge_2: edge_2, ada, carol, tina }
    }

    async fn play(&self, round: u32) {
        let (api, node) = (&self.replica.api, &self.edge_1);
        node.publish(publisher(&self.ada).with_ip("192.0.2.2")).await.refused();
        node.publish(PublishRequest::rtmp_query_key("live/ada", "sk_wrong").with_ip("192.0.2.3")).await.refused();
        node.read(ReadRequest::without_credentials("live/nobody", ConnectionKind::HlsSession)).await.refused();
        let carol = node.publish(publisher(&self.carol)).await.admitted();
        node.publish(publisher(&self.tina)).await.admitted();
        node.publish(publisher(&self.tina)).await.admitted();
        carol.disconnect();

        let key = self.replica.key(&format!("live/round-{round}")).await;
        node.publish(publisher(&key)).await.admitted();
        api.act(&format!("/v1/stream-keys/{}/revoke", key.id)).await.expect(200);
        let id = self.replica.on_air().await[0]["id"].as_str().expect("an id").to_owned();
        api.get(&format!("/v1/streams/{id}")).await;
        api.anonymous().get("/v1/streams").await.expect(401);
    }
}

fn publisher(key: &TestKey) -> PublishRequest {
    PublishRequest::rtmp_query_key(&key.path, &key.secret)
}

/// Redis' limit, which a panel and an alert are about, and a private Redis has none of.
async fn limit_memory_of_redis(stack: &Stack) {
    let config = Config::from_url(&stack.redis.url()).expect("a URL");
    let client = Builder::from_config(config).build().expect("a client");
    client.init().await.expect("Redis lets us in");
    client.config_set("maxmemory", "1gb").await.expect("CONFIG SET");
    client.quit().await.expect("QUIT");
}

async fn unanswered(prometheus: &Prometheus, queries: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut left = BTreeMap::new();
    for (place, query) in queries {
        match prometheus.query(query).await {
            // A share of nothing is no answer either.
            Ok(samples) if samples.iter().all(|sample| sample["value"][1] == "NaN") => {
                left.insert(place.clone(), query.clone());
            }
            Ok(_) => {}
            Err(error) => panic!("{place}: {error}\n{query}"),
        }
    }
    left
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_has_an_answer_to_every_query() {
    let stack = Stack::start_with(|config| config.reconciler.poll_interval_ms = 250).await;
    limit_memory_of_redis(&stack).await;
    let load = Load::start(&stack).await;
    let rules = yaml("grafana/prometheus/alerts.yml");
    let prometheus = Prometheus::start(load.replica.address, &rules).await;

    let mut asked: BTreeMap<_, _> = queries().into_iter().map(|(place, query)| (place, filled_in(&query))).collect();
    let alerts = prometheus.alerts().await;
    for alert in &alerts {
        // An alert is silent when all is well. What it is made of is there.
        for selector in selectors(&alert.query) {
            asked.insert(format!("{}: {}", alert.name, selector.text), selector.text);
        }
    }
    assert!(asked.len() > 100, "{asked:#?}");
    let deadline = Instant::now() + LOAD_LIMIT;
    let mut round = 0;
    while !asked.is_empty() && Instant::now() < deadline {
        load.play(round).await;
        round += 1;
        tokio::time::sleep(Duration::from_millis(500)).await;
        asked = unanswered(&prometheus, &asked).await;
    }
    assert!(asked.is_empty(), "no data after {round} rounds: {asked:#?}");

    let alerts = prometheus.alerts().await;
    assert!(alerts.iter().all(|alert| alert.health == "ok"), "{alerts:#?}");
    the_choices_have_values(&prometheus).await;
    drop(prometheus);
    load.replica.stop().await;
}

async fn the_choices_have_values(prometheus: &Prometheus) {
    for (name, board) in boards() {
        let variables = items(&board["templating"]["list"]).iter().filter(|variable| variable["type"] == "query");
        for variable in variables {
            let query = str_of(&variable["query"]);
            let inside = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
            let (selector, label) = inside.and_then(|inside| inside.rsplit_once(", ")).expect("label_values(a, b)");
            let values = prometheus.label_values(label, selector).await.expect("it can be asked");
            assert!(!values.is_empty(), "{name}: {query} has no value");
        }
    }
}
