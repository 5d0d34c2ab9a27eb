//! From files and environment to a [`Config`].
//!
//! [`load`] finds and reads the files, [`Config::assemble`] does the rest without
//! any I/O. Each layer (environment, `config.env`, one route file) is checked once
//! by itself, so that a wrong default is reported once and not for each route.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::check;
use super::key::{Key, Scope, nearest};
use super::keys::{Daemon, KEYS, Matcher, RouteSettings};
use super::problems::{Origin, Problem, Problems, Setting};
use super::source;
use super::values::Wrong;

/// The name of the route that `config.env` describes.
pub const DEFAULT_ROUTE: &str = "default";

/// Folder of the packaged configuration.
const PACKAGED: &str = "/etc/doorward";

/// Most files in `routes.d/`.
const ROUTE_LIMIT: usize = 10_000;

/// What to load.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The file that `--config` names. Without it the first one that exists of
    /// `$CONFIGURATION_DIRECTORY/config.env`, `/etc/doorward/config.env` and
    /// `./config.env` counts, else the defaults do.
    pub path: Option<PathBuf>,
    /// The process environment. Keys of the daemon and of routes are read from it,
    /// never what a route matches.
    pub environment: BTreeMap<OsString, OsString>,
}

impl Request {
    /// A request with the environment of this process.
    pub fn here(path: Option<PathBuf>) -> Request {
        Request { path, environment: std::env::vars_os().collect() }
    }
}

/// A whole configuration, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Settings of the daemon.
    pub daemon: Daemon,
    /// The routes in the order of their files; the last one is that of `config.env`.
    pub routes: Vec<RouteConfig>,
    /// `config.env`, or [`Origin::Default`] when there is none.
    pub origin: Origin,
    /// What is allowed and yet seems unmeant, each as `path:line: message`.
    pub warnings: Vec<String>,
    /// What the environment and `config.env` set, in the order of the key table.
    pub settings: Vec<Setting>,
    /// The folder of the credentials that the service manager passed.
    pub credentials: Option<PathBuf>,
}

/// One route.
#[derive(Debug, Clone)]
pub struct RouteConfig {
    /// The file's name without `.env`, or [`DEFAULT_ROUTE`].
    pub name: String,
    /// What it matches; nothing at all for the default route, which takes the rest.
    pub matcher: Matcher,
    /// Its settings.
    pub settings: RouteSettings,
    /// Its file.
    pub origin: Origin,
    /// What its own file sets; empty for the default route.
    pub own: Vec<Setting>,
}

/// The text of one file.
#[derive(Debug, Clone)]
pub struct Text {
    /// Where it is; the stem is the route's name.
    pub path: Arc<Path>,
    /// What it says.
    pub bytes: Vec<u8>,
}

/// Reads the configuration.
///
/// # Errors
/// Every problem of every file and of the environment. Nothing was changed.
pub fn load(request: &Request) -> Result<Config, Problems> {
    let mut problems = Problems::default();
    let (main, folder) = locate(request, &mut problems);
    let routes = folder.map_or_else(Vec::new, |folder| route_files(&folder.join("routes.d"), &mut problems));
    Config::assemble_with(main, routes, &request.environment, problems)
}

/// `config.env`, if there is one, and the folder that holds `routes.d`.
fn locate(request: &Request, problems: &mut Problems) -> (Option<Text>, Option<PathBuf>) {
    let folder = |path: &Path| path.parent().map(Path::to_path_buf);
    if let Some(path) = &request.path {
        return (read(path, problems), folder(path));
    }
    let mut candidates: Vec<PathBuf> = request
        .environment
        .get(std::ffi::OsStr::new("CONFIGURATION_DIRECTORY"))
        .map(|folders| std::env::split_paths(folders).collect())
        .unwrap_or_default();
    candidates.retain(|folder| folder.is_absolute());
    candidates.push(PathBuf::from(PACKAGED));
    candidates.push(PathBuf::new());
    for folder in candidates {
        let path = folder.join("config.env");
        let missing = std::fs::metadata(&path)
            .is_err_and(|error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory));
        if !missing {
            return (read(&path, problems), Some(folder));
        }
        // A removed config.env does not switch the routes beside it off.
        if folder.is_absolute() && folder.join("routes.d").is_dir() {
            return (None, Some(folder));
        }
    }
    (None, None)
}

