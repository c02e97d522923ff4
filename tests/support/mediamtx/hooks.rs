//! The hooks: each a process of its own that posts `path`, `source_type` and `source_id`, with nothing to order
//! it among the others and nobody who looks at the answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::counters::HookUnderWay;
use super::node::Node;

const HOOK_TIME_MAX: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookEvent {
    /// `runOnOnline`
    On,
    /// `runOnOffline`
    Off,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    pub event: HookEvent,
    pub path: String,
    pub source_type: String,
    pub source_id: String,
}

/// What becomes of the hooks from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookBehaviour {
    /// Sent at once; two that fire together race.
    Delivered,
    Lost,
    /// Each is sent twice, at the same time.
    Doubled,
    /// A source's "on" is kept back until its "off" has been answered.
    Reordered,
    OnlyOn,
    OnlyOff,
    /// Kept for the test, which takes and sends them in the order it wants.
    Held,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookEncoding {
    Json,
    /// As `curl -d` sends it.
    Form,
}

/// Whom the hook commands call.
#[derive(Clone, Debug)]
pub struct HookTarget {
    /// Scheme, host and port, without a slash at the end.
    pub base_url: String,
    pub user: String,
    pub password: String,
    pub encoding: HookEncoding,
}

impl HookTarget {
    pub(super) fn command(&self, end: &str) -> String {
        let Self { base_url, user, password, .. } = self;
        let fields = "-d path=$MTX_PATH -d source_type=$MTX_SOURCE_TYPE -d source_id=$MTX_SOURCE_ID";
        format!("curl -fsS -u {user}:{password} {fields} {base_url}/v1/hooks/{end}")
    }
}

/// A hook that was sent. No status: nobody answered within the time limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookDelivery {
    pub hook: Hook,
    pub status: Option<u16>,
}

/// Hooks that the behaviour keeps back.
#[derive(Default)]
pub(super) struct KeptHooks {
    held: Vec<Hook>,
    on_until_off: BTreeMap<String, Hook>,
}

#[derive(Serialize)]
struct HookBody<'a> {
    path: &'a str,
    source_type: &'a str,
    source_id: &'a str,
}

impl Node {
    /// Starts the hooks' processes. Returns at once.
    pub fn fire(self: &Arc<Self>, hooks: Vec<Hook>) {
        for hook in hooks {
            match (self.hook_behaviour(), hook.event) {
                (HookBehaviour::Lost, _)
                | (HookBehaviour::OnlyOn, HookEvent::Off)
                | (HookBehaviour::OnlyOff, HookEvent::On) => {}
                (HookBehaviour::Delivered, _)
                | (HookBehaviour::OnlyOn, HookEvent::On)
                | (HookBehaviour::OnlyOff, HookEvent::Off) => self.launch(vec![hook]),
                (HookBehaviour::Doubled, _) => {
                    self.launch(vec![hook.clone()]);
                    self.launch(vec![hook]);
                }
                (HookBehaviour::Reordered, HookEvent::On) => {
                    self.kept_hooks().on_until_off.insert(hook.source_id.clone(), hook);
                }
                (HookBehaviour::Reordered, HookEvent::Off) => {
                    let on = self.kept_hooks().on_until_off.remove(&hook.source_id);
                    self.launch(std::iter::once(hook).chain(on).collect());
                }
                (HookBehaviour::Held, _) => self.kept_hooks().held.push(hook),
            }
        }
    }

    pub fn take_held_hooks(&self) -> Vec<Hook> {
        std::mem::take(&mut self.kept_hooks().held)
    }

    pub async fn send_hook(&self, hook: &Hook) -> Option<u16> {
        let under_way = self.counters.hook_departs();
        self.deliver(hook, under_way).await
    }

    /// One process that sends these hooks one after another.
    fn launch(self: &Arc<Self>, hooks: Vec<Hook>) {
        if self.wiring().hooks.is_none() {
            return;
        }
        let departing: Vec<_> = hooks.into_iter().map(|hook| (hook, self.counters.hook_departs())).collect();
        let node = Arc::clone(self);
        self.spawn(async move {
            for (hook, under_way) in departing {
                node.deliver(&hook, under_way).await;
            }
        });
    }

    async fn deliver(&self, hook: &Hook, under_way: HookUnderWay) -> Option<u16> {
        let target = self.wiring().hooks.clone()?;
        let end = match hook.event {
            HookEvent::On => "publish",
            HookEvent::Off => "unpublish",
        };
        let (content_type, body) = encode(hook, target.encoding);
        let request = self
            .http
            .post(format!("{}/v1/hooks/{end}", target.base_url))
            .timeout(HOOK_TIME_MAX)
            .basic_auth(&target.user, Some(&target.password))
            .header("user-agent", "curl/7.88.1")
            .header("content-type", content_type)
            .body(body);
        let status = request.send().await.ok().map(|response| response.status().as_u16());
        self.counters.hook_arrived(HookDelivery { hook: hook.clone(), status });
        drop(under_way);
        self.touch();
        status
    }
}

fn encode(hook: &Hook, encoding: HookEncoding) -> (&'static str, String) {
    let Hook { path, source_type, source_id, .. } = hook;
    match encoding {
        HookEncoding::Json => {
            let body = HookBody { path, source_type, source_id };
            let body = serde_json::to_string(&body).expect("three strings can be written as JSON");
            ("application/json", body)
        }
        HookEncoding::Form => {
            let body = url::form_urlencoded::Serializer::new(String::new())
                .append_pair("path", path)
                .append_pair("source_type", source_type)
                .append_pair("source_id", source_id)
                .finish();
            ("application/x-www-form-urlencoded", body)
        }
    }
}
