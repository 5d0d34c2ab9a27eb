//! A world of clients, workers and backends in virtual time, around the daemon's own policy.
//!
//! What is simulated is what lies around the policy: requests that come at random, servers
//! that take time, fail and return. The pool, its endpoints, the retries and their budget are
//! those of a configuration that is written as an operator would write it. Nothing here reads
//! a clock or draws a number that does not follow from the seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::path::Path;
use std::time::Duration;

use doorward::balance::budget;
use doorward::balance::endpoint::Endpoint;
use doorward::balance::load::Lease;
use doorward::balance::outlier;
use doorward::balance::pool::{Affinity, Ask, Tried};
use doorward::balance::retry::{self, Allowance, Failed, Progress, Retry, Step};
use doorward::balance::sticky::Token;
use doorward::config::{Balance, Config, Text};
use doorward::state::{Generation, Route};
use doorward::telemetry::Reason;

/// Requests that one backend serves at once; further ones wait in it.
const SERVERS: usize = 4;

/// The mean time that a healthy backend takes for a request, in microseconds.
const SERVICE: f64 = 20_000.0;

/// How long a refusal, or an answer that says 503, is on its way, in microseconds.
const REFUSAL: u64 = 300;

/// How long a connection to a silent backend is waited for, in microseconds.
const CONNECT: u64 = 3_000_000;

/// How often control looks at the backends, in microseconds.
const CONTROL: u64 = 100_000;

/// When the world begins, in microseconds: no time of the daemon's clock is 0.
const BEGIN: u64 = 1_000_000;

/// What is simulated.
#[derive(Clone)]
pub struct Scene {
    pub backends: usize,
    pub workers: usize,
    /// Requests a second, as a share of what all backends could serve if all were healthy.
    pub load: f64,
    pub seconds: f64,
    /// From when to when requests count, in seconds.
    pub counted: (f64, f64),
    /// How many times as long as others each backend takes.
    pub slowness: fn(usize, usize) -> f64,
    /// What becomes of backends: when, of which, what.
    pub changes: Vec<(f64, std::ops::Range<usize>, Health)>,
    /// Lines of configuration besides.
    pub settings: &'static str,
}

/// How a backend is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Health {
    /// It serves, so many times as slowly as it should.
    Serves(f64),
    /// It has just been started: slow at first, and as it should be after so many seconds.
    Cold(f64),
    /// It refuses connections.
    Refuses,
    /// It takes no connections, and says nothing.
    Silent,
    /// It answers 503.
    Fails,
    /// It takes requests and does nothing, until it goes on.
    Frozen,
}

/// Who chooses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Chooser {
    /// The pool, by this `BALANCE`.
    Pool(&'static str),
    /// The same with endpoints of each worker's own: what it would be without shared counts.
    Apart(&'static str),
    /// The fewest connections under way, those longest unused first: HAProxy's `leastconn`.
    Leastconn,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub requests: usize,
    /// Milliseconds.
    pub p50: f64,
    pub p99: f64,
    /// Busy time of the busiest of the backends that nothing happened to, by the mean.
    pub imbalance: f64,
    /// Attempts for each request.
    pub amplification: f64,
    /// Share of requests that failed.
    pub failed: f64,
    /// Requests, of those counted, that each backend served.
    pub served: Vec<usize>,
}

/// Runs a scene.
pub fn run(scene: &Scene, chooser: Chooser, seed: u64) -> Outcome {
    let balance = match chooser {
        Chooser::Pool(balance) | Chooser::Apart(balance) => balance,
        Chooser::Leastconn => "round-robin",
    };
    let apart = matches!(chooser, Chooser::Apart(_));
    let generations: Vec<Generation> =
        (0..if apart { scene.workers } else { 1 }).map(|_| generation(scene, balance)).collect();
    let routes: Vec<&Route> =
        generations.iter().map(|generation| &**generation.routes().last().expect("a route")).collect();
    let mut world = World::new(scene, chooser, &routes, seed);
    world.run();
    world.outcome()
}

fn generation(scene: &Scene, balance: &str) -> Generation {
    let address = |n: usize| format!("10.{}.{}.{}:80", n / 65_536, n / 256 % 256, n % 256);
    let backends: Vec<String> = (0..scene.backends).map(address).collect();
    let text = format!(
        "BALANCE={balance}\nBACKEND_ADDRESS={}\nWORKERS={}\n{}",
        backends.join(","),
        scene.workers,
        scene.settings
    );
    let text = Text { path: Path::new("config.env").into(), bytes: text.into_bytes() };
    let config = Config::assemble(Some(text), Vec::new(), &BTreeMap::new()).expect("a configuration");
    Generation::build(1, config, &Default::default(), None)
}

/// Random numbers that follow from a seed (splitmix64).
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let number = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ (number >> 31)
    }

    pub fn below(&mut self, sides: usize) -> usize {
        ((u128::from(self.next()) * sides as u128) >> 64) as usize
    }

    pub fn unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / 9_007_199_254_740_992.0
    }

    /// A number of the exponential distribution of mean 1.
    fn wait(&mut self) -> f64 {
        -self.unit().ln()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    /// The next request comes.
    Arrival,
    /// A request makes its next attempt.
    Attempt(usize),
    /// An attempt is refused, or answered with 503, or its connection never stands.
    Turned(usize, usize, u8),
    /// A backend has served a request, if it has not died since.
    Served(usize, usize, u32),
    /// Something becomes of backends.
    Change(usize),
    /// Control looks at the backends.
    Control,
}

