//! The files that obtaining certificates takes: what they hold, and whether they are fit for
//! it. They are looked at with the configuration that names them, so that a wrong one refuses
//! it, and read anew each time that they are used.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rustls::RootCertStore;

use super::load::Manner;
use super::pem;
use crate::config::{self, Config, FileSource, Problems};

/// The certificates of `ACME_CA`, in PEM.
///
/// # Errors
/// Why there are none, in one clause.
pub fn roots(bytes: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in pem::certificates(bytes)? {
        roots.add(certificate).map_err(|error| format!("holds a certificate that can't be used: {error}"))?;
    }
    Ok(roots)
}

/// The key of `ACME_EAB_KEY`: base64url, as servers give it out, some of them with padding.
///
/// Source: RFC 8555 §7.3.4.
///
/// # Errors
/// Why it is none, in one clause.
pub fn binding_key(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let text = String::from_utf8_lossy(bytes);
    let key = BASE64_URL_SAFE_NO_PAD.decode(text.trim().trim_end_matches('='));
    key.ok().filter(|key| !key.is_empty()).ok_or_else(|| "holds no key in base64url".to_owned())
}

/// Reports the files that are not fit for what `config` wants of them.
pub(super) fn look(config: &Config, manner: Manner, problems: &mut Problems) {
    let daemon = &config.daemon;
    if !daemon.acme {
        return;
    }
    let mut look = |key, source: &Option<FileSource>, fit: fn(&[u8]) -> Result<(), String>| {
        let (Some(source), Some(setting)) = (source, config.setting(key)) else { return };
        let fault = match source.path(config.credentials.as_deref()) {
            Some(path) => config::read(&path)
                .map_err(|error| format!("can't be read: {}", config::reason(&error)))
                .and_then(|bytes| fit(&bytes)),
            // Only the service sees it.
            None if manner == Manner::Examine => return,
            None => Err("is no path, and the service manager has passed no such credential (`LoadCredential=`)".into()),
        };
        if let Err(why) = fault {
            problems.push(setting.problem(format!("`{source}` {why}"), None));
        }
    };
    look("ACME_CA", &daemon.acme_ca, |bytes| roots(bytes).map(drop));
    look("ACME_EAB_KEY", &daemon.acme_eab_key, |bytes| binding_key(bytes).map(drop));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::doors::Doors;
    use super::super::fixture::{Authority, Folder, NOW, Wish};
    use super::super::load::Load;
    use super::*;

    #[test]
    fn a_file_that_is_not_fit_refuses_the_configuration() {
        let (folder, authority) = (Folder::new(), Authority::new("ca"));
        folder.pair("ca", &Wish::of(&["ca.test"]).by(&authority));
        folder.write("eab.key", b"zWNDZM6eQGHW\n");
        folder.write("none", b"?\n");
        let load = |lines: &str, manner| {
            let main = format!("ACME=on\nACME_NAMES=a.test\nACME_EAB_KEY_ID=kid\n{lines}");
            let load = Load { keys: &Arc::default(), past: None, now: NOW, manner };
            Doors::load_with(&folder.config(&main, &[]), load)
                .map(drop)
                .map_err(|problems| folder.plain(&problems.to_string()))
        };
        let serve = |lines: &str| load(lines, Manner::Serve);
        assert_eq!(serve("ACME_CA=DIR/ca.crt\nACME_EAB_KEY=DIR/eab.key\n"), Ok(()));
        for (lines, told) in [
            (
                "ACME_CA=DIR/gone\nACME_EAB_KEY=DIR/eab.key\n",
                "config.env:4: `ACME_CA`: `gone` can't be read: no such file",
            ),
            ("ACME_CA=DIR/none\nACME_EAB_KEY=DIR/eab.key\n", "config.env:4: `ACME_CA`: `none` "),
            ("ACME_EAB_KEY=DIR/none\n", "config.env:4: `ACME_EAB_KEY`: `none` holds no key in base64url"),
            ("ACME_EAB_KEY=eab\n", "config.env:4: `ACME_EAB_KEY`: `eab` is no path, and the service manager"),
        ] {
            let problems = serve(lines).unwrap_err();
            assert!(problems.starts_with(told), "{problems}");
        }
        assert_eq!(load("ACME_EAB_KEY=eab\n", Manner::Examine), Ok(()), "only the service sees it");
    }
}
