//! Whether the files of certificates have changed, and what becomes of it.
//!
//! Those who renew certificates replace files or links, one after the other, and nobody says
//! when they are done. So the files are looked at now and then, which works for links, mounts
//! and network file systems alike. A pair is taken as soon as it is one; what is wrong with
//! files is told of only when they have stayed as they are from one look to the next, and
//! once.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::clients::{self, Clients};
use super::doors::Doors;
use super::load::{Renewal, now};
use super::sources;
use crate::config::{Certificates, ClientTrusts, Config};

/// What tells a file from what it was: device, inode, length, and time of change.
type Stamp = (u64, u64, u64, i64, i64);

/// What was seen of the files, and what of that was told.
#[derive(Debug, Default)]
pub struct Watch {
    seen: Option<Vec<(PathBuf, Option<Stamp>)>>,
    /// Faults that were found at the last look.
    fresh: BTreeSet<String>,
    /// Faults that were told of and are still there.
    told: BTreeSet<String>,
}

impl Watch {
    /// Looks at the files that `config` names, which `doors` and `clients` were made of. Gives
    /// what is new, if anything is. It blocks, as long as the file system does.
    pub fn look(&mut self, config: &Config, doors: &Doors, clients: &Clients) -> Option<Renewal> {
        self.look_at(config, doors, clients, now())
    }

    fn look_at(&mut self, config: &Config, doors: &Doors, clients: &Clients, now: i64) -> Option<Renewal> {
        let seen = see(config);
        let same = self.seen.as_ref() == Some(&seen);
        if same && self.fresh.is_empty() && !doors.is_outdated(now) {
            return None;
        }
        self.seen = Some(seen);
        let mut renewal = doors.renew(config, now).ok()?;
        let of_backends = clients.renew(config, now);
        renewal.faults.extend(of_backends.faults);
        renewal.renewed.extend(of_backends.identities);
        renewal.clients = of_backends.clients;
        let faults: BTreeSet<String> = renewal.faults.drain(..).collect();
        self.told.retain(|fault| faults.contains(fault));
        let settled = faults.iter().filter(|fault| same && self.fresh.contains(*fault));
        renewal.faults = settled.filter(|fault| self.told.insert((*fault).clone())).cloned().collect();
        self.fresh = faults.into_iter().filter(|fault| !self.told.contains(fault)).collect();
        (renewal.changed || renewal.clients.is_some() || !renewal.faults.is_empty()).then_some(renewal)
    }

    /// Reads everything at the next look.
    pub fn forget(&mut self) {
        self.seen = None;
    }
}

/// All files that count, as they are.
fn see(config: &Config) -> Vec<(PathBuf, Option<Stamp>)> {
    let files = Certificates::of(config).flat_map(|certificates| {
        let found = sources::of(&certificates, config.credentials.as_deref());
        // What leads to no file counts too: it may tomorrow.
        let folders = found.faults.iter().map(|(source, why)| PathBuf::from(format!("{source} {why}")));
        let folders: Vec<PathBuf> = folders.collect();
        let files = found.files.into_iter().flat_map(|files| {
            let staple = files.certificate.with_extension("ocsp");
            [files.certificate, files.key, staple]
        });
        files.chain(folders).collect::<Vec<_>>()
    });
    let trusts = ClientTrusts::of(config);
    let trusts = trusts.exact.values().chain(trusts.below.values()).chain([&trusts.anywhere]).flatten();
    let of_clients = trusts.flat_map(|trust| trust.authorities.iter().chain(trust.revoked));
    let of_clients = of_clients.filter_map(|source| source.path(config.credentials.as_deref()));
    files
        .chain(of_clients)
        .chain(clients::files(config))
        .map(|path| (stamp(&path), path))
        .map(|(stamp, path)| (path, stamp))
        .collect()
}

