use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use super::held::tests::pem;
use super::store::Store;
use super::*;
use crate::config::AcmeChallenge;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// When the tests begin, after 1970.
const BEGIN: Duration = Duration::from_secs(1_800_000_000);

thread_local! {
    static START: Cell<Option<Instant>> = const { Cell::new(None) };
    /// How far the wall clock has jumped.
    static JUMP: Cell<i64> = const { Cell::new(0) };
}

fn clock() -> SystemTime {
    let start = START.get().unwrap_or_else(Instant::now);
    START.set(Some(start));
    let (now, jump) = (UNIX_EPOCH + BEGIN + start.elapsed(), JUMP.get());
    let jumped = Duration::from_secs(jump.unsigned_abs());
    if jump < 0 { now - jumped } else { now + jumped }
}

/// What happens to the orders of a name.
#[derive(Clone, Copy, PartialEq)]
enum Does {
    Give(Duration),
    Fail(Scope, Option<Duration>),
    Hang,
}

/// A server that does as it is told, and a real store.
#[derive(Clone)]
struct Script {
    folder: Rc<tempfile::TempDir>,
    does: Rc<RefCell<HashMap<&'static str, Does>>>,
    orders: Rc<RefCell<Vec<(String, Duration, u32)>>>,
    notes: Rc<RefCell<BTreeMap<String, Option<Trouble>>>>,
    kept: Rc<RefCell<BTreeMap<Box<str>, Held>>>,
    window: Rc<Cell<Option<(Duration, Duration)>>>,
    questions: Rc<Cell<usize>>,
}

impl Script {
    fn new(does: impl IntoIterator<Item = (&'static str, Does)>) -> Script {
        START.set(None);
        JUMP.set(0);
        clock();
        Script {
            folder: Rc::new(tempfile::tempdir().unwrap()),
            does: Rc::new(RefCell::new(does.into_iter().collect())),
            orders: Rc::default(),
            notes: Rc::default(),
            kept: Rc::default(),
            window: Rc::default(),
            questions: Rc::default(),
        }
    }

    fn tell(&self, name: &'static str, does: Does) {
        self.does.borrow_mut().insert(name, does);
    }

    /// When orders for `name` began, after the start of the test.
    fn ordered(&self, name: &str) -> Vec<Duration> {
        self.orders.borrow().iter().filter(|(of, ..)| of == name).map(|(_, at, _)| *at).collect()
    }
}

fn since_begin() -> Duration {
    clock().duration_since(UNIX_EPOCH + BEGIN).unwrap_or_default()
}

fn held(name: &str, life: Duration) -> Held {
    let now = clock().duration_since(UNIX_EPOCH).unwrap();
    Held::read(name, pem(name, now, now + life).as_bytes(), std::path::Path::new("/kept")).unwrap()
}

impl Authority for Script {
    fn load(&self, terms: Arc<Terms>, names: Vec<Box<str>>, locked: bool) -> Job<Loaded> {
        let script = self.clone();
        Box::pin(async move {
            let store = Store::open(script.folder.path(), &terms.directory)?;
            let lock = if locked { None } else { store.lock()? };
            let note = |name: &str| script.notes.borrow().get(name).cloned().flatten();
            let found = names.into_iter().map(|name| {
                let held = script.kept.borrow().get(&name).cloned();
                let note = note(&name);
                (name, held, note)
            });
            Ok(Loaded { found: found.collect(), lock, ..Loaded::default() })
        })
    }

    fn order(&self, _: Arc<Terms>, order: Order) -> Job<Held> {
        let script = self.clone();
        Box::pin(async move {
            let turn = order.note.failures;
            script.orders.borrow_mut().push((order.name.to_string(), since_begin(), turn));
            script.notes.borrow_mut().insert(order.name.to_string(), Some(order.note));
            let does = *script.does.borrow().get(&*order.name).unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
            match does {
                Does::Give(life) => {
                    let held = held(&order.name, life);
                    script.kept.borrow_mut().insert(order.name.clone(), held.clone());
                    script.notes.borrow_mut().insert(order.name.to_string(), None);
                    Ok(held)
                }
                Does::Fail(scope, retry_after) => Err(Failure { scope, error: "no".into(), retry_after }),
                Does::Hang => pending().await,
            }
        })
    }