const REFUSED: u8 = 0;
const TIMED_OUT: u8 = 1;
const UNAVAILABLE: u8 = 2;

struct Server {
    health: Health,
    since: u64,
    slowness: f64,
    /// Grows when it dies, so that what it was about to answer is lost.
    life: u32,
    serving: Vec<usize>,
    waiting: VecDeque<usize>,
    busy: f64,
    served: usize,
    /// What a foreign chooser counts.
    in_flight: usize,
    used: u64,
}

struct Request<'a> {
    route: usize,
    client: usize,
    arrived: u64,
    counted: bool,
    tried: Tried,
    retry: Retry<'a>,
    lease: Option<Lease<'a>>,
    began: u64,
    worker: usize,
}

struct World<'a> {
    scene: &'a Scene,
    chooser: Chooser,
    routes: &'a [&'a Route],
    random: Random,
    servers: Vec<Server>,
    requests: Vec<Option<Request<'a>>>,
    vacant: Vec<usize>,
    /// By backend's number, its place.
    places: BTreeMap<u64, usize>,
    tokens: Vec<Option<Token>>,
    events: BinaryHeap<Reverse<(u64, u64, What)>>,
    sequence: u64,
    now: u64,
    latencies: Vec<u64>,
    counted: usize,
    attempts: usize,
    failed: usize,
    uses: u64,
}

