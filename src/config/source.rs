//! Files: from a path to entries with line numbers.
//!
//! dotenvy reads the syntax but tells no line numbers and stops a value's search
//! for its closing quote only at the file's end. So it is fed one line at a time:
//! what has been taken tells where an entry ends, and setting the position back
//! lets the reading go on behind a fault. Its `$NAME` and `${NAME}` are replaced
//! by the process environment's value, else by an earlier one of the same file.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use super::problems::{Origin, Problem, Problems};

/// Largest size of one file in bytes (1 MiB).
pub const FILE_LIMIT: u64 = 1 << 20;

/// Problems of one file after which the rest of it is not examined.
const PROBLEM_LIMIT: usize = 100;

/// One `KEY=value` of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) value: String,
    /// Counted from 1.
    pub(super) line: usize,
    /// The line as it stands.
    pub(super) text: String,
}

/// Why a file can't be read, in one clause.
pub fn reason(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "no such file".to_owned(),
        ErrorKind::PermissionDenied => "permission denied".to_owned(),
        ErrorKind::NotADirectory => "not a directory".to_owned(),
        _ => error.to_string(),
    }
}

/// Reads a whole file.
///
/// A directory, a pipe or a device (but for `/dev/null`) is refused, so that no
/// start or reload waits for one; so is what is larger than [`FILE_LIMIT`].
///
/// # Errors
/// That, or what the system says; [`reason`] has the words for both.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let kind = std::fs::metadata(path)?;
    if kind.is_dir() {
        return Err(io::Error::other("is a directory, not a file"));
    }
    if !kind.is_file() && path.canonicalize()? != Path::new("/dev/null") {
        return Err(io::Error::other("is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_LIMIT {
        return Err(io::Error::other(format!("is larger than {} KiB", FILE_LIMIT / 1024)));
    }
    Ok(bytes)
}

/// The entries of a file in their order; what is no entry becomes a problem.
pub(super) fn entries(path: &Arc<Path>, bytes: &[u8], problems: &mut Problems) -> Vec<Entry> {
    let before = problems.len();
    let entries = examine(path, bytes, problems);
    problems.sort_from(before);
    entries
}

fn examine(path: &Arc<Path>, bytes: &[u8], problems: &mut Problems) -> Vec<Entry> {
    let before = problems.len();
    let text = Text::new(path, bytes, problems);
    let position = Rc::new(Cell::new(0));
    let mut items = dotenvy::Iter::new(Lines { bytes: text.all.as_bytes(), position: Rc::clone(&position) });
    let mut entries: Vec<Entry> = Vec::new();
    loop {
        let first = text.first_line_from(position.get());
        let Some(item) = items.next() else {
            return entries;
        };
        let line = text.line(first);
        let origin = Origin::Line(Arc::clone(path), first + 1);
        let several = position.get() > text.end(first);
        let problem = match item {
            // No key takes a value of several lines, so the quote is at fault.
            _ if several => Problem::new(origin, "a quote is opened here and not closed")
                .with_excerpt(line, quote(line)..quote(line) + 1),
            Ok((key, value)) if value.chars().any(char::is_control) => {
                Problem::new(origin, format!("control character in the value of `{key}`"))
                    .with_excerpt(line, 0..line.len())
            }
            Ok((key, value)) => match entries.iter().find(|entry| entry.key == key) {
                Some(earlier) => {
                    Problem::new(origin, format!("`{key}` is set twice; the first is in line {}", earlier.line))
                        .with_excerpt(line, at_key(line, &key))
                }
                None => {
                    entries.push(Entry { key, value, line: first + 1, text: line.to_owned() });
                    continue;
                }
            },
            Err(error) => syntax(origin, line, &error),
        };
        problems.push(problem);
        if problems.len() - before >= PROBLEM_LIMIT {
            let origin = Origin::Line(Arc::clone(path), first + 2);
            problems.push(Problem::new(origin, "what follows was not examined"));
            return entries;
        }
        position.set(text.end(first));
    }
}

/// Where `key` stands in its line.
pub(super) fn at_key(line: &str, key: &str) -> std::ops::Range<usize> {
    let start = line.find('=').and_then(|equal| line.get(..equal)).and_then(|before| before.rfind(key)).unwrap_or(0);
    start..start + key.len()
}

fn quote(line: &str) -> usize {
    line.find(['"', '\'']).unwrap_or(0)
}

/// What dotenvy means by "error at line index".
fn syntax(origin: Origin, line: &str, error: &dotenvy::Error) -> Problem {
    let dotenvy::Error::LineParse(text, index) = error else {
        return Problem::new(origin, error.to_string());
    };
    // A fault in the value comes with the value alone, and counts characters.
    let value = line.find(text.as_str()).filter(|at| *at > 0 && line.get(..*at).is_some_and(|key| key.contains('=')));
    let Some(value_at) = value else {
        return Problem::new(origin, "expected `KEY=value`").with_excerpt(line, 0..line.len());
    };
    let (offset, fault) = text.char_indices().nth(*index).unwrap_or((text.len().saturating_sub(1), ' '));
    let escaped = text.get(..offset).is_some_and(|before| before.ends_with('\\'));
    let blank = text.get(..offset).is_some_and(|before| before.ends_with([' ', '\t']));
    let start = value_at + offset;
    if escaped {
        let message = format!("unknown escape `\\{fault}`; there are `\\\\`, `\\'`, `\\\"`, `\\$`, `\\ ` and `\\n`");
        Problem::new(origin, message).with_excerpt(line, start - 1..start + fault.len_utf8())
    } else if blank {
        Problem::new(origin, "a value with blanks needs quotes around it")
            .with_excerpt(line, value_at..line.trim_end().len())
    } else {
        Problem::new(origin, "a quote or `${` is opened here and not closed")
            .with_excerpt(line, value_at..line.trim_end().len())
    }
}

/// A file's text and where its lines begin.
struct Text {
    /// Ends with a line break: dotenvy takes blanks at the very end for a fault.
    all: String,
    starts: Vec<usize>,
}

impl Text {
    /// Lines that are no text become problems, and empty.
    fn new(path: &Arc<Path>, bytes: &[u8], problems: &mut Problems) -> Text {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let mut all = String::with_capacity(bytes.len() + 1);
        let mut starts = Vec::new();
        let mut faults = 0;
        for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            starts.push(all.len());
            let fault = match std::str::from_utf8(line) {
                Ok(line) if !line.contains('\0') => {
                    all.push_str(line);
                    None
                }
                Ok(_) => Some("a NUL byte"),
                Err(_) => Some("bytes that are not UTF-8"),
            };
            all.push('\n');
            if let Some(fault) = fault {
                faults += 1;
                if faults < PROBLEM_LIMIT {
                    let shown = String::from_utf8_lossy(line);
                    let origin = Origin::Line(Arc::clone(path), index + 1);
                    problems.push(Problem::new(origin, fault).with_excerpt(&shown, 0..shown.len()));
                }
            }
        }
        Text { all, starts }
    }

    /// The text of a line, without its break.
    fn line(&self, index: usize) -> &str {
        let start = self.starts.get(index).copied().unwrap_or(self.all.len());
        self.all.get(start..self.end(index)).unwrap_or_default().trim_end_matches(['\r', '\n'])
    }

    /// Where the line after this one begins.
    fn end(&self, index: usize) -> usize {
        self.starts.get(index + 1).copied().unwrap_or(self.all.len())
    }

    /// The first line at or behind `position` that may hold an entry.
    fn first_line_from(&self, position: usize) -> usize {
        let mut index = self.starts.partition_point(|start| *start < position);
        while index < self.starts.len() {
            let line = self.line(index).trim();
            if !line.is_empty() && !line.starts_with('#') {
                break;
            }
            index += 1;
        }
        index
    }
}

