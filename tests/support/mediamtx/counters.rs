//! What a stand-in remembers for the test to read. Logs keep the newest entries only.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::auth::{AuthCall, AuthExchange};
use super::hooks::HookDelivery;

const LOG_ENTRIES_MAX: usize = 20_000;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Auth calls begun, of every action.
    pub auth_calls: u64,
    /// Auth calls begun, by action.
    pub auth_calls_by_action: BTreeMap<String, u64>,
    /// Most auth calls that were open at once on behalf of clients; `action: api` and bare calls are left out.
    pub client_auth_calls_parallel_max: usize,
    /// Requests that reached the control API.
    pub control_calls: u64,
    /// The same by the route's first three parts, `/v3/paths/list`.
    pub control_calls_by_route: BTreeMap<String, u64>,
    /// Answers to `paths/list` that were held, counted once for each place where they were.
    pub lists_held: u64,
    /// Kicks received, by collection (`rtmpconns`), whatever came of them.
    pub kicks: BTreeMap<String, u64>,
    /// Ids that kicks named, in order.
    pub kicked: Vec<Uuid>,
    /// Hooks sent (a doubled one counts twice), answered or not.
    pub hooks_sent: u64,
}

impl Counts {
    pub fn control_calls_to(&self, route: &str) -> u64 {
        self.control_calls_by_route.get(route).copied().unwrap_or(0)
    }

    pub fn kicks_to(&self, collection: &str) -> u64 {
        self.kicks.get(collection).copied().unwrap_or(0)
    }

    pub fn auth_calls_of(&self, action: &str) -> u64 {
        self.auth_calls_by_action.get(action).copied().unwrap_or(0)
    }
}

#[derive(Default)]
struct Book {
    counts: Counts,
    client_auth_calls_open: usize,
    hooks_in_flight: usize,
    auth_log: VecDeque<AuthExchange>,
    hook_log: VecDeque<HookDelivery>,
}

#[derive(Default)]
pub(super) struct Counters {
    book: Mutex<Book>,
}

impl Counters {
    pub fn counts(&self) -> Counts {
        self.book().counts.clone()
    }

    pub fn auth_log(&self) -> Vec<AuthExchange> {
        self.book().auth_log.iter().cloned().collect()
    }

    pub fn hook_log(&self) -> Vec<HookDelivery> {
        self.book().hook_log.iter().cloned().collect()
    }

    pub fn hooks_in_flight(&self) -> usize {
        self.book().hooks_in_flight
    }

    pub fn auth_begins(&self, call: &AuthCall) {
        let counts = &mut self.book().counts;
        counts.auth_calls += 1;
        *counts.auth_calls_by_action.entry(call.action.clone()).or_default() += 1;
    }

    pub fn auth_ends(&self, exchange: AuthExchange) {
        append(&mut self.book().auth_log, exchange);
    }

    /// Counts a call on behalf of a client as open for as long as the result lives.
    pub fn client_auth_opens(&self) -> OpenClientCall<'_> {
        let mut book = self.book();
        book.client_auth_calls_open += 1;
        let open = book.client_auth_calls_open;
        let most = &mut book.counts.client_auth_calls_parallel_max;
        *most = open.max(*most);
        OpenClientCall(self)
    }

    pub fn control_call(&self, route: &str) {
        let counts = &mut self.book().counts;
        counts.control_calls += 1;
        *counts.control_calls_by_route.entry(route.to_owned()).or_default() += 1;
    }

    pub fn list_held(&self) {
        self.book().counts.lists_held += 1;
    }

    pub fn kick(&self, collection: &str, id: Uuid) {
        let counts = &mut self.book().counts;
        *counts.kicks.entry(collection.to_owned()).or_default() += 1;
        counts.kicked.push(id);
    }

    /// Counts a hook as under way for as long as the result lives.
    pub fn hook_departs(self: &Arc<Self>) -> HookUnderWay {
        let mut book = self.book();
        book.hooks_in_flight += 1;
        book.counts.hooks_sent += 1;
        HookUnderWay(Arc::clone(self))
    }

    pub fn hook_arrived(&self, delivery: HookDelivery) {
        append(&mut self.book().hook_log, delivery);
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct OpenClientCall<'a>(&'a Counters);

impl Drop for OpenClientCall<'_> {
    fn drop(&mut self) {
        self.0.book().client_auth_calls_open -= 1;
    }
}

pub(super) struct HookUnderWay(Arc<Counters>);

impl Drop for HookUnderWay {
    fn drop(&mut self) {
        self.0.book().hooks_in_flight -= 1;
    }
}

fn append<T>(log: &mut VecDeque<T>, entry: T) {
    if log.len() == LOG_ENTRIES_MAX {
        log.pop_front();
    }
    log.push_back(entry);
}
