//! Files that other keys name: certificates, keys, lists.
//!
//! What a daemon's current directory is, nobody should have to guess: a path is absolute.
//! Without any `/` a name is that of a credential, which the service manager decrypts, puts
//! into a folder that only this service sees, and changes by a restart alone.
//!
//! Source: systemd.exec(5), `LoadCredential=`.

use std::fmt;
use std::path::{Path, PathBuf};

use super::values::{Form, Wrong};

/// Where a file is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum FileSource {
    /// An absolute path.
    Path(PathBuf),
    /// The name of a systemd credential.
    Credential(String),
}

impl FileSource {
    /// Its path, where credentials are in `folder`; none for a credential without such a folder.
    #[must_use]
    pub fn path(&self, folder: Option<&Path>) -> Option<PathBuf> {
        match self {
            FileSource::Path(path) => Some(path.clone()),
            FileSource::Credential(name) => folder.map(|folder| folder.join(name)),
        }
    }
}

impl fmt::Display for FileSource {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FileSource::Path(path) => write!(out, "{}", path.display()),
            FileSource::Credential(name) => out.write_str(name),
        }
    }
}

/// The form of a [`FileSource`].
pub(super) struct FileForm;

impl Form for FileForm {
    type Value = FileSource;

    fn parse(&self, text: &str) -> Result<FileSource, Wrong> {
        if text.starts_with('/') {
            return Ok(FileSource::Path(text.into()));
        }
        let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b':';
        if text.is_empty() || text.len() > 255 || text.starts_with('.') || !text.bytes().all(plain) {
            return Err(Wrong::new(format!("expected {}, found `{text}`", self.describe())));
        }
        Ok(FileSource::Credential(text.to_owned()))
    }

    fn describe(&self) -> String {
        "an absolute path, or the bare name of a systemd credential".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_an_absolute_path_or_a_credential() {
        let here = |text: &str| FileForm.parse(text).map(|file| file.path(Some(Path::new("/run/c"))));
        assert_eq!(here("/etc/a b.pem"), Ok(Some("/etc/a b.pem".into())));
        assert_eq!(here("site.key"), Ok(Some("/run/c/site.key".into())));
        assert_eq!(FileForm.parse("site.key").map(|file| file.path(None)), Ok(None));
        for wrong in ["", "./a.pem", "certs/a.pem", "../a", "~/a.pem", "a:b", "ä", ".", "a b"] {
            assert!(FileForm.parse(wrong).is_err(), "{wrong}");
        }
    }
}
