//! Families: THE table of metrics, and what is made of it.
//!
//! A row holds a metric's name, kind, unit, labels, one sentence of help, and how its
//! samples come out of the [`Figures`] of one moment. From the rows come the exposition and
//! the table in `docs/metrics.md`. Names and labels are an interface: they are never
//! changed. What a label takes its values from is the configuration or this program, never a
//! client, so that nobody outside decides how many series there are.

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeGaugeValue, EncodeLabel, EncodeLabelSet, LabelSetEncoder, MetricEncoder, NoLabelSet,
    prometheus_text, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::figures::{Figures, STATES};
use super::server::Format;

/// What every name begins with.
const PREFIX: &str = "doorward";

/// Upper bounds of the buckets of durations, in µs.
const BOUNDS: &[u64] = &[
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// A row of the table.
pub(super) struct Family {
    /// The name between prefix and unit.
    name: &'static str,
    kind: MetricType,
    /// A base unit, or empty.
    unit: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    samples: Emit,
}

type Emit = fn(&Figures, &mut Samples<'_, '_>) -> fmt::Result;

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str, samples: Emit) -> Family {
    Family { name, kind: MetricType::Counter, unit: "", labels, help, samples }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str, samples: Emit) -> Family {
    Family { name, kind: MetricType::Gauge, unit: "", labels, help, samples }
}

impl Family {
    const fn of(self, unit: &'static str) -> Self {
        Self { unit, ..self }
    }

    /// The name of its samples; those of a histogram have further endings.
    fn full_name(&self) -> String {
        let unit = if self.unit.is_empty() { String::new() } else { format!("_{}", self.unit) };
        let ending = match self.kind {
            MetricType::Counter => "_total",
            MetricType::Info => "_info",
            _ => "",
        };
        format!("{PREFIX}_{}{unit}{ending}", self.name)
    }
}

