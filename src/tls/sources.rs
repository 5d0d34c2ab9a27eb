//! From the keys of a configuration to the files that make pairs.
//!
//! A certificate that is a file has its key in the file of the same place in the other list,
//! or in itself. In a folder, and in the folders in it, each key names its certificate:
//! `NAME.key` that in `NAME.crt`, else `NAME.pem`, and `privkey.pem` that in `fullchain.pem`.
//! So what ACME clients keep can be used as it is, one folder for each certificate or one file.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::{self, Certificates, FileSource};

/// Most entries of a folder, and of one in it.
const FOLDER_LIMIT: usize = 10_000;

/// Two files that make a pair, and what in the configuration names each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Files<'a> {
    pub(super) source: &'a FileSource,
    pub(super) key_source: &'a FileSource,
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

/// What the names of certificates lead to, and what is wrong with them.
#[derive(Debug, Default)]
pub(super) struct Sources<'a> {
    pub(super) files: Vec<Files<'a>>,
    /// Those that lead to none, and why, in one clause.
    pub(super) faults: Vec<(&'a FileSource, String)>,
    /// Credentials that only the service sees.
    pub(super) unseen: Vec<&'a FileSource>,
}

/// Looks up what `of` names. Credentials are in the folder `credentials`.
pub(super) fn of<'a>(of: &Certificates<'a>, credentials: Option<&Path>) -> Sources<'a> {
    let mut sources = Sources::default();
    for (index, source) in of.certificates.iter().enumerate() {
        let key = of.keys.get(index).unwrap_or(source);
        let (Some(certificate), Some(key_path)) = (source.path(credentials), key.path(credentials)) else {
            sources.unseen.extend([source, key].into_iter().filter(|one| one.path(credentials).is_none()));
            continue;
        };
        if !certificate.is_dir() {
            sources.files.push(Files { source, key_source: key, certificate, key: key_path });
            continue;
        }
        if !of.keys.is_empty() {
            let why =
                format!("`{source}` is a folder, whose pairs have their keys in it; `TLS_PRIVATE_KEY` is for files");
            sources.faults.push((source, why));
            continue;
        }
        match in_folder(&certificate) {
            Ok(pairs) if pairs.is_empty() => {
                let why =
                    format!("`{source}` holds no pair: no `NAME.key` and no `privkey.pem`, in it or in its folders");
                sources.faults.push((source, why));
            }
            Ok(pairs) => {
                let files = pairs.into_iter();
                let files = files.map(|(certificate, key)| Files { source, key_source: source, certificate, key });
                sources.files.extend(files);
            }
            Err((path, why)) => sources.faults.push((source, format!("`{}` {why}", path.display()))),
        }
    }
    sources.unseen.dedup();
    sources
}

/// The pairs in a folder and in those in it, in the order of their names, certificates first.
fn in_folder(folder: &Path) -> Result<Vec<(PathBuf, PathBuf)>, (PathBuf, String)> {
    let mut pairs = Vec::new();
    let entries = entries(folder)?;
    for path in entries.iter().filter(|path| !path.is_dir()) {
        pairs.extend(with_certificate(path)?);
    }
    for inner in entries.iter().filter(|path| path.is_dir()) {
        for path in self::entries(inner)? {
            pairs.extend(with_certificate(&path)?);
        }
    }
    Ok(pairs)
}

/// A key with its certificate; none if the file is no key by its name.
fn with_certificate(path: &Path) -> Result<Option<(PathBuf, PathBuf)>, (PathBuf, String)> {
    let certificates = if path.file_name() == Some(OsStr::new("privkey.pem")) {
        vec![path.with_file_name("fullchain.pem")]
    } else if path.extension() == Some(OsStr::new("key")) {
        vec![path.with_extension("crt"), path.with_extension("pem")]
    } else {
        return Ok(None);
    };
    let names: Vec<String> =
        certificates.iter().filter_map(|path| Some(format!("`{}`", path.file_name()?.to_string_lossy()))).collect();
    match certificates.into_iter().find(|path| path.exists()) {
        Some(certificate) => Ok(Some((certificate, path.to_path_buf()))),
        None => Err((path.to_path_buf(), format!("has no certificate beside it: no {}", names.join(" and no ")))),
    }
}

