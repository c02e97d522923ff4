//! Lists and details: what a page costs with ten and with ten thousand streams on air, while they come and go.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    faults::Faults,
    generator::{self, Connections, Plan, Round, get},
    subject::{self, Subject},
};

const CLIENTS: usize = 100;
const CALLS: usize = 10_000;
/// One stream ends and another begins, so many times a second: a hundred changes.
const CHURN_PER_SECOND: u32 = 50;
/// How many changes that has to make in fact: each is an end and a beginning.
const CHANGES_PER_SECOND_MIN: f64 = 90.0;
const TURNS: usize = 9;
/// How often each of the clients asks where they pause: ten thousand calls a second together, a sixth to a third of what they get where they do not.
const CLIENT_PERIOD: Duration = Duration::from_millis(10);
/// A round of those: half a second, which most often falls between two moments at which the machine stands still.
const PACED_CALLS: usize = 5_000;
const GZIP: Asked = Asked { header: Some(("Accept-Encoding", "gzip")), ..PLAINLY };

/// How many times the p99 of the yardstick a page of a hundred may have, while a hundred changes a second are made. With clients that
/// never pause: what a machine does that stands still for a moment, it does to both; at a rate that leaves it idle, the page,
/// which waits for Redis as well, meets such moments more often.
const CHURNED_P99_YARDSTICKS_MAX: f64 = 3.0;

/// The p99 of a page of a hundred while a hundred changes a second are made, for a hundred clients that pause: the aim, in milliseconds.
/// A machine that is slow for a while does not keep up with ten thousand calls a second, and tells of its queue only: so as many
/// yardsticks as for clients that never pause are enough.
const CHURNED_P99_MS_MAX: f64 = 5.0;

/// How many times the cost of a page with ten streams on air it may have with ten thousand. The aim is 1.1; a machine that does
/// something else meanwhile was seen to move it by as much.
const MANY_TO_FEW_MAX: f64 = 1.25;
/// How many times as many bytes a page of a hundred has, at the least, as the answer that it is unchanged.
const UNCHANGED_SAVES_MIN: f64 = 3.0;
/// How many times the cost of a page of a hundred the details of one stream have, at the most.
const DETAILS_TO_PAGE_MAX: f64 = 2.0;

/// How many times the processor time of the answer that it is unchanged the largest page has, at the least.
const LARGEST_UNCHANGED_SAVES_MIN: f64 = 3.0;

/// Streams that are on air.
type OnAir = Vec<(String, Uuid)>;

/// Admits a publisher to each of the keys `from..to`.
async fn admit(subject: &Subject, from: usize, to: usize) -> anyhow::Result<OnAir> {
    let written = subject.written().await?;
    let sources: OnAir = subject.keys[from..to].iter().map(|key| (key.path.clone(), Uuid::new_v4())).collect();
    let requests = sources.iter().zip(from..to);
    let requests = requests.map(|((_, source), key)| subject.auth(key, *source, Connections::Kept)).collect();
    let plan = Plan::never_pausing(32, Connections::Kept, 204);
    let round = generator::play(subject.onair, Arc::new(requests), plan).await?;
    ensure!(round.unexpected == 0, "{} were not admitted", round.unexpected);
    // What the history still has to do must not be counted to the lists.
    subject.until_written(written + sources.len() as u64).await?;
    Ok(sources)
}

/// How something is asked for.
#[derive(Clone, Copy)]
struct Asked<'a> {
    /// Name and value of a header besides.
    header: Option<(&'a str, &'a str)>,
    /// How often each client asks; zero: they never pause.
    period: Duration,
    /// What it should be answered.
    status: u16,
}

const PLAINLY: Asked = Asked { header: None, period: Duration::ZERO, status: 200 };