/// Every metric, in the order of the manual.
pub(super) static FAMILIES: &[Family] = &[
    Family {
        name: "build",
        kind: MetricType::Info,
        unit: "",
        labels: &["version"],
        help: "The version that runs; the value is always 1.",
        samples: |_, out| out.info(&[env!("CARGO_PKG_VERSION")]),
    },
    gauge("process_start_time", &[], "When the daemon started, since 1970.", |now, out| out.level(&[], now.started))
        .of("seconds"),
    gauge("worker_threads", &[], "Threads that serve.", |now, out| out.level(&[], now.threads)),
    gauge("draining", &[], "Whether the daemon is about to stop and accepts no more.", |now, out| {
        out.level(&[], u64::from(now.drains))
    }),
    gauge("config_generation", &[], "Number of the configuration that serves; the first one is 1.", |now, out| {
        out.level(&[], now.generation)
    }),
    gauge("config_last_reload_successful", &[], "Whether the last reload was taken; 1 before there was any.", |now, out| {
        out.level(&[], u64::from(now.reload_ok))
    }),
    gauge("config_last_reload_timestamp", &[], "When the last reload ended, since 1970; before there was any, the start.", |now, out| {
        out.level(&[], now.reload_at)
    })
    .of("seconds"),
    counter("log_records_dropped", &[], "Log records that were lost, for want of room or of a reader.", |now, out| {
        out.count(&[], now.log_dropped)
    }),
    gauge("client_connections", &[], "Client connections that are open.", |now, out| {
        out.level(&[], now.counts.connections_open)
    }),
    gauge("client_connections_limit", &[], "How many may be: `MAX_CONNECTIONS`.", |now, out| {
        out.level(&[], now.limits.connections)
    }),
    counter("client_connections_accepted", &[], "Client connections accepted.", |now, out| {
        out.count(&[], now.counts.connections_accepted)
    }),
    counter("client_connections_handed", &[], "Those of them that were handed to a less loaded thread.", |now, out| {
        out.count(&[], now.counts.connections_handed)
    }),
    counter("client_received", &[], "Bytes read from clients, counted when a request, tunnel or connection has ended.", |now, out| {
        out.count(&[], now.counts.bytes_in)
    })
    .of("bytes"),
    counter("client_sent", &[], "Bytes written to clients, likewise.", |now, out| out.count(&[], now.counts.bytes_out))
        .of("bytes"),
    counter("spliced", &[], "Bytes of bodies, tunnels and connections that the kernel moved by itself, in both directions.", |now, out| {
        out.count(&[], now.counts.bytes_spliced)
    })
    .of("bytes"),
    counter("tls_handshakes", &[], "TLS handshakes with clients that succeeded.", |now, out| {
        out.count(&[], now.counts.tls_handshakes)
    }),
    counter("tls_handshakes_resumed", &[], "Those of them that resumed an earlier session.", |now, out| {
        out.count(&[], now.counts.tls_resumed)
    }),
    gauge("tls_handshakes_in_progress", &[], "TLS handshakes with clients under way.", |now, out| {
        out.level(&[], now.load.handshakes)
    }),
    gauge("tls_handshakes_limit", &[], "How many may be: `MAX_TLS_HANDSHAKES`.", |now, out| {
        out.level(&[], now.limits.handshakes)
    }),
    gauge("tls_handshakes_waiting", &[], "Clients that wait for one.", |now, out| {
        out.level(&[], size(now.load.handshakes_waiting))
    }),
    counter("requests", &["code"], "Requests that have ended, by class of the status that was answered with; `other` where there was none, and for connections with `MODE=tcp`.", |now, out| {
        now.counts.classes().try_for_each(|(class, count)| out.count(&[class.as_str()], count))
    }),
    Family {
        name: "request_duration",
        kind: MetricType::Histogram,
        unit: "seconds",
        labels: &[],
        help: "How long requests took from their whole head to the end of their answer, tunnels and connections with `MODE=tcp` likewise; within 3.2 %.",
        samples: |now, out| out.durations(&now.counts.latency().between(BOUNDS), now.counts.latency().sum()),
    },
    counter("refusals", &["reason"], "What did not end well, by the reason that stands in the journal and in `Proxy-Status`.", |now, out| {
        now.counts.reasons().try_for_each(|(reason, count)| out.count(&[reason.as_str()], count))
    }),
    gauge("requests_in_progress", &[], "Requests that have begun and not ended, those that wait and tunnels included.", |now, out| {
        out.level(&[], now.counts.in_flight)
    }),
    gauge("concurrent_requests", &[], "Those of them that are served and hold a permit.", |now, out| {
        out.level(&[], now.load.in_flight)
    }),
    gauge("concurrent_requests_limit", &[], "How many may be: `MAX_CONCURRENT_REQUESTS`.", |now, out| {
        out.level(&[], now.limits.permits)
    }),
    gauge("queued_requests", &[], "Requests that wait for a permit.", |now, out| out.level(&[], now.load.queued)),
    gauge("queued_requests_limit", &[], "How many may: `QUEUE_LIMIT`.", |now, out| {
        out.level(&[], size(now.limits.queue))
    }),
    gauge("tunnels", &[], "WebSockets and other tunnels that are open.", |now, out| {
        out.level(&[], now.counts.tunnels_open)
    }),
    gauge("tunnels_limit", &[], "How many may be: `MAX_TUNNELS`.", |now, out| out.level(&[], now.limits.tunnels)),
    counter("tunnels_opened", &[], "Tunnels that were opened.", |now, out| out.count(&[], now.counts.tunnels)),
    counter("cut", &[], "Answers, tunnels and relayed connections that were cut before their end.", |now, out| {
        out.count(&[], now.counts.cut)
    }),
    counter("retries", &[], "Attempts after the first one.", |now, out| out.count(&[], now.counts.retries)),
    counter("retries_withheld", &["cause"], "Attempts that were not made: the request's body was no longer there (`body`), or `RETRY_BUDGET` was spent (`budget`).", |now, out| {
        out.count(&["body"], now.counts.retries_without_body)?;
        out.count(&["budget"], now.counts.retries_over_budget)
    }),
    gauge("backend_up", &["route", "backend"], "Whether requests may be sent to a backend.", |now, out| {
        let each = &mut now.members.iter();
        each.try_for_each(|one| out.level(&[&one.route, &one.backend], u64::from(one.up)))
    }),
    gauge("backend_state", &["route", "backend", "state"], "How a backend stands: 1 for its state, 0 for the others.", |now, out| {
        now.members.iter().try_for_each(|one| {
            let each = &mut STATES.iter();
            each.try_for_each(|state| out.level(&[&one.route, &one.backend, state], u64::from(one.state == *state)))
        })
    }),
    counter("backend_state_changes", &["route", "backend"], "How often a backend went down, failed its checks, was ejected, or came back.", |now, out| {
        now.members.iter().try_for_each(|one| out.count(&[&one.route, &one.backend], one.changes))
    }),
    gauge("backend_failures", &["route", "backend"], "Failures in a row that count for `EJECT_AFTER`.", |now, out| {
        now.members.iter().try_for_each(|one| out.level(&[&one.route, &one.backend], u64::from(one.failures)))
    }),
    gauge("backend_connections", &["backend"], "Connections to a backend, idle ones included.", |now, out| {
        now.backends.iter().try_for_each(|one| out.level(&[&one.backend], size(one.connections)))
    }),
    gauge("backend_connections_waiting", &["backend"], "Requests that wait for one, where `MAX_BACKEND_CONNECTIONS` is reached.", |now, out| {
        now.backends.iter().try_for_each(|one| out.level(&[&one.backend], size(one.waiting)))
    }),
    gauge("backend_requests_in_progress", &["backend"], "Requests that a backend has, tunnels and connections with `MODE=tcp` included.", |now, out| {
        now.backends.iter().try_for_each(|one| out.level(&[&one.backend], one.counts.under_way))
    }),
    counter("backend_attempts", &["backend"], "Times that a backend was chosen for a request, or for a connection with `MODE=tcp`.", |now, out| {
        now.backends.iter().try_for_each(|one| out.count(&[&one.backend], one.counts.attempts))
    }),
    counter("backend_retries", &["backend"], "Those of them for a request that had failed elsewhere, or there before.", |now, out| {
        now.backends.iter().try_for_each(|one| out.count(&[&one.backend], one.counts.retries))
    }),
    counter("backend_attempts_failed", &["backend", "cause"], "Attempts that failed: no connection could be made (`connect`), no TLS (`tls`), nothing came in time (`timeout`), the connection ended (`reset`), or what came was no answer (`malformed`). A 5xx is a response.", |now, out| {
        now.backends.iter().try_for_each(|one| {
            let each = &mut one.counts.failures();
            each.try_for_each(|(cause, count)| out.count(&[&one.backend, cause.as_str()], count))
        })
    }),
    counter("backend_responses", &["backend", "code"], "Responses of a backend, those included that were tried again, by class of their status; connections with `MODE=tcp` that it took are `other`.", |now, out| {
        now.backends.iter().try_for_each(|one| {
            let each = &mut one.counts.responses();
            each.try_for_each(|(class, count)| out.count(&[&one.backend, class.as_str()], count))
        })
    }),
    counter("backend_response_time", &["backend"], "How long the heads of all these responses together came after the requests had been sent whole.", |now, out| {
        now.backends.iter().try_for_each(|one| out.time(&[&one.backend], Duration::from_millis(one.counts.waited_ms)))
    })
    .of("seconds"),
    gauge("route_failing_open", &["route"], "Whether a route has no backend left and uses all that take connections.", |now, out| {
        now.routes.iter().try_for_each(|(route, open)| out.level(&[route], u64::from(*open)))
    }),
    gauge("certificate_expiry_timestamp", &["shown_to", "names", "file"], "When a certificate expires, since 1970; one that is shown to `clients`, or by which doorward proves to `backends` who it is.", |now, out| {
        now.certificates.iter().try_for_each(|one| out.level(&[one.shown_to, &one.names, &one.file], one.not_after))
    })
    .of("seconds"),
    gauge("acme_certificate_valid", &["name"], "Whether there is a valid certificate for a name that one is had for by ACME.", |now, out| {
        now.automatic.iter().try_for_each(|one| out.level(&[&one.name], u64::from(one.valid)))
    }),
    gauge("acme_failing", &["name"], "Whether the last attempt to obtain one failed.", |now, out| {
        now.automatic.iter().try_for_each(|one| out.level(&[&one.name], u64::from(one.fails)))
    }),
    gauge("acme_next_order_timestamp", &["name"], "When one is ordered next, since 1970; none while one is.", |now, out| {
        let planned = &mut now.automatic.iter().filter_map(|one| Some((&one.name, one.next?)));
        planned.try_for_each(|(name, next)| out.level(&[name], next))
    })
    .of("seconds"),
];