    fn advise(&self, _: Arc<Terms>, _: Held) -> Job<Advice> {
        let script = self.clone();
        Box::pin(async move {
            script.questions.set(script.questions.get() + 1);
            let at = |after: Duration| UNIX_EPOCH + BEGIN + after;
            let window = script.window.get().map(|(start, end)| (at(start), at(end)));
            Ok(Advice { window, again: 6 * HOUR })
        })
    }

    fn note(&self, _: &Arc<Terms>, name: &str, trouble: Option<Trouble>) {
        self.notes.borrow_mut().insert(name.to_owned(), trouble);
    }
}

fn terms() -> Terms {
    Terms {
        state: None,
        directory: "https://ca.test/dir".into(),
        ca: None,
        email: Vec::new(),
        binding: None,
        challenges: vec![AcmeChallenge::Http01],
    }
}

fn acme(script: &Script, names: &[&str]) -> Acme<Script> {
    let mut acme = Acme::new(script.clone(), clock);
    acme.watch(Some(terms()), set(names));
    acme
}

fn set(names: &[&str]) -> BTreeSet<Box<str>> {
    names.iter().map(|name| (*name).into()).collect()
}

/// All news of so long, in short.
async fn run(acme: &mut Acme<Script>, span: Duration) -> Vec<String> {
    let (ends, mut news) = (Instant::now() + span, Vec::new());
    while let Ok(one) = tokio::time::timeout_at(ends, acme.next()).await {
        news.push(match one {
            News::Loaded(unreadable) => format!("loaded{}", unreadable.concat()),
            News::Obtained { name, renewed: false, .. } => format!("obtained {name}"),
            News::Obtained { name, .. } => format!("renewed {name}"),
            News::Failed { name, .. } => format!("failed {}", name.as_deref().unwrap_or("all")),
            News::Expiring { name, error, .. } => format!("expiring {name}: {error}"),
        });
    }
    news
}

fn state(acme: &Acme<Script>, name: &str) -> &'static str {
    acme.report().find(|report| report.name == name).unwrap().state
}

#[tokio::test(start_paused = true)]
async fn each_name_gets_a_certificate_one_after_the_other_and_another_in_time() {
    let script = Script::new([("a.test", Does::Give(90 * DAY)), ("b.test", Does::Give(90 * DAY))]);
    let mut acme = acme(&script, &["a.test", "b.test"]);
    assert_eq!(run(&mut acme, HOUR).await, ["obtained a.test", "obtained b.test"]);
    assert_eq!(script.ordered("b.test")[0] - script.ordered("a.test")[0], Duration::from_millis(500));
    assert_eq!(acme.certificates().count(), 2);
    assert_eq!(run(&mut acme, 54 * DAY).await, Vec::<String>::new());
    let mut renewed = run(&mut acme, 7 * DAY).await;
    renewed.sort();
    assert_eq!(renewed, ["renewed a.test", "renewed b.test"]);
    let (a, b) = (script.ordered("a.test")[1], script.ordered("b.test")[1]);
    // By what their keys have come to, anything up to days.
    assert!(a.abs_diff(b) > Duration::from_secs(10), "they are apart now: {a:?} {b:?}");
}

#[tokio::test(start_paused = true)]
async fn what_the_store_has_is_not_ordered_again() {
    let script = Script::new([]);
    script.kept.borrow_mut().insert("a.test".into(), held("a.test", 90 * DAY));
    let mut acme = acme(&script, &["a.test"]);
    assert_eq!(run(&mut acme, 30 * DAY).await, ["loaded"]);
    assert_eq!((state(&acme, "a.test"), script.orders.borrow().len()), ("valid", 0));
}

