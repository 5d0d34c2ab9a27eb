//! Where the inputs come from: the fuzzer's corpus, and the tables of ambiguous messages.

use std::fs;
use std::path::Path;

use super::case::{Case, table};

/// An input and where it came from.
pub struct Input {
    /// To find it again.
    pub name: String,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// The committed corpus of a target of the fuzzer.
pub fn corpus(target: &str) -> Vec<Input> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut inputs: Vec<_> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            Input { name: path.display().to_string(), bytes: fs::read(&path).unwrap() }
        })
        .collect();
    inputs.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(inputs.len() >= 24, "only {} files in {}", inputs.len(), folder.display());
    inputs
}

/// What clients send in the tables.
pub fn clients() -> Vec<Input> {
    rows(&["framing", "lines", "fields", "chunks", "pipelines"], |case| case.sends)
}

/// What backends answer there.
pub fn backends() -> Vec<Input> {
    rows(&["responses"], |case| case.backend_sends.into_iter().next().unwrap_or_default())
}

fn rows(tables: &[&str], part: impl Fn(Case) -> Vec<u8>) -> Vec<Input> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/traffic/smuggling");
    let mut inputs = Vec::new();
    for name in tables {
        let text = fs::read_to_string(folder.join(format!("{name}.cases"))).unwrap();
        for case in table(&text) {
            inputs.push(Input { name: format!("{name}.cases:{}: {}", case.line, case.name), bytes: part(case) });
        }
    }
    inputs.retain(|input| !input.bytes.is_empty() && input.bytes.len() <= 6000);
    inputs
}

/// The same with a byte before, which chooses what is done with it: another one for each
/// input.
pub fn behind_a_choice(inputs: Vec<Input>) -> Vec<Input> {
    let choices = (0..=255_u8).map(|at| at.wrapping_mul(37)).cycle();
    let chosen = |(input, choice): (Input, u8)| Input {
        bytes: [&[choice], input.bytes.as_slice()].concat(),
        name: format!("{} (choice {choice})", input.name),
    };
    inputs.into_iter().zip(choices).map(chosen).collect()
}

/// Runs a check on an input; says which one it was when it fails.
pub fn blame<T>(input: &Input, what: &str, check: impl FnOnce() -> T) -> T {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check));
    outcome.unwrap_or_else(|panic| {
        let bytes = String::from_utf8_lossy(&input.bytes).into_owned();
        println!("{}, {what}:\n{}", input.name, bytes.escape_debug());
        std::panic::resume_unwind(panic)
    })
}
