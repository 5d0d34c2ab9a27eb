//! What a row of the key table is, and what is made of the rows.
//!
//! The macro at the end turns the table of `keys` into the rows themselves, the structs of
//! settings, and their parsers.

use super::keys::KEYS;
use super::values::Wrong;

/// Where a key may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// In `config.env` and the environment: a setting of the whole daemon.
    Daemon,
    /// In `config.env` and the environment as the default of every route, and in a
    /// file of `routes.d/` for that route.
    Route,
    /// In a file of `routes.d/` only.
    Matcher,
}

impl Scope {
    /// The scope in words.
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Daemon => "daemon",
            Scope::Route => "route",
            Scope::Matcher => "route files only",
        }
    }
}

/// A row of the table.
#[derive(Clone, Copy)]
pub struct Key {
    /// The name, in capitals.
    pub name: &'static str,
    /// Where it may stand.
    pub scope: Scope,
    /// The heading it stands under in the manual.
    pub group: &'static str,
    /// The default as one would write it; empty when there is none.
    pub default: &'static str,
    /// What the value counts: "seconds", "bytes", "requests"; empty when nothing.
    pub unit: &'static str,
    pub(super) form: fn() -> String,
    pub(super) check: fn(&str) -> Result<(), Wrong>,
    pub(super) is_default: fn(&str) -> bool,
    pub(super) help: &'static [&'static str],
}

impl Key {
    /// The key of this name; case matters.
    pub fn find(name: &str) -> Option<&'static Key> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// What values the key takes, in words.
    pub fn form(&self) -> String {
        (self.form)()
    }

    /// What the key means, as one paragraph.
    pub fn help(&self) -> String {
        let lines: Vec<&str> = self.help.iter().map(|line| line.trim()).collect();
        lines.join(" ")
    }

    /// Whether `text` says the same as the default does.
    pub fn is_default(&self, text: &str) -> bool {
        (self.is_default)(text)
    }

    /// Reads `text` for its errors only.
    ///
    /// # Errors
    /// [`Wrong`] when the key does not take this value.
    pub fn check(&self, text: &str) -> Result<(), Wrong> {
        (self.check)(text)
    }
}

/// The key whose name is nearest to `name`, when one is near enough to be meant.
pub fn nearest(name: &str) -> Option<&'static Key> {
    let name = name.to_ascii_uppercase();
    KEYS.iter()
        .map(|key| (strsim::damerau_levenshtein(&name, key.name), key))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, key)| *distance <= key.name.len() / 3)
        .map(|(_, key)| key)
}

macro_rules! keys {
    ($(
        $(#[doc = $about:literal])+
        $scope:ident $settings:ident {
            $( $group:literal {
                $(
                    $(#[doc = $help:literal])+
                    $name:literal, $field:ident: $type:ty = $default:literal, $unit:literal, $form:expr;
                )+
            } )+
        }
    )+) => {
        /// Every key, in the order of the manual.
        pub static KEYS: &[Key] = &[$( $( $(
            Key {
                name: $name,
                scope: Scope::$scope,
                group: $group,
                default: $default,
                unit: $unit,
                form: || ($form).describe(),
                check: |text| ($form).parse(text).map(drop),
                is_default: |text| {
                    let given: Result<$type, Wrong> = ($form).parse(text);
                    given.is_ok() && given == ($form).parse($default)
                },
                help: &[$($help),+],
            },
        )+ )+ )+];

        $(
            $(#[doc = $about])+
            #[derive(Debug, Clone, PartialEq, Eq)]
            pub struct $settings {
                $( $(
                    $(#[doc = $help])+
                    pub $field: $type,
                )+ )+
            }

            impl $settings {
                /// Reads every key from the text that `find` has for it, or its default.
                ///
                /// # Errors
                /// The name of a key and what is wrong with its text.
                pub(super) fn read<'a>(
                    find: impl Fn(&'static str) -> Option<&'a str>,
                ) -> Result<$settings, (&'static str, Wrong)> {
                    Ok($settings {
                        $( $(
                            $field: ($form)
                                .parse(find($name).unwrap_or($default))
                                .map_err(|wrong| ($name, wrong))?,
                        )+ )+
                    })
                }
            }
        )+
    };
}

pub(super) use keys;