/// What a round of one request costs the process, in microseconds of CPU for each call.
async fn cost(subject: &Subject, request: Vec<u8>, period: Duration, status: u16) -> anyhow::Result<(Round, f64)> {
    let before = subject.cpu()?;
    let calls = if period.is_zero() { CALLS } else { PACED_CALLS };
    let every = period / u32::try_from(CLIENTS)?;
    let plan = Plan { every, ..Plan::never_pausing(CLIENTS, Connections::Kept, status) };
    let round = generator::play(subject.onair, Arc::new(vec![request; calls]), plan).await?;
    ensure!(round.unexpected == 0, "{} unexpected answers", round.unexpected);
    #[expect(clippy::cast_precision_loss, reason = "a count of calls")]
    let each_us = before.until(&subject.cpu()?).onair.as_secs_f64() * 1e6 / calls as f64;
    Ok((round, each_us))
}

/// What calls cost, each the median over some turns.
struct Cost {
    p50_us: f64,
    p99_us: f64,
    /// Processor time of a call.
    cpu_us: f64,
    /// The same in calls of the yardstick: the answer that the process lives, which takes the same way through HTTP, asked in the same
    /// second. What neighbours on the machine do to one of them, they do to both.
    yardsticks: f64,
    /// The p99 in those of the yardstick.
    p99_yardsticks: f64,
    answer_bytes: usize,
}

async fn measured(subject: &Subject, path: &str, asked: Asked<'_>) -> anyhow::Result<Cost> {
    let Asked { header, period, status } = asked;
    let request = get(path, &subject::api_authorization(), header);
    let yardstick = get("/healthz", &subject::api_authorization(), None);
    let (mut turns, mut answer_bytes) = ([const { Vec::new() }; 5], 0);
    for _ in 0..TURNS {
        let (yardstick_round, yardstick_us) = cost(subject, yardstick.clone(), period, 200).await?;
        let (round, each_us) = cost(subject, request.clone(), period, status).await?;
        let p99_us = round.percentile_us(0.99);
        let p99_yardsticks = p99_us / yardstick_round.percentile_us(0.99);
        let values = [round.percentile_us(0.5), p99_us, each_us, each_us / yardstick_us, p99_yardsticks];
        turns.iter_mut().zip(values).for_each(|(turn, value)| turn.push(value));
        answer_bytes = round.answer_bytes;
    }
    let [p50_us, p99_us, cpu_us, yardsticks, p99_yardsticks] = turns.map(|values| crate::turns::median(&values));
    Ok(Cost { p50_us, p99_us, cpu_us, yardsticks, p99_yardsticks, answer_bytes })
}

/// What the answer costs that `path` is as it was.
async fn unchanged_since(subject: &Subject, path: &str) -> anyhow::Result<Cost> {
    let etag = subject.etag(path).await?;
    measured(subject, path, Asked { header: Some(("If-None-Match", &etag)), status: 304, ..PLAINLY }).await
}

fn row(what: &str, cost: &Cost) {
    let Cost { p50_us, p99_us, cpu_us, yardsticks, p99_yardsticks, answer_bytes } = cost;
    println!(
        "| {what} | {p50_us:.0} | {p99_us:.0} | {p99_yardsticks:.2} | {cpu_us:.1} | {yardsticks:.2} | {answer_bytes} |"
    );
}