/// The metrics as they are in `figures`.
///
/// # Errors
/// None that could happen: writing to a string does not fail.
pub(super) fn exposition(figures: Figures, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(figures));
    let mut text = String::new();
    match format {
        Format::OpenMetrics => text::encode(&mut text, &registry)?,
        Format::Prometheus => prometheus_text::encode(&mut text, &registry)?,
    }
    Ok(text)
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        FAMILIES.iter().try_for_each(|family| {
            let unit = (!family.unit.is_empty()).then(|| Unit::Other(family.unit.to_owned()));
            let encoder = encoder.encode_descriptor(family.name, family.help, unit.as_ref(), family.kind)?;
            (family.samples)(self, &mut Samples { encoder, labels: family.labels, seen: HashSet::new() })
        })
    }
}

/// The table of all metrics, in Markdown.
pub fn markdown() -> String {
    let mut table = String::from("| metric | kind | labels | meaning |\n| --- | --- | --- | --- |\n");
    for family in FAMILIES {
        let labels: Vec<String> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, kind, labels) = (family.full_name(), family.kind.as_str(), labels.join(", "));
        table.push_str(&format!("| `{name}` | {kind} | {labels} | {} |\n", family.help));
    }
    table
}

fn size(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// The samples of one family, on their way out.
pub(super) struct Samples<'a, 'b> {
    encoder: MetricEncoder<'a>,
    labels: &'b [&'static str],
    /// A scrape with two samples of the same labels is refused as a whole: the first one counts.
    seen: HashSet<Vec<String>>,
}