fn read(path: &Path, problems: &mut Problems) -> Option<Text> {
    match source::read(path) {
        Ok(bytes) => Some(Text { path: path.into(), bytes }),
        Err(error) => {
            problems.push(unreadable(path, &error));
            None
        }
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Problem {
    Problem::new(Origin::File(path.into()), format!("can't be read: {}", source::reason(error)))
}

/// The route files of a folder in the order of their names.
///
/// A file counts when its name ends with `.env` and begins with neither `.` nor
/// `#`; that leaves out what dpkg and editors put beside it.
fn route_files(folder: &Path, problems: &mut Problems) -> Vec<Text> {
    let list = match std::fs::read_dir(folder) {
        Ok(list) => list,
        Err(error) if error.kind() == ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            problems.push(unreadable(folder, &error));
            return Vec::new();
        }
    };
    let mut paths = Vec::new();
    for item in list {
        match item {
            Ok(item) => {
                let name = item.file_name();
                let name = name.as_encoded_bytes();
                if name.ends_with(b".env") && !name.starts_with(b".") && !name.starts_with(b"#") {
                    paths.push(item.path());
                }
            }
            Err(error) => {
                problems.push(unreadable(folder, &error));
                return Vec::new();
            }
        }
    }
    if paths.len() > ROUTE_LIMIT {
        problems.push(Problem::new(Origin::File(folder.into()), format!("more than {ROUTE_LIMIT} files")));
        return Vec::new();
    }
    paths.sort();
    paths.iter().filter_map(|path| read(path, problems)).collect()
}

/// What one file, or the environment, sets.
#[derive(Default)]
pub(super) struct Layer {
    pub(super) settings: Vec<Setting>,
    /// Whether some of it was wrong and is left out.
    pub(super) broken: bool,
}

impl Layer {
    fn find(&self, key: &'static str) -> Option<&Setting> {
        self.settings.iter().find(|setting| setting.key.name == key)
    }

    fn take(&mut self, setting: Setting, problems: &mut Problems) {
        match setting.key.check(&setting.text) {
            Ok(()) => self.settings.push(setting),
            Err(Wrong { message, part }) => {
                self.broken = true;
                problems.push(setting.problem(message, part.as_deref()));
            }
        }
    }

    fn of_environment(environment: &BTreeMap<OsString, OsString>, problems: &mut Problems) -> Layer {
        let mut layer = Layer::default();
        for key in KEYS.iter().filter(|key| key.scope != Scope::Matcher) {
            let Some(value) = environment.get(std::ffi::OsStr::new(key.name)) else {
                continue;
            };
            let shown = value.to_string_lossy();
            let setting = Setting {
                key,
                text: shown.trim().to_owned(),
                origin: Origin::Environment,
                line: format!("{}={shown}", key.name),
            };
            if value.to_str().is_none_or(|value| value.contains(char::is_control)) {
                layer.broken = true;
                problems.push(setting.problem("is no plain text".to_owned(), None));
            } else {
                layer.take(setting, problems);
            }
        }
        layer
    }

    fn of_file(text: &Text, of_route: bool, problems: &mut Problems) -> Layer {
        let before = problems.len();
        let mut layer = Layer::default();
        for entry in source::entries(&text.path, &text.bytes, problems) {
            let origin = Origin::Line(Arc::clone(&text.path), entry.line);
            let refused = match Key::find(&entry.key) {
                None => Some(unknown(&entry.key)),
                Some(key) => misplaced(key, of_route).or_else(|| {
                    layer.take(
                        Setting {
                            key,
                            text: entry.value.trim().to_owned(),
                            origin: origin.clone(),
                            line: entry.text.clone(),
                        },
                        problems,
                    );
                    None
                }),
            };
            if let Some(message) = refused {
                let under = source::at_key(&entry.text, &entry.key);
                problems.push(Problem::new(origin, message).with_excerpt(&entry.text, under));
            }
        }
        layer.broken |= problems.len() > before;
        problems.sort_from(before);
        layer
    }
}

fn unknown(name: &str) -> String {
    match nearest(name) {
        Some(key) if key.name == name.to_ascii_uppercase() => {
            format!("unknown key `{name}`; keys are in capitals: `{}`", key.name)
        }
        Some(key) => format!("unknown key `{name}`; did you mean `{}`?", key.name),
        None => format!("unknown key `{name}`"),
    }
}

fn misplaced(key: &Key, of_route: bool) -> Option<String> {
    match key.scope {
        Scope::Daemon if of_route => {
            Some(format!("`{}` is a setting of the whole daemon; it belongs in `config.env`", key.name))
        }
        Scope::Matcher if !of_route => {
            Some(format!("`{}` says what a route matches; it belongs in a file of `routes.d/`", key.name))
        }
        _ => None,
    }
}

/// The name of a route, by its file.
fn route_name(path: &Path) -> Result<String, &'static str> {
    let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@+".contains(&byte);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
        Err("the file's name names the route: 1 to 64 letters, digits and `.`, `_`, `-`, `@`, `+`, then `.env`")
    } else if name == DEFAULT_ROUTE {
        Err("`default` is the route that `config.env` describes")
    } else {
        Ok(name.to_owned())
    }
}