impl<'a> World<'a> {
    fn new(scene: &'a Scene, chooser: Chooser, routes: &'a [&'a Route], seed: u64) -> Self {
        let server = |n| Server {
            health: Health::Serves(1.0),
            since: BEGIN,
            slowness: (scene.slowness)(n, scene.backends),
            life: 0,
            serving: Vec::new(),
            waiting: VecDeque::new(),
            busy: 0.0,
            served: 0,
            in_flight: 0,
            used: 0,
        };
        let places = routes.iter().flat_map(|route| route.pool.endpoints().iter().enumerate());
        Self {
            scene,
            chooser,
            routes,
            random: Random::new(seed),
            servers: (0..scene.backends).map(server).collect(),
            requests: Vec::new(),
            vacant: Vec::new(),
            places: places.map(|(place, endpoint)| (endpoint.number(), place)).collect(),
            tokens: vec![None; scene.backends * 20],
            events: BinaryHeap::new(),
            sequence: 0,
            now: BEGIN,
            latencies: Vec::new(),
            counted: 0,
            attempts: 0,
            failed: 0,
            uses: 0,
        }
    }

    fn at(&mut self, time: u64, what: What) {
        self.sequence += 1;
        self.events.push(Reverse((time, self.sequence, what)));
    }

    fn run(&mut self) {
        let end = BEGIN + micros(self.scene.seconds);
        self.at(BEGIN, What::Arrival);
        self.at(BEGIN, What::Control);
        for (index, (time, ..)) in self.scene.changes.iter().enumerate() {
            self.at(BEGIN + micros(*time), What::Change(index));
        }
        while let Some(Reverse((time, _, what))) = self.events.pop() {
            // What is left half a minute after the last arrival is left.
            if time > end + 30_000_000 {
                break;
            }
            self.now = time;
            match what {
                What::Arrival if time < end => self.arrive(),
                What::Arrival => {}
                What::Attempt(request) => self.attempt(request),
                What::Turned(request, place, how) => self.turned(request, place, how),
                What::Served(request, place, life) => self.served(request, place, life),
                What::Change(index) => self.change(index),
                What::Control => {
                    self.control();
                    self.at(time + CONTROL, What::Control);
                }
            }
        }
        // Whoever still waits has waited at least that long.
        for request in std::mem::take(&mut self.requests).into_iter().flatten().filter(|request| request.counted) {
            self.latencies.push(self.now - request.arrived);
        }
    }

    fn millis(&self) -> u64 {
        self.now / 1_000
    }

    fn arrive(&mut self) {
        let capacity: f64 =
            self.servers.iter().map(|server| 1.0 / server.slowness).sum::<f64>() * SERVERS as f64 / SERVICE;
        let wait = self.random.wait() / (capacity * self.scene.load);
        self.at(self.now + wait.max(1.0) as u64, What::Arrival);
        let worker = self.random.below(self.scene.workers);
        let route = worker % self.routes.len();
        let since = |time: f64| BEGIN + micros(time);
        let counted = (since(self.scene.counted.0)..since(self.scene.counted.1)).contains(&self.now);
        let request = Request {
            route,
            client: self.random.below(self.tokens.len()),
            arrived: self.now,
            counted,
            tried: Tried::default(),
            retry: Retry::new(retry::Terms::of(&self.routes[route].settings)),
            lease: None,
            began: 0,
            worker,
        };
        self.counted += usize::from(counted);
        let id = self.vacant.pop().unwrap_or_else(|| {
            self.requests.push(None);
            self.requests.len() - 1
        });
        self.requests[id] = Some(request);
        self.attempt(id);
    }

    fn attempt(&mut self, id: usize) {
        let Some(place) = self.choose(id) else { return self.end(id, false) };
        self.attempts += usize::from(self.request(id).counted);
        let now = self.now;
        let server = &mut self.servers[place];
        match server.health {
            Health::Refuses => self.at(now + REFUSAL, What::Turned(id, place, REFUSED)),
            Health::Silent => self.at(now + CONNECT, What::Turned(id, place, TIMED_OUT)),
            Health::Fails => {
                self.endpoint(id, place).connected(now / 1_000);
                self.at(now + REFUSAL, What::Turned(id, place, UNAVAILABLE));
            }
            Health::Serves(_) | Health::Cold(_) | Health::Frozen => {
                server.waiting.push_back(id);
                self.endpoint(id, place).connected(now / 1_000);
                self.serve(place);
            }
        }
    }

    /// Has a server take up what waits in it.
    fn serve(&mut self, place: usize) {
        while self.servers[place].serving.len() < SERVERS && self.servers[place].health != Health::Frozen {
            let now = self.now;
            let server = &mut self.servers[place];
            let Some(id) = server.waiting.pop_front() else { return };
            let slowness = server.slowness
                * match server.health {
                    Health::Serves(slowness) => slowness,
                    // Eight times as slow at first: caches, pools, compilers.
                    Health::Cold(seconds) => {
                        let warm = ((now - server.since) as f64 / (seconds * 1e6)).min(1.0);
                        1.0 + 7.0 * (1.0 - warm)
                    }
                    _ => 1.0,
                };
            // Half of it always, half of it by chance, and one request in fifty is a long one.
            let long = if self.random.below(50) == 0 { 10.0 } else { 1.0 };
            let time = SERVICE * slowness * long * (0.5 + 0.5 * self.random.wait()) / 1.18;
            server.serving.push(id);
            server.busy += time;
            let life = server.life;
            self.at(now + time.max(1.0) as u64, What::Served(id, place, life));
        }
    }

    fn served(&mut self, id: usize, place: usize, life: u32) {
        let server = &mut self.servers[place];
        if server.life != life {
            return;
        }
        server.serving.retain(|serving| *serving != id);
        let (now, counted) = (self.now, self.request(id).counted);
        self.servers[place].served += usize::from(counted);
        if let Some(lease) = &self.request(id).lease {
            lease.answered(now);
        }
        self.endpoint(id, place).answered(now / 1_000);
        self.leave(id, place);
        let request = self.request(id);
        let (route, worker, latency) = (request.route, request.worker, now - request.arrived);
        self.routes[route].budget.deposit(worker, now / 1_000);
        if counted {
            self.latencies.push(latency);
        }
        self.end(id, true);
        self.serve(place);
    }

    fn turned(&mut self, id: usize, place: usize, how: u8) {
        let now = self.millis();
        let failed = match how {
            UNAVAILABLE => {
                self.endpoint(id, place).answered(now);
                Failed::status(503, None)
            }
            how => {
                let reason = if how == REFUSED { Reason::BackendConnectRefused } else { Reason::BackendConnectTimeout };
                let endpoint = self.endpoint(id, place);
                endpoint.refused(reason, now);
                if how == TIMED_OUT {
                    endpoint.failed(reason.as_str(), now);
                }
                Failed::of(reason, Progress::Unsent, false)
            }
        };
        self.again(id, place, failed);
    }

    /// Another attempt after one that failed, if there may be one.
    fn again(&mut self, id: usize, place: usize, failed: Failed) {
        let (now, jitter) = (self.now, self.random.unit());
        if let Some(lease) = &self.request(id).lease {
            lease.failed(now);
        }
        self.leave(id, place);
        let route = self.routes[self.request(id).route];
        let allowance = Allowance { idempotent: true, replayable: true };
        let Step::Wait(wait) = self.request(id).retry.next(failed, allowance, jitter) else {
            return self.end(id, false);
        };
        let granted = budget::Terms::of(&route.settings)
            .is_none_or(|terms| !route.pool.is_down() && route.budget.withdraw(terms, now / 1_000).is_ok());
        if granted {
            self.at(now + u64::try_from(wait.as_micros()).expect("a short wait"), What::Attempt(id));
        } else {
            self.end(id, false);
        }
    }

    /// The request has its answer, or none.
    fn end(&mut self, id: usize, well: bool) {
        if let Some(request) = self.requests[id].take() {
            self.failed += usize::from(request.counted && !well);
            self.vacant.push(id);
        }
    }

    fn leave(&mut self, id: usize, place: usize) {
        self.request(id).lease = None;
        self.servers[place].in_flight -= 1;
    }

    fn change(&mut self, index: usize) {
        let (_, range, health) = self.scene.changes[index].clone();
        for place in range {
            let server = &mut self.servers[place];
            let serves = matches!(health, Health::Serves(_) | Health::Cold(_));
            (server.health, server.since) = (health, self.now);
            if serves {
                self.serve(place);
                continue;
            }
            server.life += 1;
            if health == Health::Frozen {
                // It begins anew when it goes on.
                let serving = std::mem::take(&mut server.serving);
                server.waiting.extend(serving);
                continue;
            }
            let lost: Vec<usize> = server.serving.drain(..).chain(server.waiting.drain(..)).collect();
            for id in lost {
                let now = self.millis();
                self.endpoint(id, place).failed(Reason::BackendReset.as_str(), now);
                self.again(id, place, Failed::of(Reason::BackendReset, Progress::Sent, false));
            }
        }
    }

    fn control(&mut self) {
        let now = self.millis();
        // A foreign chooser finds out by checks what the pool finds out by a request.
        if self.chooser == Chooser::Leastconn && now % 2_000 == 0 {
            for (endpoint, server) in self.routes[0].pool.endpoints().iter().zip(&self.servers) {
                if matches!(server.health, Health::Serves(_) | Health::Cold(_)) {
                    endpoint.connected(now);
                }
            }
        }
        for route in self.routes {
            let group = outlier::Group::new(outlier::Terms::of(&route.settings), route.pool.taking());
            outlier::judge(&[group], now);
            route.pool.weigh(route.pool.stance());
        }
    }

    fn choose(&mut self, id: usize) -> Option<usize> {
        let (now, draw) = (self.now, self.random.next());
        let request = self.requests[id].as_mut().expect("a request under way");
        let route = self.routes[request.route];
        request.began = now;
        let place = match self.chooser {
            Chooser::Pool(_) | Chooser::Apart(_) => {
                let key = match &route.settings.balance {
                    Balance::Hash(_) => Affinity::of(&request.client.to_le_bytes()),
                    Balance::Sticky => self.tokens[request.client].map_or(Affinity::None, Affinity::Token),
                    _ => Affinity::None,
                };
                let ask = Ask { now: now / 1_000, micros: now, draw, key, worker: 0 };
                let lease = route.pool.pick(&mut request.tried, &ask)?;
                if let Some(token) = route.pool.token(&lease) {
                    self.tokens[request.client] = Some(token);
                }
                let place = self.places[&lease.endpoint().number()];
                request.lease = Some(lease);
                place
            }
            Chooser::Leastconn => {
                let endpoints = route.pool.endpoints();
                let up = (0..endpoints.len()).filter(|place| endpoints[*place].is_up());
                up.min_by_key(|place| (self.servers[*place].in_flight, self.servers[*place].used))?
            }
        };
        self.uses += 1;
        self.servers[place].used = self.uses;
        self.servers[place].in_flight += 1;
        Some(place)
    }

    fn request(&mut self, id: usize) -> &mut Request<'a> {
        self.requests[id].as_mut().expect("a request under way")
    }

