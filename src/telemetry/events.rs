//! Operator events: one constant id for each change of state that is logged.
//!
//! An event carries its id as the field `message_id`, by which journald finds the
//! explanation that `journalctl -x` shows (systemd's `sd_journal_print(3)` and the
//! catalog in `packaging/doorward.catalog`). An id is never changed and never used
//! for anything else; a new event gets a new random one. The fields listed are
//! those that the explanation names, and whoever logs the event brings them along.

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Name of the constant.
    pub name: &'static str,
    /// 32 lower-case hexadecimal digits.
    pub id: &'static str,
    /// Fields that its explanation names.
    pub fields: &'static [&'static str],
}

macro_rules! events {
    ($($(#[doc = $doc:literal])+ $name:ident = $id:literal [$($field:literal)*];)+) => {
        $($(#[doc = $doc])+ pub const $name: &str = $id;)+

        /// Every event.
        pub const ALL: &[Event] = &[
            $(Event { name: stringify!($name), id: $id, fields: &[$($field),*] },)+
        ];
    };
}

events! {
    /// The daemon has started and says how it listens and where it sends.
    STARTED = "dcefff1e92e0c4ec7f82c24dec21f0f6" ["version"];
    /// The configuration or a listening socket was refused at the start.
    START_REFUSED = "fb322442e63cc46eeb79da41a2f4e63e" ["error"];
    /// A listening socket is in use, passed by systemd or bound by the daemon.
    LISTENING = "71194e75b5687ba01e35b7cac13cd05b" ["address"];
    /// Every worker accepts.
    READY = "3edc43e64c6c743453ef10db59323836" [];
    /// A new configuration serves.
    RELOADED = "86cba529fc47d40f81126aa02a3e7daa" ["generation"];
    /// A new configuration was refused; the old one serves on.
    RELOAD_REFUSED = "7b62eefb95af963fba63609550bc9dd1" ["error"];
    /// The configuration holds but deserves a look.
    CONFIG_WARNING = "75a8109812b9770229c3fc7eeb8ee1b5" ["warning"];
    /// Another process has taken over; this one drains.
    HANDED_OVER = "9ddf1417f8f83375ebe3395e6abf1bcd" ["successor" "successor_version"];
    /// This process has taken over from another one, which drains.
    TOOK_OVER = "5880fb012b1eb5da1805683c4817a779" ["predecessor"];
    /// An upgrade is asked for while the process before still finishes what it has.
    UPGRADE_WAITS = "537083fabbfa4e1fb53260f4c9cdf205" ["predecessor"];
    /// No other process took over; this one serves on.
    UPGRADE_FAILED = "8a373780b6b6434583a29653c49f5d9b" ["error"];
    /// The process that took over ended before this one had drained.
    SUCCESSOR_DIED = "1f95e1be2a5346c1fb6066f30af0a470" [];
    /// The daemon accepts no more and drains.
    STOPPING = "8d82f91c3bc9836eda6a5378eb2f8da8" [];
    /// The daemon has ended.
    STOPPED = "aca19c00df90eff1c170963a35560c23" [];
    /// What was left at the end of the drain was cut.
    DRAIN_CUT = "5b32edb16f77a82f4564e5951709f161" ["cut"];
    /// A worker thread does not turn over; the watchdog is no longer fed.
    WORKER_STUCK = "91e234f3eed725ca5d2acc14afc461f0" ["worker"];
    /// A worker thread ended unasked; the daemon ends with it.
    WORKER_DIED = "1fc00b95ad196d05e4a765781b3f8540" ["error"];
    /// A backend stopped taking connections.
    BACKEND_DOWN = "3e74bc9885a514644489e5bd60433749" ["backend" "reason"];
    /// A backend's checks fail.
    BACKEND_FAILING = "060d0242012d42a5826d8a52df285cf0" ["backend" "reason"];
    /// A backend fares worse than the others of its route and is left alone for a while.
    BACKEND_EJECTED = "949def44f7044862a183a289bbfa005e" ["backend" "eject_s" "reason"];
    /// A route has no backend left and uses all that take connections.
    FAILING_OPEN = "0280a6cdf87745b3a2fedfcb857a09d7" ["route"];
    /// Half of that route's primaries, or of its backups, are up again.
    FAILING_OPEN_ENDED = "2a5def840cde4297a883d72095082b52" ["route"];
    /// Nothing is held against a backend any more.
    BACKEND_UP = "175f74f75df58e25e44b9a5978417b83" ["backend"];
    /// A backend's name has no address.
    BACKEND_UNRESOLVED = "584811d3578384b7af27f484f24b2bee" ["backend" "error"];
    /// A backend's name has an address again.
    BACKEND_RESOLVED = "7862a0296900debb263acafc1519986b" ["backend"];
    /// A backend's name leads to other addresses than before.
    BACKEND_MOVED = "9589871fd7f989e0f47992d51b499030" ["backend" "addresses"];
    /// A backend's name has more addresses than are used.
    BACKEND_ADDRESSES_IGNORED = "029e26a87e17281e11ceba42d3a257c1" ["backend" "addresses" "limit"];
    /// A certificate was replaced by a newer one, or came with its files.
    CERTIFICATE_RENEWED = "000c87a9371840e795486766428bd88c" ["names" "file" "days"];
    /// The files of a certificate have changed and can't be used; the old one stays.
    CERTIFICATE_NOT_RENEWED = "21dc649c4d5a43a1a27bab022f2246ef" ["error"];
    /// Files have changed by which backends are verified, or which they are shown.
    BACKEND_TLS_RENEWED = "5ee96a09ff4bcd14f1b91103ab870fd1" ["routes"];
    /// A certificate expires within 14 days.
    CERTIFICATE_EXPIRES = "5e69ed2782f24491a2568b593e429295" ["names" "file" "days"];
    /// A certificate has expired and is shown all the same.
    CERTIFICATE_EXPIRED = "5cf3f24cff2a4b21b240eca785774f3d" ["names" "file"];
    /// What an earlier process has left of the keys of session tickets can't be used.
    TICKET_KEYS_UNUSABLE = "a259c0d2ee55e48498aafa7b20f682fc" ["error"];
    /// A certificate was obtained from an ACME server.
    ACME_OBTAINED = "7057c35fe7cb478e935428ff9d406662" ["name" "not_after"];
    /// A certificate can't be obtained for now.
    ACME_FAILED = "1bfbd0a99da048c1835b98ebe72ca588" ["name" "error" "retry_s"];
    /// A certificate ends soon and could not be renewed.
    ACME_EXPIRES = "a912e58974ef4a959b06d0e1d3fdfa01" ["name" "not_after" "error"];
    /// What is kept of certificates can't be read.
    ACME_UNREADABLE = "087d87ed2d4245c1a0c3b50bff04284d" ["error"];
    /// The retry budget of a route is spent; failures go to clients as they are.
    RETRY_BUDGET_SPENT = "98a366e208694458a1b300fa0f993dea" ["route"];
    /// Requests are turned away because a backend has all the connections that it may have.
    BACKEND_FULL = "2c5a90c7aac38fc4dd454ff42d0f9320" ["backend" "connections" "waiting"];
    /// Requests are turned away because the queue is full.
    QUEUE_FULL = "bb16e23a0f83124b2a66f7fb454211ec" ["limit"];
    /// A backend died within a response; the client's connection was cut.
    RESPONSE_CUT = "01fe3059773e65ccaf502089b4e57ba2" ["backend" "reason"];
    /// A client's HTTP/2 connection was ended for what the client sent on it.
    HTTP2_REFUSED = "d7833639b37ab3986f93a450b740e46d" ["client" "reason" "code"];
    /// The process ran out of file descriptors and pauses accepting.
    OUT_OF_DESCRIPTORS = "0ef2c88bff86e80aa4c2adc00a133f8c" ["error"];
    /// `MAX_CONNECTIONS` client connections are open; no more are accepted for now.
    CONNECTIONS_FULL = "043b082214384340ca91c1e5b138582d" ["limit"];
    /// Entries of the log were lost.
    LOG_DROPPED = "baaab5ebe9e3fad2da03293a5afa8c5b" ["dropped"];
    /// journald can't be reached; the log goes to stderr.
    LOG_FALLBACK = "304389e9d0f511e0b7bd39585731f4c3" ["error"];
    /// A thread or task panicked: a fault in doorward.
    PANICKED = "8fd1c5842bc23eb61b95e5a2ff925e87" ["cause" "location"];
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;

    const CATALOG: &str = include_str!("../../packaging/doorward.catalog");

    /// An entry of the catalog: its header fields and its text.
    struct Entry {
        headers: BTreeMap<&'static str, &'static str>,
        text: &'static str,
    }

    /// The catalog's entries by id. The format is that of systemd's message catalogs:
    /// `-- ID`, header lines, an empty line, text.
    fn catalog() -> BTreeMap<&'static str, Entry> {
        let (comment, entries) = CATALOG.split_once("\n-- ").unwrap();
        assert!(comment.lines().all(|line| line.starts_with('#') || line.is_empty()));
        let mut parsed = BTreeMap::new();
        for entry in entries.split("\n-- ") {
            let (id, entry) = entry.split_once('\n').unwrap();
            let (headers, text) = entry.split_once("\n\n").unwrap();
            let headers = headers.lines().map(|line| line.split_once(": ").unwrap());
            let entry = Entry { headers: headers.collect(), text: text.trim() };
            assert!(parsed.insert(id, entry).is_none(), "{id} stands twice");
        }
        parsed
    }

    /// What stands between pairs of `@`.
    fn variables(text: &str) -> Vec<&str> {
        let parts: Vec<&str> = text.split('@').collect();
        assert!(parts.len() % 2 == 1, "an @ without its partner: {text}");
        parts.into_iter().skip(1).step_by(2).collect()
    }

    #[test]
    fn every_id_is_well_formed_and_stands_once() {
        let ids: BTreeSet<_> = ALL.iter().map(|event| event.id).collect();
        assert_eq!(ids.len(), ALL.len());
        for Event { name, id, .. } in ALL {
            let digits = id.bytes().filter(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'));
            assert_eq!((id.len(), digits.count()), (32, 32), "{name}");
        }
    }

    #[test]
    fn the_catalog_explains_each_event_and_nothing_else() {
        let catalog = catalog();
        for Event { name, id, fields } in ALL {
            let entry = catalog.get(id).unwrap_or_else(|| panic!("no catalog entry for {name}"));
            assert_eq!(entry.headers["Defined-By"], "doorward", "{name}");
            assert_eq!(entry.headers["Support"], "man:doorward(8)", "{name}");
            assert!(entry.headers["Documentation"].starts_with("man:doorward"), "{name}");
            assert!(!entry.text.is_empty(), "{name}");
            let named = [variables(entry.headers["Subject"]), variables(entry.text)].concat();
            let named: BTreeSet<String> = named.into_iter().map(str::to_lowercase).collect();
            let listed: BTreeSet<String> = fields.iter().copied().map(str::to_owned).collect();
            assert_eq!(named, listed, "{name}");
        }
        let known: BTreeSet<_> = ALL.iter().map(|event| event.id).collect();
        let stray: Vec<_> = catalog.keys().filter(|id| !known.contains(**id)).collect();
        assert!(stray.is_empty(), "no event has these ids: {stray:?}");
    }

    /// The sources outside this module.
    fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("telemetry") {
                sources(&path, found);
            } else if path.extension().is_some_and(|it| it == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path.display().to_string(), text));
            }
        }
    }

    #[test]
    fn whoever_logs_an_event_brings_its_fields_along() {
        let mut found = Vec::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
        assert!(!found.is_empty());
        let word =
            |text: &str, word: &str| text.split(|it: char| !it.is_alphanumeric() && it != '_').any(|it| it == word);
        for (path, text) in &found {
            for call in text.split("message_id = events::").skip(1) {
                // Up to the end of the macro's call: the next one has its own fields.
                let call = call.split_once(");").map_or(call, |(call, _)| call);
                let event = ALL.iter().find(|event| word(call, event.name)).unwrap();
                for field in event.fields {
                    assert!(word(call, field), "{path}: {} without {field}", event.name);
                }
            }
        }
    }

    #[test]
    fn catalog_lines_fit_a_terminal() {
        for line in CATALOG.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}
