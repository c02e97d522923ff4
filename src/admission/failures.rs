//! Slowing down those who keep failing, without asking anybody.
//!
//! Each address has a bucket of failures that refills slowly, and each key text that it presents has one of its own. While a
//! bucket is empty the address, or that key from it, is refused before Redis is asked. Behind one NAT good and bad
//! broadcasters share an address: one that has admitted somebody lately has a bucket ten times as large, so that a
//! neighbour's encoder with a wrong key, retrying for ever, shuts nobody out.
//!
//! One line has a whole /64 of IPv6, and could come from another of its addresses each time: all of them count as one.
//!
//! Invariants: memory is bounded by the number of addresses kept; the least used are forgotten first. A key text is kept
//! only as its SHA-256.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use moka::sync::Cache;
use sha2::{Digest, Sha256};

/// How long an address that admitted somebody is trusted more, and how long failures are remembered.
const MEMORY: Duration = Duration::from_secs(600);
/// How much larger the bucket of a trusted address is.
const TRUST: f64 = 10.0;
/// The bits of an IPv6 address that are the same on all of one line.
const LINE_V6: u128 = u128::MAX << 64;

/// Who keeps failing.
pub(super) struct Failures {
    addresses: Cache<IpAddr, Arc<Address>>,
    keys: Cache<(IpAddr, [u8; 8]), Arc<Bucket>>,
    burst: f64,
    refill_per_second: f64,
}

#[derive(Default)]
struct Address {
    bucket: Bucket,
    has_admitted: AtomicBool,
}

/// How many failures weigh on it, and when that was so.
#[derive(Default)]
struct Bucket(Mutex<Option<(f64, Instant)>>);

impl Bucket {
    fn weight(&self, now: Instant, refill_per_second: f64) -> f64 {
        let state = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        state.map_or(0.0, |(weight, at)| drained(weight, at, now, refill_per_second))
    }

    fn add(&self, now: Instant, refill_per_second: f64, burst: f64) {
        let mut state = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let weight = state.map_or(0.0, |(weight, at)| drained(weight, at, now, refill_per_second));
        *state = Some(((weight + 1.0).min(burst), now));
    }
}

/// What an address counts as: itself, or the /64 that it is from. An IPv4 address is one however it is written.
fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & LINE_V6)),
        address @ IpAddr::V4(_) => address,
    }
}

fn drained(weight: f64, at: Instant, now: Instant, refill_per_second: f64) -> f64 {
    (weight - now.saturating_duration_since(at).as_secs_f64() * refill_per_second).max(0.0)
}

fn digest(presented: &str) -> [u8; 8] {
    let digest = Sha256::digest(presented.as_bytes());
    digest[..8].try_into().expect("a SHA-256 has 32 bytes")
}

impl Failures {
    pub(super) fn new(burst: u32, refill_per_second: u32, addresses_max: usize) -> Self {
        let addresses_max = u64::try_from(addresses_max).unwrap_or(u64::MAX);
        Self {
            addresses: Cache::builder().max_capacity(addresses_max).time_to_idle(MEMORY).build(),
            keys: Cache::builder().max_capacity(addresses_max).time_to_idle(MEMORY).build(),
            burst: f64::from(burst),
            refill_per_second: f64::from(refill_per_second),
        }
    }

