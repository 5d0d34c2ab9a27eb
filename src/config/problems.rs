//! What is wrong with a configuration, and where a setting came from.
//!
//! A problem prints as `path:line: message`, the line, and a caret under the part
//! at fault. All problems are printed together: mending one at a time is a poor
//! way to spend a night. The text has no colour, so that it reads the same on a
//! terminal, in the journal and in the answer to a reload.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::key::Key;

/// Longest excerpt of a line in characters; a longer line is shown in part.
const EXCERPT_LIMIT: usize = 120;

/// Where a setting came from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The process environment.
    Environment,
    /// A file as a whole.
    File(Arc<Path>),
    /// A line of a file, counted from 1.
    Line(Arc<Path>, usize),
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => out.write_str("default"),
            Origin::Environment => out.write_str("environment"),
            Origin::File(path) => write!(out, "{}", path.display()),
            Origin::Line(path, line) => write!(out, "{}:{line}", path.display()),
        }
    }
}

/// A key that was set, by whom, and to what.
#[derive(Clone)]
pub struct Setting {
    /// The key.
    pub key: &'static Key,
    /// The text of its value.
    pub text: String,
    /// Who set it.
    pub origin: Origin,
    /// The line as it stands in the file; `KEY=value` for the environment.
    pub(super) line: String,
}

impl Setting {
    /// A problem with this setting's value, or with `part` of it.
    pub fn problem(&self, message: String, part: Option<&str>) -> Problem {
        let from = self.line.find('=').map_or(0, |equal| equal + 1);
        let value = self.line.get(from..).unwrap_or_default();
        let part = part.filter(|part| !part.is_empty()).unwrap_or(&self.text);
        let range = match value.find(part).filter(|_| !part.is_empty()) {
            Some(at) => from + at..from + at + part.len(),
            None => {
                let lead = value.len() - value.trim_start().len();
                from + lead..from + value.trim_end().len().max(lead)
            }
        };
        Problem::new(self.origin.clone(), format!("`{}`: {message}", self.key.name)).with_excerpt(&self.line, range)
    }
}

impl fmt::Debug for Setting {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}={} ({})", self.key.name, self.text, self.origin)
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub origin: Origin,
    /// What, in one line.
    pub message: String,
    /// The line and what lies under it.
    excerpt: Option<(String, String)>,
}

impl Problem {
    /// A problem that shows no line.
    pub fn new(origin: Origin, message: impl Into<String>) -> Problem {
        let message: String = message.into();
        Problem { origin, message: message.chars().map(tame).collect(), excerpt: None }
    }

    /// Shows `line` with a caret under `range` (bytes).
    pub(super) fn with_excerpt(mut self, line: &str, range: Range<usize>) -> Problem {
        let before = line.get(..range.start).unwrap_or_default().chars().count();
        let width = line.get(range).unwrap_or_default().chars().count().max(1);
        let skip = if line.chars().count() > EXCERPT_LIMIT { before.saturating_sub(EXCERPT_LIMIT / 4) } else { 0 };
        let shown: Vec<char> = line.chars().skip(skip).take(EXCERPT_LIMIT).map(tame).collect();
        let before = before - skip;
        let width = width.min(shown.len().saturating_sub(before).max(1));
        let mut marks: String = shown.iter().take(before).map(|c| if *c == '\t' { '\t' } else { ' ' }).collect();
        marks.push('^');
        marks.extend(std::iter::repeat_n('~', width - 1));
        self.excerpt = Some((shown.into_iter().collect::<String>().trim_end().to_owned(), marks));
        self
    }
}

/// A character that is safe to print and as wide as any.
fn tame(c: char) -> char {
    if c == '\t' || !c.is_control() { c } else { '\u{fffd}' }
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.origin, self.message)?;
        if let Some((line, marks)) = &self.excerpt {
            write!(out, "\n    {line}\n    {marks}")?;
        }
        Ok(())
    }
}

/// Everything that is wrong with a configuration, in the order of its files.
///
/// `Display` gives the whole report: each problem, and a last line that counts
/// them, without a final line break, so that a caller may add an outcome to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, thiserror::Error)]
pub struct Problems {
    list: Vec<Problem>,
}

