//! Store: what must outlive the process, as plain files.
//!
//! ```text
//! $STATE_DIRECTORY/acme/
//!   lock                                        held by the process that orders
//!   acme-v02.api.letsencrypt.org_directory/     one server
//!     account.json                              the account there, with its key
//!     www.example.com.pem                       private key, certificate, chain
//!     www.example.com.json                      the last attempt, if it failed
//! ```
//!
//! Key and certificate are one file, so that whatever happens in between they fit. A file
//! is written beside its place, synced, and moved there; all are for their owner alone.
//! Nothing is ever deleted but the note of an attempt: who takes a name out of the
//! configuration may bring it back.
//!
//! Two processes may share a folder, as in a hand-over. Only the one with the lock orders
//! certificates; any reads them.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Largest file that is read, in bytes: a chain of certificates has a few thousand.
const FILE_LIMIT: u64 = 1 << 20;

/// What is known of an attempt that failed, or is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// Attempts in a row that failed.
    pub failures: u32,
    /// Before when there is no further one, in seconds since 1970.
    pub retry_at: u64,
    /// Whether the server asked for that.
    #[serde(default)]
    pub asked: bool,
    /// Why the last one failed.
    pub error: String,
}

/// The right to order certificates; it ends with the value, or the process.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// The files of one server.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

/// Why a file can't be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}", .path.display())]
pub struct StoreError {
    /// Which.
    pub path: PathBuf,
    /// What the system said, or that it makes no sense.
    pub error: io::Error,
}

trait At<T> {
    fn at(self, path: &Path) -> Result<T, StoreError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, path: &Path) -> Result<T, StoreError> {
        self.map_err(|error| StoreError { path: path.into(), error })
    }
}

impl Store {
    /// The files of the server with this directory, in a folder for state; made if need be.
    ///
    /// # Errors
    /// The folder can't be made.
    pub fn open(state: &Path, directory: &str) -> Result<Store, StoreError> {
        let folder = state.join("acme").join(folder_name(directory));
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).at(&folder)?;
        Ok(Store { folder })
    }

    /// Takes the lock, if nobody has it.
    ///
    /// # Errors
    /// The file of the lock can't be opened.
    pub fn lock(&self) -> Result<Option<Lock>, StoreError> {
        let path = self.folder.with_file_name("lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).at(&path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()).at(&path),
        }
    }

    /// The account that was saved.
    ///
    /// # Errors
    /// Its file can't be read, or makes no sense.
    pub fn account<T: DeserializeOwned>(&self) -> Result<Option<T>, StoreError> {
        self.read_json("account.json")
    }

    /// Saves the account.
    ///
    /// # Errors
    /// It can't be written.
    pub fn save_account<T: Serialize>(&self, account: &T) -> Result<(), StoreError> {
        self.write_json("account.json", account)
    }

    /// Where the account is, for an operator.
    pub fn account_path(&self) -> PathBuf {
        self.folder.join("account.json")
    }

    /// The private key and the certificates for a name, in PEM.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn certificate(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(&format!("{name}.pem"))
    }

    /// Where they are.
    pub fn certificate_path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.pem"))
    }

    /// Saves private key and certificates for a name, in PEM.
    ///
    /// # Errors
    /// They can't be written; the ones before are still there.
    pub fn save_certificate(&self, name: &str, pem: &str) -> Result<(), StoreError> {
        self.write(&format!("{name}.pem"), pem.as_bytes())
    }

    /// What went wrong with a name.
    ///
    /// # Errors
    /// The file can't be read, or makes no sense.
    pub fn trouble(&self, name: &str) -> Result<Option<Trouble>, StoreError> {
        self.read_json(&format!("{name}.json"))
    }

    /// Saves what went wrong with a name; nothing does, with `None`.
    ///
    /// # Errors
    /// It can't be written.
    pub fn save_trouble(&self, name: &str, trouble: Option<&Trouble>) -> Result<(), StoreError> {
        let file = format!("{name}.json");
        let Some(trouble) = trouble else {
            let path = self.folder.join(file);
            return match std::fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error).at(&path),
                _ => Ok(()),
            };
        };
        self.write_json(&file, trouble)
    }

    fn read_json<T: DeserializeOwned>(&self, file: &str) -> Result<Option<T>, StoreError> {
        let Some(bytes) = self.read(file)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from).at(&self.folder.join(file))
    }

    fn write_json<T: Serialize>(&self, file: &str, value: &T) -> Result<(), StoreError> {
        let mut bytes = serde_json::to_vec_pretty(value).map_err(io::Error::from).at(&self.folder.join(file))?;
        bytes.push(b'\n');
        self.write(file, &bytes)
    }

    fn read(&self, file: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.folder.join(file);
        let open = match File::open(&path) {
            Ok(open) => open,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).at(&path),
        };
        let mut bytes = Vec::new();
        open.take(FILE_LIMIT + 1).read_to_end(&mut bytes).at(&path)?;
        if u64::try_from(bytes.len()).is_ok_and(|length| length > FILE_LIMIT) {
            return Err(io::Error::other("is too large")).at(&path);
        }
        Ok(Some(bytes))
    }

    /// Writes a file so that there is always the old one or the new one, whole.
    fn write(&self, file: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.folder.join(file);
        // What a crash left there is written over; only the holder of the lock writes.
        let beside = self.folder.join(format!(".{file}.new"));
        let write = || {
            let mut open = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
            open.write_all(bytes)?;
            open.sync_all()?;
            std::fs::rename(&beside, &path)?;
            File::open(&self.folder)?.sync_all()
        };
        write().at(&path)
    }
}

