//! Launching: a process that is started like this one, and is nobody's child.
//!
//! It has the program, arguments and environment of this process, and the descriptors that
//! systemd would pass, by their names. Between the two stands one that ends at once, so that
//! the new process is adopted by systemd, which watches no process that is another one's child.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use command_fds::{CommandFdExt as _, FdMapping};

/// The hidden command of doorward that [`launch`] is behind.
pub(super) const COMMAND: &str = "launch";

/// The first passed descriptor, `SD_LISTEN_FDS_START` of `sd_listen_fds(3)`.
const FIRST_DESCRIPTOR: i32 = 3;

/// What the kernel says behind the path of a program whose file was replaced.
const REPLACED: &[u8] = b" (deleted)";

/// A descriptor, and the name to pass it by.
#[derive(Debug)]
pub struct Passing {
    name: String,
    descriptor: OwnedFd,
}

impl Passing {
    pub(in crate::lifecycle) fn new(name: &str, descriptor: impl Into<OwnedFd>) -> Passing {
        Passing { name: name.to_owned(), descriptor: descriptor.into() }
    }

    pub(super) fn try_clone(&self) -> io::Result<Passing> {
        Ok(Passing { name: self.name.clone(), descriptor: self.descriptor.try_clone()? })
    }
}

/// How this process was started.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    name: OsString,
    arguments: Vec<OsString>,
}

impl Program {
    /// Call it at the start: later on the file may have been replaced.
    ///
    /// # Errors
    /// `/proc` can't be read.
    pub(in crate::lifecycle) fn here() -> io::Result<Program> {
        let mut path = std::env::current_exe()?.into_os_string().into_vec();
        if path.ends_with(REPLACED) {
            path.truncate(path.len() - REPLACED.len());
        }
        let path = PathBuf::from(OsString::from_vec(path));
        let mut arguments = std::env::args_os();
        let name = arguments.next().unwrap_or_else(|| path.clone().into_os_string());
        Ok(Program { path, name, arguments: arguments.collect() })
    }

    /// The file, which may be another one by now.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Starts it, and passes these descriptors. Blocks until it is on its own.
    ///
    /// # Errors
    /// One sentence: the file can't be executed, or does not know how to.
    pub(super) fn launch(&self, passing: Vec<Passing>) -> Result<(), String> {
        let explain = |error: &dyn std::fmt::Display| format!("{} can't be started: {error}", self.path.display());
        let names: Vec<&str> = passing.iter().map(|each| each.name.as_str()).collect();
        let mut command = Command::new(&self.path);
        // It must be its own, and is set by nobody who could know it; without it the descriptors
        // are for whoever has them, and so is the watchdog.
        command.env_remove("LISTEN_PID").env_remove("WATCHDOG_PID");
        command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        command.arg0(&self.name).arg(COMMAND).arg("--").arg(&self.name).args(&self.arguments).stdin(Stdio::null());
        let descriptors = passing.into_iter().map(|each| each.descriptor);
        let mapping = |(child_fd, parent_fd)| FdMapping { parent_fd, child_fd };
        command
            .fd_mappings((FIRST_DESCRIPTOR..).zip(descriptors).map(mapping).collect())
            .map_err(|error| explain(&error))?;
        let status = command.status().map_err(|error| explain(&error))?;
        if status.success() { Ok(()) } else { Err(explain(&format!("it ended with {status}"))) }
    }
}

/// `doorward launch -- NAME ARGUMENTS`: starts this program anew with these, and ends.
///
/// The process that it starts is adopted by systemd (or whoever else adopts orphans) as this one
/// ends. Everything else it has from this one: descriptors, environment, folder.
pub fn launch(words: &[OsString]) -> ExitCode {
    let Some((name, arguments)) = words.split_first() else {
        return super::super::complain("there is nothing to launch");
    };
    let started = std::env::current_exe().and_then(|program| Command::new(program).arg0(name).args(arguments).spawn());
    match started {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => super::super::complain(&format!("can't launch: {error}")),
    }
}
