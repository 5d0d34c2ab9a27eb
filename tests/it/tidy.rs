//! What the compiler can't keep: floors, lengths, and documents that must stay true.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines that a source file may have.
const LONGEST: usize = 600;

/// The floors of `src/`, from the bottom. A module uses lower floors and itself.
const FLOORS: &[&[&str]] = &[
    &["config", "telemetry"],
    &["admission", "balance", "routing"],
    &["tls", "transport"],
    &["state"],
    &["proxy", "admin"],
    &["lifecycle"],
    &["cli"],
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn rust_files(folder: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    assert!(!files.is_empty(), "no Rust files below {folder}");
    files
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|modules| modules.contains(&module))
}

/// The top-level module that a file of `src/` belongs to.
fn module(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("src")).unwrap();
    inside.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

#[test]
fn every_module_stands_on_a_floor_and_uses_lower_ones_only() {
    let mut problems = Vec::new();
    for path in rust_files("src") {
        let here = module(&path);
        if matches!(here.as_str(), "lib" | "main") {
            continue;
        }
        let own =
            floor(&here).unwrap_or_else(|| panic!("`{here}` has no floor; give it one here and in ARCHITECTURE.md"));
        for (number, line) in read(&path).lines().enumerate() {
            let code = line.trim_start();
            if code.starts_with("//") {
                continue;
            }
            for used in code.split("crate::").skip(1) {
                let used: String = used.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                let allowed = used == here || floor(&used).is_none_or(|floor| floor < own);
                if !allowed {
                    problems.push(format!("{}:{}: `{here}` must not use `{used}`", path.display(), number + 1));
                }
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn no_source_file_is_too_long() {
    let files = rust_files("src").into_iter().chain(rust_files("tests"));
    let long: Vec<_> = files
        .map(|path| (read(&path).lines().count(), path))
        .filter(|(lines, _)| *lines > LONGEST)
        .map(|(lines, path)| format!("{}: {lines} lines", path.display()))
        .collect();
    assert!(long.is_empty(), "over {LONGEST} lines, split along a real seam:\n{}", long.join("\n"));
}

#[test]
fn nothing_sleeps_in_tests_to_wait_for_something() {
    let sleeping: Vec<_> = rust_files("tests")
        .into_iter()
        .filter(|path| !path.ends_with("tidy.rs"))
        .flat_map(|path| {
            let text = read(&path);
            let lines: Vec<_> = text
                .lines()
                .enumerate()
                .filter(|(_, line)| line.contains("sleep(") && !line.contains("deadline"))
                .map(|(number, line)| format!("{}:{}: {}", path.display(), number + 1, line.trim()))
                .collect();
            lines
        })
        .collect();
    assert!(sleeping.is_empty(), "wait for a condition with a deadline instead:\n{}", sleeping.join("\n"));
}

#[test]
fn no_unsafe_code_stands_in_the_daemon() {
    for path in rust_files("src") {
        assert!(!read(&path).lines().any(|line| line.trim_start().starts_with("unsafe ")), "{}", path.display());
    }
}

#[test]
fn the_readme_has_the_table_of_keys_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let made = std::process::Command::new(env!("CARGO_BIN_EXE_doorward"))
        .args(["generate".as_ref(), folder.path().as_os_str()])
        .status()
        .unwrap();
    assert!(made.success());
    let table = read(&folder.path().join("keys.md"));
    let readme = read(&root().join("README.md"));
    let (_, after) = readme.split_once("<!-- keys -->\n").expect("README.md has a place for the keys");
    let (shown, _) = after.split_once("<!-- /keys -->").expect("the place for the keys ends");
    assert_eq!(shown.trim(), table.trim(), "replace the table in README.md by keys.md of `doorward generate`");
}

#[test]
fn the_manual_has_the_table_of_metrics_as_it_is() {
    let table = doorward::lifecycle::metrics_table();
    let manual = read(&root().join("docs/metrics.md"));
    let (_, after) = manual.split_once("<!-- metrics -->\n").expect("docs/metrics.md has a place for the metrics");
    let (shown, _) = after.split_once("<!-- /metrics -->").expect("the place for the metrics ends");
    assert_eq!(shown.trim(), table.trim(), "replace the table there by metrics.md of `doorward generate`");
}

#[test]
fn every_module_that_the_architecture_names_exists() {
    let text = read(&root().join("ARCHITECTURE.md"));
    let mut named = BTreeSet::new();
    for code in text.split('`').skip(1).step_by(2) {
        let mut parts = code.split("::");
        let first = parts.next().unwrap_or_default();
        if floor(first).is_some() && code.contains("::") {
            named.insert(code.to_owned());
        }
    }
    assert!(named.len() > 10, "the architecture names its modules as `module::item`");
    let sources: Vec<_> = rust_files("src").into_iter().map(|path| (module(&path), read(&path))).collect();
    for name in named {
        let (module, item) = name.rsplit_once("::").unwrap();
        let top = module.split("::").next().unwrap();
        let declares = |text: &str| {
            ["mod ", "struct ", "enum ", "fn ", "trait "].iter().any(|kind| {
                text.match_indices(&format!("{kind}{item}"))
                    .any(|(at, found)| !text[at + found.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_'))
            })
        };
        let found = sources.iter().any(|(here, text)| here == top && declares(text));
        assert!(found, "ARCHITECTURE.md names `{name}`, which is not there");
    }
}