impl Problems {
    /// Adds one.
    pub fn push(&mut self, problem: Problem) {
        self.list.push(problem);
    }

    /// Both outcomes, or the problems of both.
    ///
    /// # Errors
    /// Every problem of either.
    pub fn join<A, B>(one: Result<A, Problems>, other: Result<B, Problems>) -> Result<(A, B), Problems> {
        match (one, other) {
            (Ok(one), Ok(other)) => Ok((one, other)),
            (Err(mut problems), Err(more)) => {
                problems.list.extend(more.list);
                Err(problems)
            }
            (Err(problems), Ok(_)) | (Ok(_), Err(problems)) => Err(problems),
        }
    }

    /// Puts those from `start` on into the order of their lines.
    pub(super) fn sort_from(&mut self, start: usize) {
        if let Some(tail) = self.list.get_mut(start..) {
            tail.sort_by(|a, b| a.origin.cmp(&b.origin));
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.list.iter()
    }

    /// The report, its last line ended by what came of it:
    /// "2 problems in 1 file; still serving generation 7".
    pub fn report(&self, outcome: &str) -> String {
        format!("{self}; {outcome}")
    }

    fn summary(&self) -> String {
        let many = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
        let files: BTreeSet<&Path> = self
            .list
            .iter()
            .filter_map(|problem| match &problem.origin {
                Origin::File(path) | Origin::Line(path, _) => Some(&**path),
                Origin::Default | Origin::Environment => None,
            })
            .collect();
        let environment = self.list.iter().any(|problem| problem.origin == Origin::Environment);
        let mut places = Vec::new();
        if !files.is_empty() {
            places.push(many(files.len(), "file"));
        }
        if environment {
            places.push("the environment".to_owned());
        }
        let count = many(self.list.len(), "problem");
        if places.is_empty() { count } else { format!("{count} in {}", places.join(" and ")) }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.list {
            writeln!(out, "{problem}")?;
        }
        out.write_str(&self.summary())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(number: usize) -> Origin {
        Origin::Line(Path::new("/etc/a.env").into(), number)
    }

    #[test]
    fn a_problem_shows_its_line_and_points_at_the_fault() {
        let problem = Problem::new(line(4), "unknown key `CONECT_TIMEOUT`").with_excerpt("CONECT_TIMEOUT=3s", 0..14);
        assert_eq!(
            problem.to_string(),
            "/etc/a.env:4: unknown key `CONECT_TIMEOUT`\n    CONECT_TIMEOUT=3s\n    ^~~~~~~~~~~~~~"
        );
    }

    #[test]
    fn the_caret_stands_right_after_tabs_and_wide_letters() {
        let problem = Problem::new(line(1), "x").with_excerpt("\tä=b", 4..5);
        assert_eq!(problem.to_string(), "/etc/a.env:1: x\n    \tä=b\n    \t  ^");
    }

    #[test]
    fn nothing_in_a_file_drives_the_terminal() {
        let problem = Problem::new(line(1), "a\x1b[2Jb\nc").with_excerpt("a\x1bb", 1..2);
        assert!(!problem.to_string().contains('\x1b'));
        assert_eq!(problem.to_string().lines().count(), 3);
    }

    #[test]
    fn a_long_line_is_shown_around_the_fault() {
        let long = format!("A={}!{}", "x".repeat(500), "y".repeat(500));
        let shown = Problem::new(line(1), "x").with_excerpt(&long, 502..503).to_string();
        let lines: Vec<&str> = shown.lines().collect();
        let caret = lines[2].find('^').unwrap();
        assert_eq!(&lines[1][caret..=caret], "!");
        assert_eq!(lines[1].len(), 4 + EXCERPT_LIMIT);
    }

    #[test]
    fn the_summary_counts_files_and_the_environment() {
        let mut problems = Problems::default();
        problems.push(Problem::new(Origin::Environment, "a"));
        assert_eq!(problems.to_string(), "environment: a\n1 problem in the environment");
        problems.push(Problem::new(line(1), "b"));
        problems.push(Problem::new(line(2), "c"));
        assert!(
            problems
                .report("still serving generation 7")
                .ends_with("\n3 problems in 1 file and the environment; still serving generation 7")
        );
    }
}