/// Measures and prints. It is a fault where ten thousand streams take more memory than `streams_mib_max`, where a page costs more with
/// many streams on air than with few, where it is late while streams come and go, and where an unchanged list costs too much.
pub async fn bench(subject: &Subject, streams_mib_max: f64, faults: &mut Faults) -> anyhow::Result<()> {
    println!(
        "\n| list and details, {CLIENTS} clients | p50 us | p99 us | in yardsticks | CPU us a call | in yardsticks | bytes |"
    );
    println!("|---|---|---|---|---|---|---|");

    let mut on_air = admit(subject, 0, 10).await?;
    let with_ten = measured(subject, "/v1/streams?limit=10", PLAINLY).await?;
    row("a page of 10, 10 on air", &with_ten);
    let (began, before_mib) = (Instant::now(), subject.resident_mib()?);
    on_air.extend(admit(subject, 10, 10_000).await?);
    let took = began.elapsed();
    let with_all = measured(subject, "/v1/streams?limit=10", PLAINLY).await?;
    let streams_mib = subject.resident_mib()? - before_mib;
    eprintln!("10,000 streams on air and in the history after {took:?}; {streams_mib:.1} MiB more resident");
    faults.at_most("MiB for 10,000 streams", streams_mib, streams_mib_max);
    row("a page of 10, 10,000 on air", &with_all);

    let listed = subject.api("GET", "/v1/streams?limit=100", &Value::Null).await?;
    let id = listed["items"][0]["id"].as_str().context("a stream is listed")?.to_owned();
    let page = measured(subject, "/v1/streams?limit=100", PLAINLY).await?;
    row("a page of 100, 10,000 on air", &page);
    let unchanged = unchanged_since(subject, "/v1/streams?limit=100").await?;
    row("the same, unchanged (304)", &unchanged);
    let compressed = measured(subject, "/v1/streams?limit=100", GZIP).await?;
    row("the same, as browsers ask for it (gzip)", &compressed);
    let largest = measured(subject, "/v1/streams?limit=1000", PLAINLY).await?;
    row("a page of 1,000, 10,000 on air", &largest);
    let largest_unchanged = unchanged_since(subject, "/v1/streams?limit=1000").await?;
    row("the same, unchanged (304)", &largest_unchanged);
    let details = measured(subject, &format!("/v1/streams/{id}"), PLAINLY).await?;
    row("details of one", &details);

    let stop = Arc::new(AtomicBool::new(false));
    let (churned, churning) = tokio::join!(
        async {
            let never_pausing = measured(subject, "/v1/streams?limit=100", PLAINLY).await;
            let compressed = measured(subject, "/v1/streams?limit=100", GZIP).await;
            let pausing = Asked { period: CLIENT_PERIOD, ..PLAINLY };
            let paced = measured(subject, "/v1/streams?limit=100", pausing).await;
            stop.store(true, Ordering::Relaxed);
            anyhow::Ok((never_pausing?, compressed?, paced?))
        },
        churn(subject, &mut on_air, &stop),
    );
    let changes_per_second = churning?;
    let (never_pausing, compressed, paced) = churned?;
    row(&format!("a page of 100, 10,000 on air, {changes_per_second:.0} changes a second"), &never_pausing);
    faults.at_least("changes on air in a second of churn", changes_per_second, CHANGES_PER_SECOND_MIN);
    row("the same, as browsers ask for it (gzip)", &compressed);
    row(&format!("the page uncompressed, each client every {} ms", CLIENT_PERIOD.as_millis()), &paced);
    let written = subject.written().await?;
    subject.end_all(&on_air[10..]).await?;
    subject.until_written(written + on_air.len() as u64 - 10).await?;
    let with_ten_again = measured(subject, "/v1/streams?limit=10", PLAINLY).await?;
    row("a page of 10, 10 on air once more", &with_ten_again);
    subject.end_all(&on_air[..10]).await?;

    let many_to_few = 2.0 * with_all.yardsticks / (with_ten.yardsticks + with_ten_again.yardsticks);
    #[expect(clippy::cast_precision_loss, reason = "sizes of answers")]
    let saved = page.answer_bytes as f64 / unchanged.answer_bytes as f64;
    let details_to_page = details.yardsticks / page.yardsticks;
    let largest_saved = largest.yardsticks / largest_unchanged.yardsticks;
    println!(
        "\ncost with 10,000 on air / with 10: {many_to_few:.2}; page of 100 / its 304: {:.1} in CPU, {saved:.0} in bytes; page of 1,000 / its 304: \
         {largest_saved:.1} in CPU; details / page of 100: {details_to_page:.2}",
        page.yardsticks / unchanged.yardsticks,
    );
    faults.at_most("a page's cost with 10,000 on air, in that with 10", many_to_few, MANY_TO_FEW_MAX);
    let p99 = never_pausing.p99_yardsticks;
    faults.at_most("p99 of a page while streams come and go, in that of /healthz", p99, CHURNED_P99_YARDSTICKS_MAX);
    let yardsticks_ms = CHURNED_P99_YARDSTICKS_MAX * paced.p99_us / paced.p99_yardsticks / 1e3;
    faults.at_most(
        "ms of p99 of a page while streams come and go, for clients that pause",
        paced.p99_us / 1e3,
        CHURNED_P99_MS_MAX.max(yardsticks_ms),
    );
    faults.at_least("bytes of a page of 100, in those of its 304", saved, UNCHANGED_SAVES_MIN);
    faults.at_least("cost of a page of 1,000, in that of its 304", largest_saved, LARGEST_UNCHANGED_SAVES_MIN);
    faults.at_most("cost of details, in that of a page of 100", details_to_page, DETAILS_TO_PAGE_MAX);
    Ok(())
}