impl Samples<'_, '_> {
    fn count(&mut self, values: &[&str], count: u64) -> fmt::Result {
        self.put(values, |encoder| encoder.encode_counter::<NoLabelSet, _, u64>(&count, None))
    }

    fn time(&mut self, values: &[&str], time: Duration) -> fmt::Result {
        self.put(values, |encoder| encoder.encode_counter::<NoLabelSet, _, u64>(&time.as_secs_f64(), None))
    }

    fn level(&mut self, values: &[&str], level: impl EncodeGaugeValue) -> fmt::Result {
        self.put(values, |encoder| encoder.encode_gauge(&level))
    }

    fn info(&mut self, values: &[&str]) -> fmt::Result {
        self.encoder.encode_info(&Labels { names: self.labels, values })
    }

    /// Counts between [`BOUNDS`] and above, and the sum of all in µs.
    fn durations(&mut self, counts: &[u64], sum_us: u64) -> fmt::Result {
        let bounds = BOUNDS.iter().map(|us| seconds(*us)).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().copied()).collect();
        self.encoder.encode_histogram::<NoLabelSet>(seconds(sum_us), counts.iter().sum(), &buckets, None)
    }

    fn put(&mut self, values: &[&str], write: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result) -> fmt::Result {
        if self.labels.is_empty() {
            return write(&mut self.encoder);
        }
        if !self.seen.insert(values.iter().map(|value| (*value).to_owned()).collect()) {
            return Ok(());
        }
        let labels = Labels { names: self.labels, values };
        write(&mut self.encoder.encode_family(&labels)?)
    }
}

#[expect(clippy::cast_precision_loss, reason = "f64 is exact up to 2^53")]
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// The labels of one sample.
struct Labels<'a> {
    names: &'a [&'static str],
    values: &'a [&'a str],
}