    fn endpoint(&self, id: usize, place: usize) -> &'a Endpoint {
        let route = self.requests[id].as_ref().expect("a request under way").route;
        &self.routes[route].pool.endpoints()[place]
    }

    fn outcome(mut self) -> Outcome {
        self.latencies.sort_unstable();
        let at = |share: f64| {
            let index = (self.latencies.len() as f64 * share) as usize;
            self.latencies
                .get(index.min(self.latencies.len().saturating_sub(1)))
                .map_or(0.0, |micros| *micros as f64 / 1e3)
        };
        let touched = |place: usize| self.scene.changes.iter().any(|(_, range, _)| range.contains(&place));
        let busy: Vec<f64> =
            (0..self.servers.len()).filter(|place| !touched(*place)).map(|place| self.servers[place].busy).collect();
        let mean = busy.iter().sum::<f64>() / busy.len().max(1) as f64;
        Outcome {
            requests: self.counted,
            p50: at(0.5),
            p99: at(0.99),
            imbalance: if busy.is_empty() {
                f64::NAN
            } else {
                busy.iter().fold(0.0, |most: f64, one| most.max(*one)) / mean
            },
            amplification: self.attempts as f64 / self.counted.max(1) as f64,
            failed: self.failed as f64 / self.counted.max(1) as f64,
            served: self.servers.iter().map(|server| server.served).collect(),
        }
    }
}