/// Gives at most one line at a time, so that a reader above holds no more than it took.
struct Lines<'a> {
    bytes: &'a [u8],
    position: Rc<Cell<usize>>,
}

impl Read for Lines<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let rest = self.bytes.get(self.position.get()..).unwrap_or_default();
        let line = memchr::memchr(b'\n', rest).map_or(rest.len(), |end| end + 1);
        let count = line.min(out.len());
        if let (Some(to), Some(from)) = (out.get_mut(..count), rest.get(..count)) {
            to.copy_from_slice(from);
        }
        self.position.set(self.position.get() + count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(text: &[u8]) -> (Vec<(String, String, usize)>, Vec<String>) {
        let mut problems = Problems::default();
        let path: Arc<Path> = Path::new("a.env").into();
        let entries =
            entries(&path, text, &mut problems).into_iter().map(|entry| (entry.key, entry.value, entry.line)).collect();
        (entries, problems.iter().map(Problem::to_string).collect())
    }

    fn entry(key: &str, value: &str, line: usize) -> (String, String, usize) {
        (key.to_owned(), value.to_owned(), line)
    }

    #[test]
    fn entries_carry_their_line_numbers() {
        let (entries, problems) = read_all(
            b"\xef\xbb\xbf# comment\n\nA=1\n   \n  # it's\nexport B = 'x y' # no \"comment\r\n\nC=\nD=$A-${A}\r\nE=z ",
        );
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(
            entries,
            [entry("A", "1", 3), entry("B", "x y", 6), entry("C", "", 8), entry("D", "1-1", 9), entry("E", "z", 10),]
        );
    }

    #[test]
    fn a_line_longer_than_any_buffer_counts_as_one() {
        let long = "x".repeat(20_000);
        let (entries, problems) = read_all(format!("A={long}\nB=1\n").as_bytes());
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(entries, [entry("A", &long, 1), entry("B", "1", 2)]);
    }

    #[test]
    fn every_fault_of_a_file_is_found() {
        let (entries, problems) =
            read_all(b"A=\"x\nB=2\nhello\nC=a b\n=D\nE=h\\8\nF=${A\nG=3\nB=4\nH=\xff\nI=\0\nJ='\nK=5");
        assert_eq!(entries, [entry("B", "2", 2), entry("G", "3", 8), entry("K", "5", 13)]);
        assert_eq!(
            problems,
            [
                "a.env:1: a quote is opened here and not closed\n    A=\"x\n      ^",
                "a.env:3: expected `KEY=value`\n    hello\n    ^~~~~",
                "a.env:4: a value with blanks needs quotes around it\n    C=a b\n      ^~~",
                "a.env:5: expected `KEY=value`\n    =D\n    ^~",
                "a.env:6: unknown escape `\\8`; there are `\\\\`, `\\'`, `\\\"`, `\\$`, `\\ ` and `\\n`\n    E=h\\8\n       ^~",
                "a.env:7: a quote or `${` is opened here and not closed\n    F=${A\n      ^~~",
                "a.env:9: `B` is set twice; the first is in line 2\n    B=4\n    ^",
                "a.env:10: bytes that are not UTF-8\n    H=\u{fffd}\n    ^~~",
                "a.env:11: a NUL byte\n    I=\u{fffd}\n    ^~~",
                "a.env:12: a quote is opened here and not closed\n    J='\n      ^",
            ]
        );
    }

    #[test]
    fn a_quote_that_another_line_closes_swallows_nothing() {
        let (entries, problems) = read_all(b"A=\"x\nB=2\nC=y\"\nD=4\n");
        assert_eq!(entries, [entry("B", "2", 2), entry("D", "4", 4)]);
        assert_eq!(problems.len(), 2, "{problems:?}");
    }

    #[test]
    fn a_file_of_faults_ends_the_examination() {
        let (_, problems) = read_all("\"\n".repeat(50_000).as_bytes());
        assert_eq!(problems.len(), PROBLEM_LIMIT + 1);
        let (_, problems) = read_all(&[0xff, b'\n'].repeat(50_000));
        assert_eq!(problems.len(), PROBLEM_LIMIT - 1);
    }

    #[test]
    fn no_bytes_at_all_make_it_panic() {
        let alphabet = b"A='\"\\$ {}#\n\r\t\0\xc3\xa4B";
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..20_000 {
            let length = random.usize(0..24);
            let text: Vec<u8> = (0..length).map(|_| alphabet[random.usize(0..alphabet.len())]).collect();
            read_all(&text);
        }
    }

    #[test]
    fn only_files_of_a_sane_size_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let said = |path: &Path| reason(&read(path).unwrap_err());
        assert_eq!(said(folder.path()), "is a directory, not a file");
        assert_eq!(said(&folder.path().join("none")), "no such file");
        assert_eq!(said(Path::new("/dev/zero")), "is not a regular file");
        assert_eq!(read(Path::new("/dev/null")).unwrap(), b"");
        let large = folder.path().join("large");
        std::fs::write(&large, vec![b'#'; FILE_LIMIT as usize]).unwrap();
        assert_eq!(read(&large).unwrap().len() as u64, FILE_LIMIT);
        std::fs::write(&large, vec![b'#'; FILE_LIMIT as usize + 1]).unwrap();
        assert_eq!(said(&large), "is larger than 1024 KiB");
    }
}