impl EncodeLabelSet for Labels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let pairs = &mut self.names.iter().zip(self.values);
        pairs.try_for_each(|(name, value)| (*name, *value).encode(encoder.encode_label()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::figures::{Automatic, Backend, Certificate, Member};
    use super::*;
    use crate::balance::tally::Tally;
    use crate::config::Config;
    use crate::proxy::workers::Load;
    use crate::state::Limits;
    use crate::telemetry::{Class, Reason, Snapshot, WorkerCounters};
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Instant;

    fn figures(counters: &WorkerCounters) -> Figures {
        let daemon = Config::assemble(None, Vec::new(), &BTreeMap::new()).unwrap().daemon;
        let member = |route: &str, state: &str| Member {
            route: route.into(),
            backend: "10.0.0.1:80".into(),
            up: state == "up",
            state: state.to_owned(),
            changes: 3,
            failures: 0,
        };
        let certificate = |names: &str| Certificate {
            shown_to: "clients",
            names: names.to_owned(),
            file: "/etc/a \"b\\c\".pem".to_owned(),
            not_after: 1_800_000_000,
        };
        Figures {
            started: 1_700_000_000,
            threads: 2,
            drains: false,
            generation: 7,
            reload_ok: true,
            reload_at: 1_700_000_100,
            log_dropped: 5,
            counts: Snapshot::of([counters], Instant::now()),
            load: Load { in_flight: 1, queued: 2, handshakes: 3, handshakes_waiting: 4 },
            limits: Limits::of(&daemon),
            members: vec![member("default", "up"), member("api", "ejected"), member("api", "up")],
            backends: vec![Backend {
                backend: "10.0.0.1:80".into(),
                connections: 4,
                waiting: 1,
                counts: tally().sum(),
            }],
            routes: vec![("default".into(), false), ("api".into(), true)],
            certificates: vec![certificate("a.test, b.test"), certificate("c.test")],
            automatic: vec![Automatic { name: "a.test".to_owned(), valid: true, fails: false, next: None }],
        }
    }

    /// Three attempts of which one, a retry, is under way.
    fn tally() -> Tally {
        let tally = Tally::new(1);
        let lane = tally.lane(0);
        (0..3).for_each(|_| lane.begun());
        lane.answered(Class::of(503), 1_250);
        lane.over();
        lane.failed(Reason::BackendReset);
        lane.over();
        lane.retried();
        tally
    }

    fn open_metrics(counters: &WorkerCounters) -> String {
        exposition(figures(counters), Format::OpenMetrics).unwrap()
    }

    /// Samples by their name with labels, from a strict reading of the whole exposition.
    ///
    /// Source: OpenMetrics 1.0, "ABNF".
    fn read(text: &str) -> BTreeMap<String, f64> {
        let mut samples = BTreeMap::new();
        let mut families = BTreeSet::new();
        let (mut family, mut kind, mut unit) = (String::new(), String::new(), String::new());
        let body = text.strip_suffix("# EOF\n").expect("it ends with EOF");
        for line in body.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').unwrap();
                assert!(help.ends_with('.') && !help.contains('\\'), "{line}");
                assert!(families.insert(name.to_owned()), "{name} stands twice");
                (family, kind, unit) = (name.to_owned(), String::new(), String::new());
                continue;
            }
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                rest.strip_prefix(&format!("{family} ")).unwrap().clone_into(&mut kind);
                continue;
            }
            if let Some(rest) = line.strip_prefix("# UNIT ") {
                rest.strip_prefix(&format!("{family} ")).unwrap().clone_into(&mut unit);
                assert!(family.ends_with(&format!("_{unit}")), "{line}");
                continue;
            }
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            let endings: &[&str] = match kind.as_str() {
                "counter" => &["_total"],
                "gauge" => &[""],
                "info" => &["_info"],
                "histogram" => &["_bucket", "_sum", "_count"],
                other => panic!("no kind of ours: {other}"),
            };
            assert!(endings.iter().any(|ending| name == format!("{family}{ending}")), "{line} is none of {family}");
            assert!(
                name.starts_with("doorward_") && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{name}"
            );
            assert!(samples.insert(series.to_owned(), value.parse().unwrap()).is_none(), "{series} stands twice");
        }
        samples
    }

    #[test]
    fn every_counter_of_the_workers_is_among_the_metrics() {
        let counters = WorkerCounters::default();
        // A number of its own for each, so that it can be found again.
        for (place, (_, count)) in counters.named().enumerate() {
            count.add(7_000_003 + 11 * u64::try_from(place).unwrap());
        }
        let samples = read(&open_metrics(&counters));
        for (name, count) in Snapshot::of([&counters], Instant::now()).named() {
            let shown = samples.values().filter(|value| **value == count as f64).count();
            assert_eq!(shown, 1, "the counter `{name}` has no row in FAMILIES");
        }
    }

    #[test]
    fn requests_are_counted_by_class_and_duration_and_reason() {
        let counters = WorkerCounters::default();
        counters.ended(200, 700, None);
        counters.ended(200, 70_000_000, None);
        counters.ended(502, 3_000, Some(Reason::BackendConnectRefused));
        let samples = read(&open_metrics(&counters));
        let value = |series: &str| *samples.get(series).unwrap_or_else(|| panic!("no {series} in {samples:#?}"));
        assert_eq!(value("doorward_requests_total{code=\"2xx\"}"), 2.0);
        assert_eq!(value("doorward_requests_total{code=\"5xx\"}"), 1.0);
        assert_eq!(value("doorward_refusals_total{reason=\"backend_connect_refused\"}"), 1.0);
        let reasons = samples.keys().filter(|series| series.starts_with("doorward_refusals_total")).count();
        assert_eq!(reasons, Reason::ALL.len(), "also those that are zero, so that a rate has a beginning");
        for (bound, count) in [("0.0005", 0.0), ("0.001", 1.0), ("0.005", 2.0), ("60.0", 2.0), ("+Inf", 3.0)] {
            assert_eq!(value(&format!("doorward_request_duration_seconds_bucket{{le=\"{bound}\"}}")), count, "{bound}");
        }
        assert_eq!(value("doorward_request_duration_seconds_count"), 3.0);
        assert!((value("doorward_request_duration_seconds_sum") - 70.0037).abs() < 70.0 * 0.032);
    }

    #[test]
    fn what_is_named_by_labels_stands_there_once_and_escaped() {
        let text = open_metrics(&WorkerCounters::default());
        let samples = read(&text);
        let value = |series: &str| *samples.get(series).unwrap_or_else(|| panic!("no {series} in {text}"));
        assert_eq!(value("doorward_backend_up{route=\"default\",backend=\"10.0.0.1:80\"}"), 1.0);
        // The second of that name in one route would have the whole scrape refused.
        assert_eq!(value("doorward_backend_up{route=\"api\",backend=\"10.0.0.1:80\"}"), 0.0);
        let state = |state| {
            value(&format!("doorward_backend_state{{route=\"api\",backend=\"10.0.0.1:80\",state=\"{state}\"}}"))
        };
        assert_eq!(["up", "down", "failing", "ejected", "draining"].map(state), [0.0, 0.0, 0.0, 1.0, 0.0]);
        let of_backend =
            |name: &str, labels: &str| value(&format!("doorward_backend_{name}{{backend=\"10.0.0.1:80\"{labels}}}"));
        for (name, expected) in [
            ("requests_in_progress", 1.0),
            ("attempts_total", 3.0),
            ("retries_total", 1.0),
            ("response_time_seconds_total", 1.25),
        ] {
            assert_eq!(of_backend(name, ""), expected, "{name}");
        }
        assert_eq!(of_backend("responses_total", ",code=\"5xx\""), 1.0);
        assert_eq!(of_backend("attempts_failed_total", ",cause=\"reset\""), 1.0);
        // Also those that are zero, so that a rate has a beginning.
        assert_eq!(of_backend("attempts_failed_total", ",cause=\"tls\""), 0.0);
        let file = r#"file="/etc/a \"b\\c\".pem""#;
        let expiry =
            format!("doorward_certificate_expiry_timestamp_seconds{{shown_to=\"clients\",names=\"c.test\",{file}}}");
        assert_eq!(value(&expiry), 1.8e9);
        assert_eq!(value(concat!("doorward_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}")), 1.0);
        assert!(!text.contains("acme_next_order_timestamp_seconds{"), "none is planned");
    }

    #[test]
    fn the_older_format_says_the_same() {
        let counters = WorkerCounters::default();
        counters.ended(200, 700, None);
        let newer = read(&open_metrics(&counters));
        let text = exposition(figures(&counters), Format::Prometheus).unwrap();
        let mut older = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').unwrap();
            // Whole numbers have no point there.
            let series = match series.strip_suffix("\"}").filter(|_| series.contains("{le=") && !series.contains("Inf"))
            {
                Some(bound) if !bound.contains('.') => format!("{bound}.0\"}}"),
                _ => series.to_owned(),
            };
            assert!(older.insert(series.clone(), value.parse().unwrap()).is_none(), "{series} stands twice");
        }
        assert_eq!(older, newer);
        assert!(text.contains("# TYPE doorward_requests_total counter\n") && !text.contains("# EOF"), "{text}");
    }

    #[test]
    fn each_row_of_the_table_is_named_for_what_comes_out() {
        let text = open_metrics(&WorkerCounters::default());
        let table = markdown();
        for family in FAMILIES {
            let name = family.full_name();
            assert!(table.contains(&format!("| `{name}` |")));
            assert!(text.contains(&format!("# TYPE {PREFIX}_{}", family.name)), "{name}");
            assert!(family.help.ends_with('.') && !family.help.contains('|'), "{name}");
        }
    }
}