fn stamp(path: &Path) -> Option<Stamp> {
    let file = std::fs::metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.len(), file.mtime(), file.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::fixture::{Authority, Folder, NOW, Wish};
    use super::super::load::{Load, Manner};
    use super::*;

    /// What a folder of certificates comes to.
    struct Scene {
        folder: Folder,
        authority: Authority,
        config: Config,
        watch: Watch,
        doors: Doors,
    }

    impl Scene {
        fn new() -> Scene {
            let (folder, authority) = (Folder::new(), Authority::new("ca"));
            folder.pair("a", &Wish { serial: 1, ..Wish::of(&["a.test"]) }.by(&authority));
            let config = folder.config("TLS_CERTIFICATE=DIR\n", &[]);
            let load = Load { keys: &Arc::default(), past: None, now: NOW, manner: Manner::Serve };
            let doors = Doors::load_with(&config, load).unwrap();
            Scene { folder, authority, config, watch: Watch::default(), doors }
        }

        fn issue(&self, serial: u64, until: i32) -> (String, String) {
            Wish { serial, from: 2024, until, ..Wish::of(&["a.test"]) }.by(&self.authority)
        }

        /// Looks, takes what is new, and gives the serial numbers and what is told.
        fn look(&mut self) -> (Vec<u8>, Vec<String>) {
            let renewal = self.watch.look_at(&self.config, &self.doors, &Clients::default(), NOW);
            let mut told = Vec::new();
            if let Some(Renewal { doors, changed, faults, .. }) = renewal {
                told = faults.iter().map(|fault| self.folder.plain(fault)).collect();
                if changed {
                    self.doors = doors;
                }
            }
            (self.doors.pairs().map(|pair| *pair.facts.serial.last().unwrap()).collect(), told)
        }
    }

    fn quiet(serials: &[u8]) -> (Vec<u8>, Vec<String>) {
        (serials.to_vec(), Vec::new())
    }

    #[test]
    fn a_pair_is_taken_once_both_its_files_have_changed() {
        let mut scene = Scene::new();
        assert_eq!(scene.look(), quiet(&[1]));
        let next = scene.issue(2, 2028);
        scene.folder.write("a.crt", &next.0);
        assert_eq!(scene.look(), quiet(&[1]), "half of it is no fault yet");
        scene.folder.write("a.key", &next.1);
        assert_eq!(scene.look(), quiet(&[2]));
        assert_eq!(scene.look(), quiet(&[2]));
        // Replaced links count as well.
        let next = scene.issue(3, 2028);
        scene.folder.pair("archive/a3/x", &next);
        for (name, target) in [("a.crt", "archive/a3/x.crt"), ("a.key", "archive/a3/x.key")] {
            std::os::unix::fs::symlink(target, scene.folder.path("link")).unwrap();
            std::fs::rename(scene.folder.path("link"), scene.folder.path(name)).unwrap();
        }
        assert_eq!(scene.look(), quiet(&[3]));
        // And so does what comes to the folder.
        scene.folder.pair("b", &scene.issue(4, 2028));
        assert_eq!(scene.look(), quiet(&[3, 4]));
    }

    #[test]
    fn what_is_no_better_keeps_the_old_one_and_is_told_of_once() {
        let mut scene = Scene::new();
        assert_eq!(scene.look(), quiet(&[1]));
        let told = |why: &str| (vec![1], vec![why.to_owned()]);
        let key = scene.issue(2, 2028).1;
        scene.folder.write("a.key", key);
        assert_eq!(scene.look(), quiet(&[1]));
        let mismatch = told("`a.key` is not the key of the certificate (CN=leaf of ca)");
        assert_eq!(scene.look(), mismatch);
        assert_eq!(scene.look(), quiet(&[1]));
        scene.folder.write("a.crt", "nonsense");
        scene.look();
        assert_eq!(scene.look(), told("`a.crt` is not PEM"));
        let expired = scene.issue(3, 2026);
        scene.folder.pair("a", &expired);
        scene.look();
        let why = "`a.crt` (a.test) expired on 2026-01-01; the one before it serves on, until 2028-01-01";
        assert_eq!(scene.look(), told(why));
        std::fs::remove_file(scene.folder.path("a.key")).unwrap();
        scene.look();
        assert_eq!(scene.look().0, [1], "what is gone stays");
        assert_eq!(scene.look(), quiet(&[1]));
        scene.folder.pair("a", &scene.issue(5, 2028));
        assert_eq!(scene.look(), quiet(&[5]));
    }
}
