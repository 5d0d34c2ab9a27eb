//! The scenes that are simulated.

use super::world::{Health, Scene};

/// A scene with its name and what it is.
pub struct Titled {
    pub name: &'static str,
    pub about: String,
    pub scene: Scene,
    /// What has no imbalance to speak of: every backend is touched, or all are unlike.
    pub spread: bool,
}

fn alike(_: usize, _: usize) -> f64 {
    1.0
}

/// From once to four times as slow.
fn skewed(place: usize, count: usize) -> f64 {
    4.0_f64.powf(place as f64 / (count - 1).max(1) as f64)
}

fn scene(backends: usize, workers: usize) -> Scene {
    Scene {
        backends,
        workers,
        load: 0.7,
        seconds: 30.0,
        counted: (3.0, 30.0),
        slowness: alike,
        changes: Vec::new(),
        settings: "",
    }
}

/// All alike, of every size.
pub fn sizes() -> Vec<(usize, Scene)> {
    let size = |(backends, workers, seconds): (usize, usize, f64)| {
        (backends, Scene { seconds, counted: (seconds * 0.2, seconds), ..scene(backends, workers) })
    };
    [(2, 1, 120.0), (10, 8, 40.0), (100, 16, 15.0), (1_000, 64, 6.0)].map(size).into()
}

/// Ten backends, alike, before so many workers.
pub fn workers() -> Vec<(usize, Scene)> {
    [1, 4, 16, 64].map(|workers| (workers, scene(10, workers))).into()
}

/// What goes wrong.
pub fn troubles() -> Vec<Titled> {
    let ten = || scene(10, 8);
    let flapping = |place: usize| {
        let turn = move |n: usize| {
            let health = if n % 2 == 0 { Health::Refuses } else { Health::Serves(1.0) };
            (3.0 + n as f64, place..place + 1, health)
        };
        (0..26).map(turn).collect::<Vec<_>>()
    };
    let titled = |name, about: &str, scene, spread| Titled { name, about: about.to_owned(), scene, spread };
    vec![
        titled(
            "slow",
            "One of ten backends takes ten times as long, at half the load.",
            Scene { load: 0.5, changes: vec![(0.0, 3..4, Health::Serves(10.0))], ..ten() },
            true,
        ),
        titled(
            "slow, and quiet",
            "The same at a twentieth of the load, so that most backends are idle.",
            Scene {
                load: 0.05,
                seconds: 120.0,
                counted: (12.0, 120.0),
                changes: vec![(0.0, 3..4, Health::Serves(10.0))],
                ..ten()
            },
            true,
        ),
        titled(
            "black hole",
            "One of ten backends answers 503, at once.",
            Scene { changes: vec![(0.0, 3..4, Health::Fails)], load: 0.5, ..ten() },
            true,
        ),
        titled(
            "frozen",
            "One of ten backends takes requests and does nothing for five seconds, then goes on.",
            Scene {
                load: 0.5,
                counted: (5.0, 15.0),
                changes: vec![(5.0, 3..4, Health::Frozen), (10.0, 3..4, Health::Serves(1.0))],
                ..ten()
            },
            true,
        ),
        titled(
            "skewed",
            "Ten backends that take from one to four times as long, at 60 % of what they can do together.",
            Scene { load: 0.6, slowness: skewed, ..ten() },
            true,
        ),
        titled(
            "flapping",
            "One of ten backends refuses connections every other second.",
            Scene { load: 0.6, changes: flapping(3), ..ten() },
            true,
        ),
        titled(
            "rack",
            "A third of 30 backends fall silent, so that each connection to them costs CONNECT_TIMEOUT (3 s), and \
             return after twelve seconds.",
            Scene {
                load: 0.5,
                counted: (5.0, 30.0),
                changes: vec![(5.0, 10..20, Health::Silent), (17.0, 10..20, Health::Serves(1.0))],
                ..scene(30, 8)
            },
            true,
        ),
        titled(
            "return",
            "Half of ten backends are down, which leaves the others nearly full, and return together: eight times as \
             slow at first, as fast as the others after three seconds.",
            Scene {
                load: 0.43,
                counted: (10.0, 20.0),
                changes: vec![(3.0, 5..10, Health::Refuses), (10.0, 5..10, Health::Cold(3.0))],
                ..ten()
            },
            true,
        ),
        titled(
            "newcomer",
            "One of ten backends returns cold: eight times as slow at first, as fast as the others after ten seconds.",
            Scene {
                load: 0.6,
                counted: (8.0, 20.0),
                changes: vec![(3.0, 3..4, Health::Refuses), (8.0, 3..4, Health::Cold(10.0))],
                ..ten()
            },
            true,
        ),
        titled(
            "outage",
            "Every backend answers 503 for forty seconds, and RETRY_ON names 503; all requests of that time count.",
            Scene { counted: (15.0, 55.0), ..outage(Health::Fails) },
            false,
        ),
        titled(
            "outage, after its first ten seconds",
            "The same, without the time in which the budget of the seconds before the outage is spent.",
            Scene { counted: (25.0, 55.0), ..outage(Health::Fails) },
            false,
        ),
        titled(
            "refusal",
            "Every backend refuses connections for forty seconds; all requests of that time count.",
            Scene { counted: (15.0, 55.0), ..outage(Health::Refuses) },
            false,
        ),
    ]
}

/// The same trouble for all, from the 15th second to the 55th.
pub fn outage(health: Health) -> Scene {
    Scene {
        seconds: 60.0,
        changes: vec![(15.0, 0..10, health), (55.0, 0..10, Health::Serves(1.0))],
        settings: "RETRY_ON=connect,reset,503\n",
        ..scene(10, 8)
    }
}
