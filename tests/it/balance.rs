//! What each algorithm makes of slow, dead and returning backends, in a short pass of the
//! simulation. docs/balancing.md has the long one.

#[path = "../../benches/simulation/keys.rs"]
mod keys;
#[path = "../../benches/simulation/scenes.rs"]
mod scenes;
#[path = "../../benches/simulation/world.rs"]
mod world;

use keys::{maglev, measure, rendezvous, ring};
use scenes::{outage, sizes, troubles, workers};
use world::{Chooser, Health, Outcome, Scene, cost, run};

const SEED: u64 = 7;

fn pool(scene: &Scene, balance: &'static str) -> Outcome {
    run(scene, Chooser::Pool(balance), SEED)
}

fn trouble(name: &str) -> Scene {
    troubles().into_iter().find(|trouble| trouble.name == name).expect("a scene").scene
}

#[test]
fn the_same_seed_gives_the_same_outcome() {
    let scene = Scene { seconds: 8.0, counted: (3.0, 8.0), ..trouble("flapping") };
    for balance in ["round-robin", "least-requests", "p2c", "hash:client", "sticky"] {
        let outcome = pool(&scene, balance);
        assert_eq!(outcome, pool(&scene, balance), "{balance}");
        assert_ne!(outcome, run(&scene, Chooser::Pool(balance), SEED + 1), "{balance}");
        assert!(outcome.requests > 1_000 && outcome.served.iter().sum::<usize>() <= outcome.requests);
    }
}

#[test]
fn every_scene_says_what_it_is_and_touches_what_it_says() {
    for trouble in troubles() {
        assert!(trouble.about.ends_with('.'), "{}", trouble.name);
        let untouched = (0..trouble.scene.backends)
            .filter(|place| trouble.scene.changes.iter().all(|(_, range, _)| !range.contains(place)));
        assert_eq!(untouched.count() > 0, trouble.spread, "{}: whose work is compared", trouble.name);
    }
}

#[test]
fn backends_that_are_alike_are_alike_busy_however_many_workers_there_are() {
    for (backends, scene) in sizes().into_iter().take(2) {
        let most = [("least-requests", 1.05), ("p2c", 1.15), ("hash:client", 1.25), ("round-robin", 1.15)];
        for (balance, most) in most {
            let outcome = pool(&scene, balance);
            assert!(outcome.imbalance < most, "{balance} over {backends}: {outcome:?}");
        }
    }
    let [first, .., last] = &workers()[..] else { panic!("some numbers of workers") };
    for balance in ["least-requests", "p2c"] {
        // What is under way is shared, so that their number makes no difference at all.
        let (one, many) = (pool(&first.1, balance), pool(&last.1, balance));
        assert_eq!((one.p99, one.imbalance), (many.p99, many.imbalance), "{balance}");
        let apart = run(&last.1, Chooser::Apart(balance), SEED);
        assert!(apart.p99 >= one.p99, "{balance}: {apart:?}");
    }
}

#[test]
fn a_slow_backend_hardly_shows_but_in_turn() {
    let scene = trouble("slow");
    let in_turn = pool(&scene, "round-robin").p99;
    for balance in ["p2c", "least-requests", "hash:client"] {
        let p99 = pool(&scene, balance).p99;
        assert!(p99 * 20.0 < in_turn, "{balance}: {p99} ms against {in_turn} ms");
    }
    // With nearly nothing under way, only who knows the latency can tell.
    let scene = trouble("slow, and quiet");
    let [in_turn, least, p2c] = ["round-robin", "least-requests", "p2c"].map(|balance| pool(&scene, balance).p99);
    assert!(p2c < least && p2c < in_turn * 0.75, "p2c {p2c}, least-requests {least}, round-robin {in_turn}");
}

#[test]
fn a_backend_that_fails_at_once_draws_no_requests_with_p2c() {
    let scene = trouble("black hole");
    let failed = pool(&scene, "p2c").failed;
    assert!(failed < 0.001, "{failed}");
    // It has the least under way, always.
    assert!(run(&scene, Chooser::Leastconn, SEED).failed > 0.3);
}

#[test]
fn frozen_and_silent_backends_cost_few_requests() {
    for (name, most) in [("frozen", 300.0), ("rack", 1_500.0)] {
        let scene = trouble(name);
        for balance in ["p2c", "least-requests"] {
            let outcome = pool(&scene, balance);
            assert!(outcome.p99 < most && outcome.failed == 0.0, "{balance}, {name}: {outcome:?}");
        }
    }
}

#[test]
fn backends_that_return_together_are_not_run_down() {
    let scene = trouble("return");
    let slow = Scene { settings: "SLOW_START=10s\n", ..scene.clone() };
    for balance in ["p2c", "least-requests"] {
        let (at_once, slowly) = (pool(&scene, balance), pool(&slow, balance));
        assert!(at_once.p99 < 500.0 && slowly.p99 < at_once.p99, "{balance}: {at_once:?}, {slowly:?}");
        assert_eq!((at_once.failed, slowly.failed), (0.0, 0.0));
    }
}

#[test]
fn an_outage_gets_hardly_more_attempts_than_requests() {
    for health in [Health::Fails, Health::Refuses] {
        // From its first moment on, however long it lasts.
        for end in [25.0, 30.0, 55.0] {
            let outcome = pool(&Scene { seconds: 56.0, counted: (15.0, end), ..outage(health) }, "p2c");
            assert!(outcome.amplification <= 1.2, "{health:?} to {end}: {outcome:?}");
        }
    }
    let settings = "RETRY_ON=503\nRETRY_BUDGET=off\n";
    let unbounded = Scene { settings, seconds: 25.0, counted: (20.0, 25.0), ..outage(Health::Fails) };
    assert!(pool(&unbounded, "p2c").amplification > 3.0, "which is the budget's doing");
}

#[test]
fn keys_lie_evenly_and_only_those_move_that_must() {
    let ours = measure(rendezvous, 20, 50_000);
    assert!(ours.imbalance < 1.1 && ours.moved == 1.0, "{ours:?}");
    let (ring, table) = (measure(ring, 20, 50_000), measure(maglev, 20, 50_000));
    assert!(ring.imbalance > ours.imbalance && table.moved > 1.0, "{ring:?}, {table:?}");
}

#[test]
fn a_choice_is_made_whatever_the_size_of_the_pool() {
    for balance in ["round-robin", "least-requests", "p2c", "hash:client", "sticky"] {
        for backends in [2, 1_000] {
            assert!(cost(backends, balance).is_finite());
        }
    }
}
