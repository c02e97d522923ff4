//! Seats: which connections are served, what each has in hand, and which has to go when another wants to come in.
//!
//! Invariants:
//! - At most `connections_max` connections have a seat. When all are taken, the connection that nothing has been done for
//!   for longest gives its seat away: one that says nothing, one that idles, one that does not take its answer. So only work
//!   keeps an auth call out, and what may be at work at once is bounded below the seats.
//! - At most `requests_max` requests of the API are in hand. Further ones are answered `overloaded` at once. An answer that is
//!   larger than what a connection buffers anyway is in hand until the peer has taken it whole, so that those who do not read
//!   cannot fill the memory. Auth calls, hooks and the questions of those who operate the service are not counted: each is short,
//!   and none is kept waiting by what is.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{body::HttpBody as _, response::Response};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tokio_util::sync::CancellationToken;

use super::server::BUFFER_BYTES_MAX;
use crate::metrics;

/// How long nothing may have been done for a connection before its seat can be given away: a client that has just connected is about
/// to speak.
const UNHURRIED: Duration = Duration::from_millis(100);

/// The seats of one listener.
pub struct Seats {
    max: usize,
    room: Mutex<Room>,
}

#[derive(Default)]
struct Room {
    taken: usize,
    next_number: u64,
    /// Connections that nothing is done for, the longest first.
    waiting: BTreeMap<u64, Waiting>,
}

struct Waiting {
    since: Instant,
    leave: CancellationToken,
}

/// The seat of one connection. Free again once it is dropped.
pub struct Seat {
    seats: Arc<Seats>,
    leave: CancellationToken,
    hand: Mutex<Hand>,
    /// Whether an answer is on its way to the peer.
    answering: AtomicBool,
    /// Whether that answer ends the connection.
    ending: AtomicBool,
}

#[derive(Default)]
struct Hand {
    waits_as: Option<u64>,
    place: Option<OwnedSemaphorePermit>,
}

impl Seats {
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, room: Mutex::default() })
    }

    /// A seat for a connection that has just come, if need be that of another which does nothing.
    pub fn take(self: &Arc<Self>) -> Option<Arc<Seat>> {
        let leave = CancellationToken::new();
        let mut room = self.room();
        if room.taken >= self.max && !room.give_one_away() {
            return None;
        }
        room.taken += 1;
        let hand = Mutex::new(Hand { waits_as: Some(room.wait(&leave)), place: None });
        drop(room);
        let (answering, ending) = (AtomicBool::new(false), AtomicBool::new(false));
        Some(Arc::new(Seat { seats: Arc::clone(self), leave, hand, answering, ending }))
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.room().taken
    }

    /// How many there are.
    pub fn max(&self) -> usize {
        self.max
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        // Every statement leaves it whole.
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    fn wait(&mut self, leave: &CancellationToken) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.waiting.insert(number, Waiting { since: Instant::now(), leave: leave.clone() });
        number
    }

    fn give_one_away(&mut self) -> bool {
        let Some(longest) = self.waiting.first_entry().filter(|first| first.get().since.elapsed() >= UNHURRIED) else {
            return false;
        };
        longest.remove().leave.cancel();
        self.taken -= 1;
        metrics::connection_given_up();
        true
    }
}

impl Seat {
    /// Done once the seat was given to another: the connection has to close.
    pub async fn given_away(&self) {
        self.leave.cancelled().await;
    }

    /// A request has come.
    pub fn begin(&self) {
        if let Some(number) = self.hand().waits_as.take() {
            self.seats.room().waiting.remove(&number);
        }
    }

    /// The answer is known. What is left is for the peer to do.
    pub fn answer(&self) {
        self.answering.store(true, Ordering::Relaxed);
        if !self.leave.is_cancelled() {
            self.hand().waits_as = Some(self.seats.room().wait(&self.leave));
        }
    }

    /// The answer will be the last on its connection.
    pub fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    /// Whether what is written now is the connection's last answer.
    pub fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    /// Everything that was written has been handed to the system.
    pub fn flushed(&self) {
        if self.answering.swap(false, Ordering::Relaxed) {
            self.hand().place = None;
        }
    }

    /// Keeps a request's place until its answer is taken, if that is larger than what a connection buffers anyway.
    pub fn hold_if_large(&self, answer: &Response, place: OwnedSemaphorePermit) {
        if answer.body().size_hint().upper().is_none_or(|bytes| bytes > BUFFER_BYTES_MAX as u64) {
            self.hold(place);
        }
    }

    fn hold(&self, place: OwnedSemaphorePermit) {
        self.hand().place = Some(place);
    }

    fn hand(&self) -> MutexGuard<'_, Hand> {
        self.hand.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut room = self.seats.room();
        // Whoever was given the seat counts for it.
        if !self.leave.is_cancelled() {
            room.taken -= 1;
        }
        if let Some(number) = self.hand.get_mut().unwrap_or_else(PoisonError::into_inner).waits_as {
            room.waiting.remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_one_that_has_waited_longest_makes_room_and_those_at_work_do_not() {
        let seats = Seats::new(2);
        let (first, second) = (seats.take().unwrap(), seats.take().unwrap());
        assert!(seats.take().is_none(), "both have just come");
        tokio::time::sleep(UNHURRIED).await;
        first.begin();
        let third = seats.take().unwrap();
        second.given_away().await;
        drop(second);
        assert_eq!(seats.taken(), 2);
        third.begin();
        tokio::time::sleep(UNHURRIED).await;
        assert!(seats.take().is_none(), "both are at work");
        third.answer();
        tokio::time::sleep(UNHURRIED).await;
        assert!(seats.take().is_some(), "its answer is not taken");
        drop(first);
        drop(third);
        assert_eq!((seats.taken(), seats.room().waiting.len()), (0, 0));
    }

    #[tokio::test]
    async fn a_place_is_held_until_the_answer_is_taken() {
        let (seats, places) = (Seats::new(1), Arc::new(Semaphore::new(1)));
        let seat = seats.take().unwrap();
        seat.begin();
        seat.hold(Arc::clone(&places).try_acquire_owned().unwrap());
        seat.flushed();
        assert_eq!(places.available_permits(), 0, "what was flushed was no answer");
        seat.answer();
        seat.flushed();
        assert_eq!(places.available_permits(), 1);
    }
}