/// The entries of a folder but for hidden ones, in the order of their names.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, (PathBuf, String)> {
    let fault = |error: io::Error| (folder.to_path_buf(), format!("can't be read: {}", config::reason(&error)));
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fault)? {
        let entry = entry.map_err(fault)?;
        if entry.file_name().as_encoded_bytes().first() != Some(&b'.') {
            paths.push(entry.path());
        }
        if paths.len() > FOLDER_LIMIT {
            return Err((folder.to_path_buf(), format!("has more than {FOLDER_LIMIT} entries")));
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Folder;
    use super::*;

    fn found(folder: &Folder, main: &str) -> Result<Vec<String>, Vec<String>> {
        let config = folder.config(main, &[]);
        let certificates = Certificates::of(&config).next().unwrap();
        let sources = of(&certificates, Some(&folder.path("credentials")));
        let plain = |path: &Path| folder.plain(&path.display().to_string());
        if sources.faults.is_empty() {
            let pairs =
                sources.files.iter().map(|files| format!("{} {}", plain(&files.certificate), plain(&files.key)));
            Ok(pairs.collect())
        } else {
            Err(sources.faults.iter().map(|(_, why)| folder.plain(why)).collect())
        }
    }

    #[test]
    fn a_folder_has_the_pairs_whose_keys_are_in_it_or_one_below() {
        let folder = Folder::new();
        for name in [
            "tls/b.key",
            "tls/b.pem",
            "tls/a.key",
            "tls/a.crt",
            "tls/a.pem",
            "tls/a.issuer.crt",
            "tls/README",
            "tls/.old.key",
            "tls/live/privkey.pem",
            "tls/live/fullchain.pem",
            "tls/live/chain.pem",
            "tls/live/cert.pem",
            "tls/live/deep/x.key",
        ] {
            folder.write(name, "");
        }
        assert_eq!(
            found(&folder, "TLS_CERTIFICATE=DIR/tls,DIR/one.pem\n"),
            Ok(vec![
                "tls/a.crt tls/a.key".to_owned(),
                "tls/b.pem tls/b.key".to_owned(),
                "tls/live/fullchain.pem tls/live/privkey.pem".to_owned(),
                "one.pem one.pem".to_owned(),
            ])
        );
        folder.write("tls/c.key", "");
        let lonely = "`tls/c.key` has no certificate beside it: no `c.crt` and no `c.pem`";
        assert_eq!(found(&folder, "TLS_CERTIFICATE=DIR/tls\n"), Err(vec![lonely.to_owned()]));
        let empty = "`tls/live/deep/none` holds no pair: no `NAME.key` and no `privkey.pem`, in it or in \
                     its folders";
        std::fs::create_dir(folder.path("tls/live/deep/none")).unwrap();
        assert_eq!(found(&folder, "TLS_CERTIFICATE=DIR/tls/live/deep/none\n"), Err(vec![empty.to_owned()]));
        let keys = "`tls/live` is a folder, whose pairs have their keys in it; `TLS_PRIVATE_KEY` is for files";
        assert_eq!(
            found(&folder, "TLS_CERTIFICATE=DIR/tls/live\nTLS_PRIVATE_KEY=DIR/x.key\n"),
            Err(vec![keys.to_owned()])
        );
    }

    #[test]
    fn pairs_are_made_by_position_and_names_are_those_of_credentials() {
        let folder = Folder::new();
        assert_eq!(
            found(&folder, "TLS_CERTIFICATE=DIR/a.pem,site\nTLS_PRIVATE_KEY=site.key,DIR/b.key\n"),
            Ok(vec!["a.pem credentials/site.key".to_owned(), "credentials/site b.key".to_owned()])
        );
    }
}