fn micros(seconds: f64) -> u64 {
    u64::try_from(Duration::from_secs_f64(seconds).as_micros()).expect("a short time")
}

/// Nanoseconds that one choice and its accounting take on this machine.
pub fn cost(backends: usize, balance: &str) -> f64 {
    let scene = Scene {
        backends,
        workers: 1,
        load: 0.0,
        seconds: 0.0,
        counted: (0.0, 0.0),
        slowness: |_, _| 1.0,
        changes: Vec::new(),
        settings: "",
    };
    let generation = generation(&scene, balance);
    let pool = &generation.routes().last().expect("a route").pool;
    let mut random = Random::new(1);
    let rounds = 100_000;
    // Some are under way, as in life.
    let mut held: VecDeque<Lease<'_>> = VecDeque::new();
    let mut once = |n: u64| {
        let (draw, key) = (random.next(), Affinity::of(&random.next().to_le_bytes()));
        let now = BEGIN + n * 10;
        let lease = pool.pick(&mut Tried::default(), &Ask { now: now / 1_000, micros: now, draw, key, worker: 0 });
        held.push_back(lease.expect("a backend"));
        if held.len() > backends * 2 {
            if let Some(lease) = held.pop_front() {
                lease.answered(now);
            }
        }
    };
    (0..10_000).for_each(&mut once);
    let begun = std::time::Instant::now();
    (10_000..10_000 + rounds).for_each(&mut once);
    begun.elapsed().as_nanos() as f64 / rounds as f64
}