#[tokio::test(start_paused = true)]
async fn a_name_that_fails_waits_longer_each_time_and_keeps_no_other_waiting() {
    let script = Script::new([("bad.test", Does::Fail(Scope::Name, None)), ("good.test", Does::Give(90 * DAY))]);
    let mut acme = acme(&script, &["bad.test", "good.test"]);
    let news = run(&mut acme, HOUR).await;
    assert_eq!(news.iter().filter(|one| *one == "failed bad.test").count(), 4);
    assert_eq!(news.iter().filter(|one| *one == "obtained good.test").count(), 1);
    let turns: Vec<u32> =
        script.orders.borrow().iter().filter(|(name, ..)| name == "bad.test").map(|(.., turn)| *turn).collect();
    assert_eq!(turns, [1, 2, 3, 4], "each attempt may try another challenge");
    run(&mut acme, 10 * DAY).await;
    let pauses: Vec<Duration> = script.ordered("bad.test").windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.iter().all(|pause| *pause < 14 * HOUR) && *pauses.last().unwrap() > 10 * HOUR, "{pauses:?}");
    script.tell("bad.test", Does::Give(90 * DAY));
    assert_eq!(run(&mut acme, DAY).await, ["obtained bad.test"]);
    assert_eq!(script.notes.borrow()["bad.test"], None);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_asks_for_a_pause_gets_it_also_after_a_restart_and_a_reload() {
    let script = Script::new([("a.test", Does::Fail(Scope::Name, Some(30 * HOUR)))]);
    let mut first = acme(&script, &["a.test"]);
    assert_eq!(run(&mut first, HOUR).await, ["failed a.test"]);
    drop(first);
    let mut second = acme(&script, &["a.test"]);
    run(&mut second, HOUR).await;
    second.watch(Some(terms()), set(&["a.test"]));
    assert!(run(&mut second, 27 * HOUR).await.is_empty());
    assert_eq!(run(&mut second, 2 * HOUR).await, ["failed a.test"]);
}

