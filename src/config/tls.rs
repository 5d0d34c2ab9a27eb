//! Certificates as the configuration names them, and what of that can't hold together.
//!
//! Nothing is read here: what the files hold is looked at when the configuration as a
//! whole is sound.

use super::files::FileSource;
use super::load::{Config, RouteConfig};
use super::problems::{Problem, Problems, Setting};

/// What a client meets that asks for a name which no certificate has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnknownName {
    /// The first certificate.
    Default,
    /// The alert `unrecognized_name`.
    Refuse,
}

/// The certificates that one file of the configuration names.
#[derive(Debug, Clone, Copy)]
pub struct Certificates<'a> {
    /// The route that brings them; none for those of `config.env`.
    pub route: Option<&'a RouteConfig>,
    /// Certificates, or folders of them.
    pub certificates: &'a [FileSource],
    /// Their keys, as many; none when each file of a certificate holds its key too.
    pub keys: &'a [FileSource],
    certificate_setting: Option<&'a Setting>,
    key_setting: Option<&'a Setting>,
}

impl<'a> Certificates<'a> {
    /// What every file names that names some, `config.env` first.
    pub fn of(config: &'a Config) -> impl Iterator<Item = Certificates<'a>> {
        let (default, routes) = match config.routes.split_last() {
            Some((default, routes)) => (Some(default), routes),
            None => (None, config.routes.as_slice()),
        };
        let default = default.map(|default| Certificates {
            route: None,
            certificates: &default.settings.tls_certificate,
            keys: &default.settings.tls_private_key,
            certificate_setting: config.setting("TLS_CERTIFICATE"),
            key_setting: config.setting("TLS_PRIVATE_KEY"),
        });
        // The two belong together, so a route that names certificates inherits no keys.
        let own = routes.iter().map(|route| {
            let key_setting = route.setting("TLS_PRIVATE_KEY");
            let certificate_setting = route.setting("TLS_CERTIFICATE");
            Certificates {
                route: Some(route),
                certificates: certificate_setting.map_or(&[], |_| &route.settings.tls_certificate),
                keys: key_setting.map_or(&[], |_| &route.settings.tls_private_key),
                certificate_setting,
                key_setting,
            }
        });
        default.into_iter().chain(own).filter(|one| !one.certificates.is_empty())
    }

    /// A problem with `file`, which is one of these.
    pub fn problem(&self, file: &FileSource, message: String) -> Problem {
        let of_keys = self.keys.contains(file) && !self.certificates.contains(file);
        let setting = if of_keys { self.key_setting } else { self.certificate_setting };
        match setting {
            Some(setting) => setting.problem(message, Some(&file.to_string())),
            None => Problem::new(super::Origin::Default, message),
        }
    }
}

/// Reports keys and certificates that can't be pairs. Where they stand, they are reported.
pub(super) fn contradictions(config: &Config, route: &RouteConfig, problems: &mut Problems) {
    let own = |key| if route.is_default() { config.setting(key) } else { route.setting(key) };
    let Some(setting) = own("TLS_PRIVATE_KEY").filter(|setting| !setting.text.is_empty()) else { return };
    let certificates = own("TLS_CERTIFICATE").map_or(0, |_| route.settings.tls_certificate.len());
    let keys = route.settings.tls_private_key.len();
    let message = if certificates == 0 {
        "there is no `TLS_CERTIFICATE` beside it".to_owned()
    } else if certificates != keys {
        let many = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
        format!("{} for {}", many(keys, "key"), many(certificates, "certificate"))
    } else {
        return;
    };
    problems.push(setting.problem(message, None));
}