/// The folder of a directory's URL: what can stand in a file's name is kept.
fn folder_name(directory: &str) -> String {
    let rest = directory.strip_prefix("https://").unwrap_or(directory);
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-.".contains(c) { c } else { '_' };
    rest.trim_end_matches('/').chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const DIRECTORY: &str = "https://ca.test:14000/acme/dir";

    #[test]
    fn files_are_whole_for_their_owner_alone_and_where_they_are_said_to_be() {
        let state = tempfile::tempdir().unwrap();
        let store = Store::open(state.path(), DIRECTORY).unwrap();
        assert_eq!(store.certificate("a.test").unwrap(), None);
        store.save_certificate("a.test", "first").unwrap();
        store.save_certificate("a.test", "second").unwrap();
        assert_eq!(store.certificate("a.test").unwrap().as_deref(), Some(&b"second"[..]));
        let folder = state.path().join("acme/ca.test_14000_acme_dir");
        let names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["a.test.pem"], "nothing is left beside it");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&folder.join("a.test.pem"))), (0o700, 0o600));
        // Another server has files of its own.
        let other = Store::open(state.path(), "https://other.test/dir").unwrap();
        assert_eq!(other.certificate("a.test").unwrap(), None);
    }

    #[test]
    fn what_went_wrong_is_remembered_until_it_is_forgotten() {
        let state = tempfile::tempdir().unwrap();
        let store = Store::open(state.path(), DIRECTORY).unwrap();
        let trouble = Trouble { failures: 2, retry_at: 7, asked: true, error: "no".into() };
        store.save_trouble("a.test", Some(&trouble)).unwrap();
        assert_eq!(store.trouble("a.test").unwrap(), Some(trouble));
        store.save_trouble("a.test", None).unwrap();
        store.save_trouble("a.test", None).unwrap();
        assert_eq!(store.trouble("a.test").unwrap(), None);
        std::fs::write(state.path().join("acme/ca.test_14000_acme_dir/a.test.json"), "{").unwrap();
        let error = store.trouble("a.test").unwrap_err().to_string();
        assert!(error.contains("a.test.json: EOF while parsing"), "{error}");
    }

    #[test]
    fn one_at_a_time_has_the_lock() {
        let state = tempfile::tempdir().unwrap();
        let (one, two) =
            (Store::open(state.path(), DIRECTORY).unwrap(), Store::open(state.path(), "https://b.test/").unwrap());
        let lock = one.lock().unwrap();
        assert!(lock.is_some() && two.lock().unwrap().is_none());
        drop(lock);
        assert!(two.lock().unwrap().is_some());
    }
}
