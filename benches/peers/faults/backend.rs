//! A backend that is a process of its own, so that it can be killed and stopped, and that
//! goes wrong when it is told to.

use std::cell::RefCell;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::process::signal;

/// How long an answer takes that is not slow: some requests are always under way.
const USUAL: Duration = Duration::from_millis(2);

/// How long an answer of a slow backend takes.
const SLOW: Duration = Duration::from_millis(500);

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Connections that fill the backlog of a backend which has gone: it takes one or two.
const FILLING: usize = 4;

/// The answer to everything.
pub const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 12\r\n\r\nstill there\n";

/// How a backend does, by the words it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It answers soon.
    Well,
    /// It resets each connection on which something is asked.
    Resets,
    /// It answers late.
    Slow,
    /// It is cut off: nothing is accepted, nothing answered, nothing ended.
    Gone,
}

impl Mode {
    const ALL: [(&'static str, Mode); 4] =
        [("well", Mode::Well), ("resets", Mode::Resets), ("slow", Mode::Slow), ("gone", Mode::Gone)];

    fn word(self) -> &'static str {
        Mode::ALL.iter().find(|(_, mode)| *mode == self).map_or("", |(word, _)| word)
    }
}

/// A backend's process, and the address that it keeps when it is started anew.
pub struct Process {
    child: Child,
    address: SocketAddr,
}

impl Process {
    /// Starts one at a port of the kernel's choice.
    ///
    /// # Errors
    /// When no process can be started.
    pub fn start() -> Result<Process> {
        let address = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let process = Process { child: Process::spawn(address)?, address };
        process.wait()?;
        Ok(process)
    }

    fn spawn(address: SocketAddr) -> Result<Child> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(std::env::current_exe()?);
        command.args(["backend", &address.to_string()]).stdin(Stdio::piped());
        command.spawn().context("setpriv can't be run")
    }

    fn wait(&self) -> Result<()> {
        for _ in 0..500 {
            if std::net::TcpStream::connect(self.address).is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("a backend does not listen");
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Tells it how to do from now on.
    ///
    /// # Errors
    /// When it is gone.
    pub fn tell(&mut self, mode: Mode) -> Result<()> {
        let words = self.child.stdin.as_mut().context("a backend has ended")?;
        Ok(writeln!(words, "{}", mode.word())?)
    }

    /// Sends it a signal.
    pub fn signal(&self, with: Signal) {
        signal(self.child.id(), with);
    }

    /// Kills it.
    ///
    /// # Errors
    /// When it can't be waited for.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts it anew at its old address.
    ///
    /// # Errors
    /// When no process can be started.
    pub fn revive(&mut self) -> Result<()> {
        self.child = Process::spawn(self.address)?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be killed already.
        let _ = self.kill();
    }
}

/// Serves until the process is killed, or nobody is left to tell it anything.
///
/// # Errors
/// When the address can't be listened on.
pub fn serve(address: SocketAddr) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, listen(address))
}

async fn listen(address: SocketAddr) -> Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let listener = Rc::new(TcpListener::from_std(socket.into())?);
    let (told, mut mode) = watch::channel(Mode::Well);
    tokio::task::spawn_local(accept(Rc::clone(&listener), mode.clone()));
    let filling = Rc::new(RefCell::new(Vec::new()));
    let mut words = BufReader::new(tokio::io::stdin()).lines();
    loop {
        tokio::select! {
            word = words.next_line() => {
                let Some(word) = word? else { return Ok(()) };
                let known = Mode::ALL.iter().find(|(known, _)| *known == word);
                told.send_replace(known.context("an unknown word")?.1);
            }
            changed = mode.changed() => {
                changed?;
                let now = *mode.borrow_and_update();
                let backlog = if now == Mode::Gone { 0 } else { BACKLOG };
                rustix::net::listen(&*listener, backlog)?;
                filling.borrow_mut().clear();
                if now == Mode::Gone {
                    filling.borrow_mut().extend((0..FILLING).filter_map(|_| fill(address).ok()));
                }
            }
        }
    }
}

/// A connection that nobody accepts.
fn fill(address: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    // It is under way, which is all that is wanted.
    let _ = socket.connect(&address.into());
    Ok(socket)
}

async fn accept(listener: Rc<TcpListener>, mut mode: watch::Receiver<Mode>) {
    loop {
        if mode.wait_for(|mode| *mode != Mode::Gone).await.is_err() {
            return;
        }
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                tokio::task::spawn_local(answer(stream, mode.clone()));
            },
            _ = mode.changed() => {}
        }
    }
}

async fn answer(mut stream: TcpStream, mut mode: watch::Receiver<Mode>) {
    let mut head = Vec::new();
    loop {
        head.clear();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_buf(&mut head).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return,
            }
        }
        let now = *mode.borrow();
        match now {
            Mode::Well => tokio::time::sleep(USUAL).await,
            Mode::Slow => tokio::time::sleep(SLOW).await,
            Mode::Resets => {
                // What can't be reset is closed.
                let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                return;
            }
            Mode::Gone => {
                // Whoever comes back after that knows nothing of its connections.
                let _ = mode.wait_for(|mode| *mode != Mode::Gone).await;
                return;
            }
        }
        if stream.write_all(ANSWER).await.is_err() {
            return;
        }
    }
}