    /// How long the address, or this key text from it, has to wait; `None` where it may try.
    pub(super) fn wait_ms(&self, address: IpAddr, presented: &str, now: Instant) -> Option<u64> {
        let address = counted_as(address);
        let of_address = self.addresses.get(&address)?;
        let trust = if of_address.has_admitted.load(Ordering::Relaxed) { TRUST } else { 1.0 };
        let address_excess = of_address.bucket.weight(now, self.refill_per_second * trust) - (self.burst * trust - 1.0);
        let of_key = self.keys.get(&(address, digest(presented)));
        let key_excess = of_key.map_or(0.0, |bucket| bucket.weight(now, self.refill_per_second) - (self.burst - 1.0));
        let seconds = (address_excess / trust).max(key_excess) / self.refill_per_second;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positive, and at most a few minutes"
        )]
        let wait_ms = (seconds * 1_000.0).ceil() as u64;
        (seconds > 0.0).then_some(wait_ms.max(1))
    }

    /// A call from the address failed with this key text.
    pub(super) fn failed(&self, address: IpAddr, presented: &str, now: Instant) {
        let address = counted_as(address);
        let of_address = self.addresses.get_with(address, Arc::default);
        let trust = if of_address.has_admitted.load(Ordering::Relaxed) { TRUST } else { 1.0 };
        of_address.bucket.add(now, self.refill_per_second * trust, self.burst * trust);
        let of_key = self.keys.get_with((address, digest(presented)), Arc::default);
        of_key.add(now, self.refill_per_second, self.burst);
    }

    /// A publisher from the address was admitted.
    pub(super) fn succeeded(&self, address: IpAddr) {
        let address = counted_as(address);
        // Made without looking whether somebody else makes it in this moment, which costs several times as much and would save a
        // failure that is counted between the two lines.
        let of_address = self.addresses.get(&address).unwrap_or_else(|| {
            let new = Arc::<Address>::default();
            self.addresses.insert(address, Arc::clone(&new));
            new
        });
        of_address.has_admitted.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn fail(failures: &Failures, times: u32, key: impl Fn(u32) -> String, now: Instant) {
        for number in 0..times {
            failures.failed(HERE, &key(number), now);
        }
    }

    #[test]
    fn an_address_that_keeps_guessing_is_slowed_down_and_recovers() {
        let (failures, now) = (Failures::new(5, 1, 100), Instant::now());
        fail(&failures, 4, |n| n.to_string(), now);
        assert_eq!(failures.wait_ms(HERE, "x", now), None);
        fail(&failures, 50, |n| n.to_string(), now);
        assert_eq!(failures.wait_ms(HERE, "x", now), Some(1_000));
        assert_eq!(failures.wait_ms(HERE, "x", now + Duration::from_millis(1_001)), None);
    }

    #[test]
    fn a_neighbour_with_a_wrong_key_does_not_shut_out_an_address_that_admits() {
        let (failures, now) = (Failures::new(5, 1, 100), Instant::now());
        failures.succeeded(HERE);
        fail(&failures, 30, |_| "wrong".to_owned(), now);
        assert!(failures.wait_ms(HERE, "wrong", now).is_some());
        assert_eq!(failures.wait_ms(HERE, "right", now), None);
    }

    #[test]
    fn another_address_is_not_concerned() {
        let (failures, now) = (Failures::new(1, 1, 100), Instant::now());
        fail(&failures, 9, |_| "wrong".to_owned(), now);
        assert_eq!(failures.wait_ms("192.0.2.2".parse().unwrap(), "wrong", now), None);
    }

    #[test]
    fn a_line_with_a_whole_network_of_ipv6_is_one_address_and_its_neighbour_another() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let (failures, now) = (Failures::new(5, 1, 100), Instant::now());
        for number in 0..9 {
            failures.failed(address(&format!("2001:db8:0:1::{number:x}")), &number.to_string(), now);
        }
        assert!(failures.wait_ms(address("2001:db8:0:1:ffff:ffff:ffff:ffff"), "x", now).is_some());
        assert_eq!(failures.wait_ms(address("2001:db8:0:2::1"), "x", now), None);
        // Whoever admits from one of its addresses is trusted on all of them.
        failures.succeeded(address("2001:db8:0:1::a"));
        assert_eq!(failures.wait_ms(address("2001:db8:0:1::b"), "x", now), None);
    }

    #[test]
    fn an_ipv4_address_is_one_however_it_is_written() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let (failures, now) = (Failures::new(5, 1, 100), Instant::now());
        fail(&failures, 9, |n| n.to_string(), now);
        assert!(failures.wait_ms(address("::ffff:192.0.2.1"), "x", now).is_some());
        assert_eq!(failures.wait_ms(address("::ffff:192.0.2.2"), "x", now), None);
    }
}