#[tokio::test(start_paused = true)]
async fn one_that_refuses_a_name_for_a_while_is_not_asked_for_the_next_at_once() {
    let refused = Does::Fail(Scope::Name, Some(30 * HOUR));
    let script = Script::new([("a.test", refused), ("b.test", refused), ("c.test", Does::Give(90 * DAY))]);
    let mut acme = acme(&script, &["a.test", "b.test", "c.test"]);
    let news = run(&mut acme, Duration::from_secs(180)).await;
    assert_eq!(news, ["failed a.test", "failed b.test", "obtained c.test"]);
    let (b, c) = (script.ordered("b.test")[0], script.ordered("c.test")[0]);
    assert!(b >= Duration::from_secs(60) && c >= b + Duration::from_secs(60), "{b:?} {c:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_is_waited_for_by_all_and_counts_against_none() {
    let down = Does::Fail(Scope::Server, None);
    let script = Script::new([("a.test", down), ("b.test", down)]);
    let mut acme = acme(&script, &["a.test", "b.test"]);
    let news = run(&mut acme, Duration::from_secs(100)).await;
    // After 0, 5, 15, 35 and 75 seconds.
    assert_eq!(news, ["failed all"; 5]);
    let next = acme.report().next().unwrap().next.unwrap();
    let wait = next.duration_since(clock()).unwrap().as_secs();
    assert!((30..80).contains(&wait), "the pause shows: {wait}");
    assert!(script.orders.borrow().iter().all(|(_, _, turn)| *turn == 1));
    assert!(script.notes.borrow().values().all(Option::is_none));
    run(&mut acme, 10 * DAY).await;
    let before = script.orders.borrow().len();
    assert!((220..300).contains(&before), "{before}");
    script.tell("a.test", Does::Give(90 * DAY));
    script.tell("b.test", Does::Give(90 * DAY));
    assert_eq!(run(&mut acme, 2 * HOUR).await, ["obtained a.test", "obtained b.test"]);
}

#[tokio::test(start_paused = true)]
async fn a_reload_tries_again_at_once_what_has_failed() {
    let script = Script::new([("a.test", Does::Fail(Scope::Name, None))]);
    let mut acme = acme(&script, &["a.test"]);
    run(&mut acme, 5 * HOUR).await;
    let before = script.ordered("a.test").len();
    script.tell("a.test", Does::Give(90 * DAY));
    acme.watch(Some(terms()), set(&["a.test"]));
    assert_eq!(run(&mut acme, Duration::from_secs(10)).await, ["obtained a.test"]);
    assert_eq!(script.ordered("a.test").len(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_dies_of_an_order_does_not_begin_it_anew_at_once() {
    let script = Script::new([("a.test", Does::Hang)]);
    let mut first = acme(&script, &["a.test"]);
    run(&mut first, Duration::from_secs(5)).await;
    assert_eq!(state(&first, "a.test"), "ordering");
    // Nothing is tidied up.
    drop(first);
    let mut second = acme(&script, &["a.test"]);
    run(&mut second, Duration::from_secs(60)).await;
    assert_eq!(script.ordered("a.test").len(), 1);
    run(&mut second, Duration::from_secs(120)).await;
    assert_eq!(script.ordered("a.test").len(), 2);
    // A stop is no failure.
    second.stop();
    let note = script.notes.borrow()["a.test"].clone();
    assert_eq!(note.unwrap().failures, 1);
}

#[tokio::test(start_paused = true)]
async fn a_reload_lets_an_order_go_on_unless_its_name_is_gone() {
    let script = Script::new([("a.test", Does::Hang), ("b.test", Does::Give(90 * DAY))]);
    let mut acme = acme(&script, &["a.test", "b.test"]);
    run(&mut acme, Duration::from_secs(5)).await;
    acme.watch(Some(terms()), set(&["a.test", "b.test", "c.test"]));
    run(&mut acme, Duration::from_secs(5)).await;
    assert_eq!((state(&acme, "a.test"), script.ordered("a.test").len()), ("ordering", 1));
    acme.watch(Some(terms()), set(&["b.test"]));
    assert_eq!(run(&mut acme, Duration::from_secs(5)).await, ["obtained b.test"]);
    assert_eq!(script.notes.borrow()["a.test"], None);
    acme.watch(None, BTreeSet::new());
    assert!(run(&mut acme, DAY).await.is_empty());
    assert_eq!(acme.certificates().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_there_is_serves_on_when_another_server_is_to_be_asked() {
    let script = Script::new([("a.test", Does::Give(90 * DAY))]);
    let mut acme = acme(&script, &["a.test"]);
    run(&mut acme, HOUR).await;
    let first = acme.certificates().next().unwrap().clone();
    // Another way to be checked is no reason for anything.
    acme.watch(Some(Terms { challenges: vec![AcmeChallenge::TlsAlpn01], ..terms() }), set(&["a.test"]));
    assert_eq!(acme.certificates().count(), 1);
    assert!(run(&mut acme, HOUR).await.is_empty());
    script.tell("a.test", Does::Fail(Scope::Server, None));
    script.kept.borrow_mut().clear();
    acme.watch(Some(Terms { directory: "https://other.test/dir".into(), ..terms() }), set(&["a.test"]));
    assert!(run(&mut acme, HOUR).await.iter().all(|one| one == "failed all"));
    assert!(Arc::ptr_eq(acme.certificates().next().unwrap(), &first));
    script.tell("a.test", Does::Give(90 * DAY));
    assert_eq!(run(&mut acme, 2 * HOUR).await, ["renewed a.test"]);
    assert!(script.orders.borrow().iter().all(|(name, ..)| name == "a.test"));
    assert!(!Arc::ptr_eq(acme.certificates().next().unwrap(), &first));
}

#[tokio::test(start_paused = true)]
async fn one_process_orders_and_the_other_takes_over_when_it_ends() {
    let script = Script::new([("a.test", Does::Give(DAY))]);
    let mut first = acme(&script, &["a.test"]);
    assert_eq!(run(&mut first, Duration::from_secs(10)).await, ["obtained a.test"]);
    let mut second = acme(&script, &["a.test"]);
    assert_eq!(run(&mut second, Duration::from_secs(10)).await, ["loaded"]);
    let report = second.report().next().unwrap();
    assert_eq!(report.error, Some("another process orders the certificates of this folder"));
    // What the first one renews, the second one finds.
    assert_eq!(run(&mut first, 17 * HOUR).await, ["renewed a.test"]);
    assert_eq!(run(&mut second, Duration::from_secs(61)).await, ["loaded"]);
    first.stop();
    assert_eq!(run(&mut second, 17 * HOUR).await, ["renewed a.test"]);
    assert_eq!(script.orders.borrow().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn advice_is_followed_and_kept_when_it_can_not_be_had() {
    let script = Script::new([("a.test", Does::Give(90 * DAY))]);
    script.window.set(Some((20 * DAY, 22 * DAY)));
    let mut acme = acme(&script, &["a.test"]);
    run(&mut acme, 10 * DAY).await;
    assert!((39..=42).contains(&script.questions.get()), "{}", script.questions.get());
    let next = acme.report().next().unwrap().next.unwrap();
    assert!(next >= UNIX_EPOCH + BEGIN + 20 * DAY && next <= UNIX_EPOCH + BEGIN + 22 * DAY);
    // The same window, the same moment.
    run(&mut acme, DAY).await;
    assert_eq!(acme.report().next().unwrap().next, Some(next));
    // A certificate that is to be revoked is renewed as soon as that is known.
    script.window.set(Some((DAY, 2 * DAY)));
    assert_eq!(run(&mut acme, 7 * HOUR).await, ["renewed a.test"]);
    // The new one is not renewed at once, though the server says the same of it.
    assert!(run(&mut acme, DAY).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_can_not_be_renewed_is_warned_of_and_serves_on() {
    let script = Script::new([("a.test", Does::Give(90 * DAY))]);
    let mut acme = acme(&script, &["a.test"]);
    run(&mut acme, HOUR).await;
    script.tell("a.test", Does::Fail(Scope::Name, None));
    let warned = |news: Vec<String>| news.into_iter().filter(|one| one == "expiring a.test: no").count();
    assert_eq!(warned(run(&mut acme, 75 * DAY).await), 0);
    assert!((13..=14).contains(&warned(run(&mut acme, 14 * DAY).await)));
    assert!(warned(run(&mut acme, 3 * DAY).await) >= 2);
    assert_eq!((state(&acme, "a.test"), acme.certificates().count()), ("expired", 1));
    script.tell("a.test", Does::Give(90 * DAY));
    assert!(run(&mut acme, 13 * HOUR).await.contains(&"renewed a.test".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_neither_delays_for_ever_nor_orders_without_end() {
    let script = Script::new([("a.test", Does::Give(90 * DAY))]);
    let mut acme = acme(&script, &["a.test"]);
    run(&mut acme, HOUR).await;
    JUMP.set(61 * 86_400);
    assert_eq!(run(&mut acme, Duration::from_secs(90)).await, ["renewed a.test"]);
    // A note from a future that is not to come holds nobody up.
    script.tell("a.test", Does::Fail(Scope::Name, None));
    JUMP.set(200 * 86_400);
    run(&mut acme, Duration::from_secs(90)).await;
    JUMP.set(125 * 86_400);
    let before = script.orders.borrow().len();
    run(&mut acme, Duration::from_secs(90)).await;
    assert_eq!(script.orders.borrow().len(), before + 1);
    // A clock that is years ahead of the server's: each certificate seems to have expired.
    let ahead = Script::new([("b.test", Does::Give(Duration::ZERO))]);
    let mut acme = self::acme(&ahead, &["b.test"]);
    run(&mut acme, HOUR).await;
    assert_eq!(ahead.orders.borrow().len(), 4);
}