/// How many streams a crowd has.
const CROWD: usize = 100_000;
/// How long it may take after a start until a crowd is listed. A caller waits no longer.
const CROWD_LISTED_MAX: Duration = Duration::from_secs(5);

/// A hundred thousand streams on air. It is a fault where a page costs more with them than with ten, and where they take too long to be
/// listed after a start, or more memory than `streams_mib_max` for each ten thousand.
pub async fn crowd(subject: &mut Subject, streams_mib_max: f64, faults: &mut Faults) -> anyhow::Result<()> {
    let (first, page) = (subject.keys.len(), "/v1/streams?limit=10");
    subject.add_keys(CROWD).await?;
    println!(
        "\n| a crowd, {CLIENTS} clients | p50 us | p99 us | in yardsticks | CPU us a call | in yardsticks | bytes |"
    );
    println!("|---|---|---|---|---|---|---|");
    let few = admit(subject, first, first + 10).await?;
    let with_ten = measured(subject, page, PLAINLY).await?;
    row("a page of 10, 10 on air", &with_ten);
    let (began, before_mib) = (Instant::now(), subject.resident_mib()?);
    admit(subject, first + few.len(), first + CROWD).await?;
    let took = began.elapsed();
    let with_all = measured(subject, page, PLAINLY).await?;
    row("a page of 10, 100,000 on air", &with_all);
    row("a page of 100, 100,000 on air", &measured(subject, "/v1/streams?limit=100", PLAINLY).await?);
    let crowd_mib = subject.resident_mib()? - before_mib;
    let ready = subject.restart().await?;
    let began = Instant::now();
    let listed = subject.api("GET", page, &Value::Null).await?;
    let until_listed = ready + began.elapsed();
    ensure!(listed["total"].as_u64() == Some(CROWD as u64), "not all are listed: {}", listed["total"]);
    let cost = with_all.yardsticks / with_ten.yardsticks;
    println!(
        "\n100,000 streams on air and in the history after {took:?}; {crowd_mib:.0} MiB more resident; ready {ready:?} after a start, and listed {until_listed:?} after it; cost of a page with \
         100,000 / with 10: {cost:.2}"
    );
    faults.at_most("a page's cost with 100,000 on air, in that with 10", cost, MANY_TO_FEW_MAX);
    faults.at_most("MiB for 100,000 streams", crowd_mib, 10.0 * streams_mib_max);
    let (seconds, seconds_max) = (until_listed.as_secs_f64(), CROWD_LISTED_MAX.as_secs_f64());
    faults.at_most("seconds until 100,000 streams are listed", seconds, seconds_max);
    Ok(())
}

/// Ends one stream and begins another on its path, again and again. How many changes a second there were.
async fn churn(subject: &Subject, on_air: &mut OnAir, stop: &AtomicBool) -> anyhow::Result<f64> {
    let mut ticker = tokio::time::interval(Duration::from_secs(1) / CHURN_PER_SECOND);
    let (began, mut changes) = (Instant::now(), 0_u32);
    while !stop.load(Ordering::Relaxed) {
        ticker.tick().await;
        let place = changes as usize % on_air.len();
        subject.end_all(&on_air[place..=place]).await?;
        let source = Uuid::new_v4();
        let request = subject.auth(place, source, Connections::Fresh);
        let plan = Plan::never_pausing(1, Connections::Fresh, 204);
        let round = generator::play(subject.onair, Arc::new(vec![request]), plan).await?;
        ensure!(round.unexpected == 0, "the next publisher of {} was not admitted", on_air[place].0);
        on_air[place].1 = source;
        changes += 2;
    }
    Ok(f64::from(changes) / began.elapsed().as_secs_f64())
}
