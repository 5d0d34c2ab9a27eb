//! With what trust, and by what name, a backend is spoken to over TLS.
//!
//! It is a part of what a backend is: a connection to a server that was verified in one way
//! must carry no request of a route that verifies it in another. So it belongs to the
//! endpoint, and an endpoint of other trust is another endpoint.
//!
//! Each endpoint remembers sessions of its own, since one server knows nothing of another's
//! tickets, though both go by one name. They outlive a reload with their endpoint.

use std::fmt;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;

/// Sessions that are remembered of a backend.
pub const SESSIONS_MOST: usize = 8;

/// How a backend is spoken to over TLS.
#[derive(Clone)]
pub struct Tls {
    trust: Arc<ClientConfig>,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Tls {
    /// As `trust` has it, with a server that proves to be `name`. No session is known yet.
    #[must_use]
    pub fn new(trust: &Arc<ClientConfig>, name: ServerName<'static>) -> Self {
        let mut config = ClientConfig::clone(trust);
        config.resumption = Resumption::in_memory_sessions(SESSIONS_MOST);
        Self { trust: Arc::clone(trust), config: Arc::new(config), name }
    }

    /// What a handshake is made with.
    #[must_use]
    pub fn config(&self) -> &Arc<ClientConfig> {
        &self.config
    }

    /// Whom the certificate must be for.
    #[must_use]
    pub fn name(&self) -> &ServerName<'static> {
        &self.name
    }

    /// Whether this is what [`Self::new`] would make: the same trust, not only an equal one.
    #[must_use]
    pub fn is(&self, trust: &Arc<ClientConfig>, name: &ServerName<'static>) -> bool {
        Arc::ptr_eq(&self.trust, trust) && self.name == *name
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Tls").field("name", &self.name).finish_non_exhaustive()
    }
}
