//! Agent: how an ACME server is spoken to, over HTTPS.
//!
//! The library for the protocol leaves open how long a request may take and how large an
//! answer may be, and passes no `Retry-After` on; here is all three.

use std::error::Error as StdError;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;

use crate::tls;

/// How long connecting may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// How long a request may take, its answer included.
const PATIENCE: Duration = Duration::from_secs(30);

/// Largest answer in bytes; a chain of certificates has a few thousand.
const ANSWER_LIMIT: usize = 1 << 20;

/// Who asks: RFC 8555 §6.1 wants servers to know.
const NAME: &str = concat!("doorward/", env!("CARGO_PKG_VERSION"));

/// Speaks to one server. Clones see the same [`Agent::asked`].
#[derive(Clone)]
pub struct Agent {
    client: Client<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>,
    asked: Arc<Mutex<Option<Duration>>>,
}

impl Agent {
    /// An agent that verifies the server by the certificates in `ca`, or as this host does.
    /// Reads files, so it blocks.
    ///
    /// # Errors
    /// There is nothing to verify a server by.
    pub fn new(ca: Option<&Path>) -> Result<Agent, String> {
        let roots = roots(ca)?;
        let config = ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_PATIENCE));
        connector.enforce_http(false);
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http1().wrap_connector(connector);
        Ok(Agent { client: Client::builder(TokioExecutor::new()).build(connector), asked: Arc::default() })
    }

    /// How long the server wanted to be left alone, when it last refused something.
    pub fn asked(&self) -> Option<Duration> {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let Some(path) = ca else {
        let native = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(native.certs);
        if roots.is_empty() {
            return Err("this host has no certificates to verify servers by (package ca-certificates)".to_owned());
        }
        return Ok(roots);
    };
    let wrong = |what: String| format!("{} {what}", path.display());
    let bytes = crate::config::read(path)
        .map_err(|error| wrong(format!("can't be read: {}", crate::config::reason(&error))))?;
    tls::acme::roots(&bytes).map_err(wrong)
}

impl HttpClient for Agent {
    fn request(
        &self,
        mut request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(NAME));
        let uri = request.uri().clone();
        let asked = Arc::clone(&self.asked);
        let answer = self.client.request(request);
        Box::pin(async move {
            let whole = async {
                let answer = answer.await.map_err(|error| other(&error))?;
                let (parts, body) = answer.into_parts();
                let body = Limited::new(body, ANSWER_LIMIT).collect().await.map_err(|error| other(&*error))?;
                Ok::<_, Error>((parts, body.to_bytes()))
            };
            let (parts, body) = timeout(PATIENCE, whole)
                .await
                .unwrap_or_else(|_| Err(text(format!("no answer within {} s", PATIENCE.as_secs()))))
                .map_err(|error| text(format!("{uri}: {error}")))?;
            if refuses(parts.status) {
                let wait = parts.headers.get(RETRY_AFTER).and_then(|value| pause(value, SystemTime::now()));
                *asked.lock().unwrap_or_else(PoisonError::into_inner) = wait;
                // Only a problem says what is wrong; what else there is would be taken for one.
                let kind = parts.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
                if !kind.starts_with("application/problem+json") {
                    return Err(text(format!("{uri}: the server answers {}", parts.status)));
                }
            }
            Ok(BytesResponse { parts, body: Box::new(body) })
        })
    }
}

fn refuses(status: StatusCode) -> bool {
    status.is_client_error() || status.is_server_error()
}

/// How long a `Retry-After` says to wait.
///
/// Source: RFC 9110 §10.2.3.
fn pause(value: &HeaderValue, now: SystemTime) -> Option<Duration> {
    let value = value.to_str().ok()?.trim();
    match value.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(now).ok(),
    }
}

fn text(message: String) -> Error {
    Error::Other(message.into())
}

/// An error with all that led to it, since the outermost says only "client error".
fn other(error: &(dyn StdError + 'static)) -> Error {
    text(chain(error))
}

/// What an error says, and what those say that led to it.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let said = error.to_string();
        // Some repeat what they wrap.
        if !message.contains(&said) {
            message = format!("{message}: {said}");
        }
        source = error.source();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_a_number_of_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 60);
        let read = |value| pause(&HeaderValue::from_static(value), now);
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(60)));
        assert_eq!(read("Sun, 06 Nov 1993 08:49:37 GMT"), None);
        assert_eq!(read("soon"), None);
    }

    #[test]
    fn a_server_is_verified_by_something() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        assert!(Agent::new(Some(&path)).is_err_and(|error| error.ends_with("ca.pem can't be read: no such file")));
        std::fs::write(&path, "none\n").unwrap();
        assert!(Agent::new(Some(&path)).is_err_and(|error| error.ends_with("ca.pem is not PEM")));
    }
}