impl Config {
    /// A configuration from the texts of its files, without any I/O.
    ///
    /// # Errors
    /// Every problem of every text and of the environment.
    pub fn assemble(
        main: Option<Text>,
        routes: Vec<Text>,
        environment: &BTreeMap<OsString, OsString>,
    ) -> Result<Config, Problems> {
        Config::assemble_with(main, routes, environment, Problems::default())
    }

    fn assemble_with(
        main: Option<Text>,
        routes: Vec<Text>,
        environment: &BTreeMap<OsString, OsString>,
        mut problems: Problems,
    ) -> Result<Config, Problems> {
        let unread = !problems.is_empty();
        let outer = Layer::of_environment(environment, &mut problems);
        let file = main.as_ref().map_or_else(Layer::default, |text| Layer::of_file(text, false, &mut problems));
        let base = |key: &'static str| outer.find(key).or_else(|| file.find(key));
        let text = |key: &'static str| base(key).map(|setting| setting.text.as_str());

        let daemon = take(Daemon::read(text), &mut problems);
        let default = take(RouteSettings::read(text), &mut problems);
        let nothing = take(Matcher::read(|_| None), &mut problems);
        let mut built = Vec::new();
        let mut sound = Vec::new();
        for route in &routes {
            let own = Layer::of_file(route, true, &mut problems);
            let origin = Origin::File(Arc::clone(&route.path));
            let name = match route_name(&route.path) {
                Ok(name) => name,
                Err(message) => {
                    problems.push(Problem::new(origin, message));
                    continue;
                }
            };
            let mine = |key: &'static str| own.find(key).map(|setting| setting.text.as_str());
            let settings = RouteSettings::read(|key| mine(key).or_else(|| text(key)));
            let settings = take(settings, &mut problems);
            let matcher = take(Matcher::read(mine), &mut problems);
            if let (Some(settings), Some(matcher)) = (settings, matcher) {
                sound.push(!own.broken);
                built.push(RouteConfig { name, matcher, settings, origin, own: own.settings });
            }
        }
        let (Some(daemon), Some(default), Some(nothing)) = (daemon, default, nothing) else {
            return Err(problems);
        };
        let origin = main.map_or(Origin::Default, |text| Origin::File(text.path));
        sound.push(!outer.broken && !file.broken && !unread);
        built.push(RouteConfig {
            name: DEFAULT_ROUTE.to_owned(),
            matcher: nothing,
            settings: default,
            origin: origin.clone(),
            own: Vec::new(),
        });
        let settings: Vec<Setting> = KEYS.iter().filter_map(|key| base(key.name)).cloned().collect();
        let credentials = environment.get(std::ffi::OsStr::new("CREDENTIALS_DIRECTORY")).map(PathBuf::from);
        let mut config = Config { daemon, routes: built, origin, warnings: Vec::new(), settings, credentials };
        check::contradictions(&config, &sound, &mut problems);
        if !problems.is_empty() {
            return Err(problems);
        }
        config.warnings = check::warnings(&config);
        Ok(config)
    }

    /// Who set a key of the daemon or of the default route, if anybody did.
    pub fn setting(&self, key: &str) -> Option<&Setting> {
        self.settings.iter().find(|setting| setting.key.name == key)
    }

    /// Who set a key for a route, itself or by what it inherits, if anybody did.
    pub fn setting_of<'a>(&'a self, route: &'a RouteConfig, key: &str) -> Option<&'a Setting> {
        route.setting(key).or_else(|| self.setting(key))
    }

    /// The files that were read, `config.env` first.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let main = std::iter::once(&self.origin);
        let routes = self.routes.iter().filter(|route| route.name != DEFAULT_ROUTE);
        main.chain(routes.map(|route| &route.origin)).filter_map(|origin| match origin {
            Origin::File(path) => Some(&**path),
            _ => None,
        })
    }
}

impl RouteConfig {
    /// Who set a key in this route's own file, if it does.
    pub fn setting(&self, key: &str) -> Option<&Setting> {
        self.own.iter().find(|setting| setting.key.name == key)
    }

    /// Whether this is the route that takes what no other one matches.
    pub fn is_default(&self) -> bool {
        self.name == DEFAULT_ROUTE
    }
}

/// What was read; the layers are checked, so that an error means a default that is none.
fn take<T>(read: Result<T, (&'static str, Wrong)>, problems: &mut Problems) -> Option<T> {
    match read {
        Ok(value) => Some(value),
        Err((key, wrong)) => {
            problems.push(Problem::new(Origin::Default, format!("`{key}`: {wrong}")));
            None
        }
    }
}
