//! TLS of the load: rustls without a look at the certificate, since it is the proxies that
//! are measured.
//!
//! All offer X25519 alone, which every contender speaks: what a hybrid key exchange costs
//! beside one without says nothing of either.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::Result;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConnection, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group::X25519};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, HandshakeKind, SignatureScheme};

/// The name that certificates are for.
pub const NAME: &str = "bench.example";

/// How connections are secured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Secure {
    /// By a handshake of their own.
    Full,
    /// By a ticket of an earlier one.
    Resumed,
}

impl Secure {
    /// A client's side, which asks for HTTP/2 or says nothing of it; one that resumes must be
    /// used again for the same proxy.
    ///
    /// # Errors
    /// When the library lacks something.
    pub fn config(self, http2: bool) -> Result<Arc<ClientConfig>> {
        let provider = Arc::new(CryptoProvider { kx_groups: vec![X25519], ..default_provider() });
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Credulous))
            .with_no_client_auth();
        if http2 {
            config.alpn_protocols = vec![b"h2".to_vec()];
        }
        if self == Secure::Full {
            config.resumption = Resumption::disabled();
        }
        Ok(Arc::new(config))
    }
}

/// One connection.
pub struct Tls {
    connection: ClientConnection,
}

impl Tls {
    /// Whose handshake is to come.
    ///
    /// # Errors
    /// When the library lacks something.
    pub fn new(config: &Arc<ClientConfig>) -> Result<Tls> {
        let connection = ClientConnection::new(Arc::clone(config), ServerName::try_from(NAME)?)?;
        Ok(Tls { connection })
    }

    /// Whether its handshake, which is over, was of this kind.
    pub fn is(&self, secure: Secure) -> bool {
        (self.connection.handshake_kind() == Some(HandshakeKind::Resumed)) == (secure == Secure::Resumed)
    }

    /// Sends plain bytes, and what else is to be sent.
    ///
    /// # Errors
    /// Of the socket.
    pub fn send(&mut self, fd: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
        self.connection.writer().write_all(bytes)?;
        self.flush(fd)
    }

    /// Sends what there is room for.
    ///
    /// # Errors
    /// Of the socket.
    pub fn flush(&mut self, fd: &OwnedFd) -> io::Result<()> {
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut Socket(fd)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads plain bytes; 0 at the end, and an error of the kind `WouldBlock` when there are
    /// none.
    ///
    /// # Errors
    /// Of the socket or of TLS.
    pub fn read(&mut self, fd: &OwnedFd, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.connection.reader().read(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
            if self.connection.read_tls(&mut Socket(fd))? == 0 {
                return Ok(0);
            }
            self.connection.process_new_packets().map_err(io::Error::other)?;
            self.flush(fd)?;
        }
    }
}

struct Socket<'a>(&'a OwnedFd);

impl Read for Socket<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self.0, into, RecvFlags::empty())?.0)
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(self.0, bytes, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes every certificate.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
