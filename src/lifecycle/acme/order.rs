//! Order: how a certificate is had from an ACME server.
//!
//! ```text
//! account → order → authorization: publish an answer, have it checked → CSR → certificate
//! ```
//!
//! One name, one certificate. The private key is made here, for each certificate a new one.
//!
//! Source: RFC 8555 §7.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use instant_acme::{
    Account, AccountCredentials, AuthorizationHandle, AuthorizationStatus, CertificateIdentifier, ChallengeType, Error,
    ExternalAccountKey, Identifier, NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

use super::agent::{Agent, chain};
use super::store::{Store, StoreError};
use crate::config::AcmeChallenge;
use crate::tls;
use crate::tls::challenges::{Challenges, Published};

/// How often the server is asked what has become of a check or an order: after a quarter of
/// a second first, then less often, unless it says itself when.
const POLLING: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(250)).backoff(1.5).timeout(Duration::from_secs(120));

/// From whom certificates are had, as the configuration says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// The folder for state; none when nobody names one.
    pub state: Option<PathBuf>,
    /// The URL of the server's directory.
    pub directory: Box<str>,
    /// What the server is verified by; none for what the host has.
    pub ca: Option<PathBuf>,
    /// Whom it may write to.
    pub email: Vec<Box<str>>,
    /// The account elsewhere that the one there is bound to: its identifier, and the file of
    /// its key.
    pub binding: Option<(Box<str>, PathBuf)>,
    /// How it may check that a name leads here, the first choice first.
    pub challenges: Vec<AcmeChallenge>,
}

/// Why there is no certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What it concerns.
    pub scope: Scope,
    /// What happened, in one line.
    pub error: String,
    /// How long the server wants to be left alone.
    pub retry_after: Option<Duration>,
}

/// What a failure concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// One name.
    Name,
    /// All names: the server, the account there, or this host.
    Server,
}

impl Failure {
    /// One that concerns all names, on this side.
    pub fn here(error: impl ToString) -> Failure {
        Failure { scope: Scope::Server, error: error.to_string(), retry_after: None }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure::here(error)
    }
}

/// The account as it is saved.
#[derive(Serialize, Deserialize)]
struct Saved {
    email: Vec<Box<str>>,
    credentials: AccountCredentials,
}

/// One server, with the account there.
pub struct Server {
    terms: Arc<Terms>,
    store: Store,
    agent: Agent,
}

impl Server {
    /// Reads what the server is verified by; nothing is asked of it yet.
    ///
    /// # Errors
    /// The files can't be read.
    pub async fn open(terms: Arc<Terms>) -> Result<Server, Failure> {
        let opened = spawn_blocking(move || {
            let store = open_store(&terms)?;
            let agent = Agent::new(terms.ca.as_deref()).map_err(Failure::here)?;
            Ok(Server { terms, store, agent })
        });
        opened.await.map_err(Failure::here)?
    }

    /// The account: the one that is saved, or a new one.
    ///
    /// # Errors
    /// The server can't be reached or refuses, or the account can't be saved.
    pub async fn account(&self) -> Result<Account, Failure> {
        let failed = |error| self.failure(Scope::Server, &error);
        let store = self.store.clone();
        let saved: Option<Saved> = spawn_blocking(move || store.account()).await.map_err(Failure::here)??;
        let Some(Saved { email, credentials }) = saved else { return self.register().await };
        // Kept in this form to be saved again, since the library gives credentials away.
        let again = serde_json::to_value(&credentials).map_err(Failure::here)?;
        let builder = Account::builder_with_http(Box::new(self.agent.clone()));
        let account = builder.from_credentials(credentials).await.map_err(failed)?;
        if email != self.terms.email {
            match account.update_contacts(&self.contacts().iter().map(String::as_str).collect::<Vec<_>>()).await {
                Ok(()) => self.save_account(serde_json::from_value(again).map_err(Failure::here)?).await?,
                Err(error) if is(&error, "accountDoesNotExist") => return self.register().await,
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(account)
    }

    /// Makes an account at the server, agreeing to its terms of service, which `ACME=on` says.
    async fn register(&self) -> Result<Account, Failure> {
        let binding = match &self.terms.binding {
            Some((id, path)) => Some(binding_key(id, path.clone()).await?),
            None => None,
        };
        let contacts = self.contacts();
        let contact: Vec<&str> = contacts.iter().map(String::as_str).collect();
        let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let builder = Account::builder_with_http(Box::new(self.agent.clone()));
        let created = builder.create(&new, self.terms.directory.to_string(), binding.as_ref()).await;
        let (account, credentials) = created.map_err(|error| self.failure(Scope::Server, &error))?;
        self.save_account(credentials).await?;
        Ok(account)
    }

    async fn save_account(&self, credentials: AccountCredentials) -> Result<(), Failure> {
        let (store, saved) = (self.store.clone(), Saved { email: self.terms.email.clone(), credentials });
        Ok(spawn_blocking(move || store.save_account(&saved)).await.map_err(Failure::here)??)
    }

    fn contacts(&self) -> Vec<String> {
        self.terms.email.iter().map(|address| format!("mailto:{address}")).collect()
    }

    /// Obtains a certificate for `name`: private key, certificate and chain, in PEM. `turn`
    /// counts the attempts, of which each tries the next of the challenges; `replaces` is the
    /// certificate that this one is for.
    ///
    /// # Errors
    /// Any [`Failure`]; nothing that was published stays so.
    pub async fn obtain(
        &self,
        name: &str,
        turn: u32,
        replaces: Option<CertificateIdentifier<'static>>,
        challenges: &Arc<Challenges>,
    ) -> Result<String, Failure> {
        let failed = |error: Error| self.failure(Scope::Name, &error);
        let mut order = self.order(name, replaces).await?;
        let mut published = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let authorization = authorization.map_err(failed)?;
            match authorization.status {
                AuthorizationStatus::Valid => {}
                AuthorizationStatus::Pending => {
                    published.push(self.answer(name, turn, authorization, challenges).await?);
                }
                status => return Err(self.refused(format!("the authorization for {name} is {status:?}"))),
            }
        }
        match order.poll_ready(&POLLING).await {
            Ok(OrderStatus::Ready) => {}
            Ok(_) => return Err(self.refused(why_invalid(&mut order, None).await)),
            // What is wrong with the order, and not with a question after it.
            Err(Error::Api(problem)) if order.state().error.is_some() => {
                return Err(self.refused(why_invalid(&mut order, Some(problem)).await));
            }
            Err(error) => return Err(failed(error)),
        }
        drop(published);
        let (key, csr) = request(name).map_err(Failure::here)?;
        order.finalize_csr(&csr).await.map_err(failed)?;
        let chain = order.poll_certificate(&POLLING).await.map_err(failed)?;
        Ok(format!("{key}{chain}"))
    }

    /// Places the order. An account that the server has lost is made anew.
    async fn order(&self, name: &str, replaces: Option<CertificateIdentifier<'static>>) -> Result<Order, Failure> {
        let identifiers = [Identifier::Dns(name.to_owned())];
        let mut account = self.account().await?;
        // What it replaces only helps: a server that knows of no such thing, or has replaced it
        // already, is asked without.
        let helpless = |error: &Error| match error {
            Error::Api(_) => is(error, "alreadyReplaced") || is(error, "malformed"),
            Error::Unsupported(_) | Error::Other(_) => true,
            _ => false,
        };
        let (mut replaces, mut anew) = (replaces, false);
        loop {
            let new = NewOrder::new(&identifiers);
            let new = replaces.iter().cloned().fold(new, NewOrder::replaces);
            match account.new_order(&new).await {
                Ok(order) => return Ok(order),
                Err(error) if replaces.is_some() && helpless(&error) => replaces = None,
                Err(error) if !anew && is(&error, "accountDoesNotExist") => {
                    account = self.register().await?;
                    anew = true;
                }
                Err(error) => return Err(self.not_placed(&error)),
            }
        }
    }

    /// Why an order was not placed. One that concerns the account can be mended by whoever
    /// keeps its file: nothing here gets round a server that has closed it.
    fn not_placed(&self, error: &Error) -> Failure {
        if !is(error, "unauthorized") {
            return self.failure(Scope::Name, error);
        }
        let failure = self.failure(Scope::Server, error);
        let path = self.store.account_path();
        let error = format!(
            "the server refuses the account: {}; without {} another one is registered",
            failure.error,
            path.display()
        );
        Failure { error, ..failure }
    }

    /// Publishes the answer to one of the challenges that are offered, and has it checked.
    async fn answer(
        &self,
        name: &str,
        turn: u32,
        mut authorization: AuthorizationHandle<'_>,
        challenges: &Arc<Challenges>,
    ) -> Result<Published, Failure> {
        let offered = |kind: &AcmeChallenge| authorization.challenges.iter().any(|one| one.r#type == kind_of(*kind));
        let usable: Vec<AcmeChallenge> = self.terms.challenges.iter().copied().filter(offered).collect();
        let turn = usize::try_from(turn).unwrap_or(0).checked_rem(usable.len()).unwrap_or(0);
        let Some(kind) = usable.get(turn).copied() else {
            let wanted: Vec<&str> = self.terms.challenges.iter().map(|kind| kind.as_str()).collect();
            return Err(self.refused(format!("the server offers no {}", wanted.join(" or "))));
        };
        let Some(mut challenge) = authorization.challenge(kind_of(kind)) else {
            return Err(self.refused(format!("the server offers no {}", kind.as_str())));
        };
        let authorization = challenge.key_authorization();
        let published = match kind {
            AcmeChallenge::Http01 => challenges.publish_token(&challenge.token, authorization.as_str()),
            AcmeChallenge::TlsAlpn01 => {
                let digest = authorization.digest();
                let digest: &[u8; 32] = digest.as_ref().try_into().map_err(Failure::here)?;
                challenges.publish_handshake(name, digest)
            }
        };
        let published = published.map_err(Failure::here)?;
        challenge.set_ready().await.map_err(|error| self.failure(Scope::Name, &error))?;
        Ok(published)
    }

    fn refused(&self, error: String) -> Failure {
        Failure { scope: Scope::Name, error, retry_after: None }
    }

    /// What an error of the library comes to. One that is no answer of the server's concerns
    /// all names, whatever was asked, and so do some answers.
    fn failure(&self, scope: Scope, error: &Error) -> Failure {
        let (scope, said) = match error {
            Error::Api(problem) => {
                let all = ["serverInternal", "badNonce", "userActionRequired", "externalAccountRequired"];
                let scope = if all.iter().any(|kind| is(error, kind)) { Scope::Server } else { scope };
                (scope, said(problem))
            }
            Error::Timeout(_) => (Scope::Name, error.to_string()),
            error => (Scope::Server, chain(error)),
        };
        Failure { scope, error: one_line(&said), retry_after: self.agent.asked() }
    }
}

/// The files of the server that `terms` name. Blocks.
///
/// # Errors
/// There is no folder for them.
pub fn open_store(terms: &Terms) -> Result<Store, Failure> {
    let Some(state) = &terms.state else {
        return Err(Failure::here(
            "there is no folder to keep certificates in: StateDirectory= of the unit names one, or STATE_DIRECTORY \
             in the environment",
        ));
    };
    Ok(Store::open(state, &terms.directory)?)
}

/// What a server's problem document says: its detail with its kind, and those of its parts.
fn said(problem: &instant_acme::Problem) -> String {
    let whole = |detail: &Option<String>, kind: &Option<String>| {
        let kind = kind.as_deref().unwrap_or_default();
        let kind = kind.rsplit(':').next().unwrap_or_default();
        match (detail.as_deref().unwrap_or_default(), kind) {
            ("", "") => "the server names no reason".to_owned(),
            (detail, "") => detail.to_owned(),
            ("", kind) => kind.to_owned(),
            (detail, kind) => format!("{detail} ({kind})"),
        }
    };
    let mut said = whole(&problem.detail, &problem.r#type);
    for part in problem.subproblems.iter().take(4) {
        said = format!("{said}; {}", whole(&part.detail, &part.r#type));
    }
    said
}

/// Longest error that is kept, in characters.
const ERROR_LIMIT: usize = 500;

/// A text of somebody else's in one line of a bounded length.
fn one_line(text: &str) -> String {
    text.chars().take(ERROR_LIMIT).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Whether the server's problem is of this kind.
///
/// Source: RFC 8555 §6.7.
fn is(error: &Error, kind: &str) -> bool {
    let Error::Api(problem) = error else { return false };
    problem.r#type.as_deref().and_then(|known| known.strip_prefix("urn:ietf:params:acme:error:")) == Some(kind)
}

fn kind_of(kind: AcmeChallenge) -> ChallengeType {
    match kind {
        AcmeChallenge::Http01 => ChallengeType::Http01,
        AcmeChallenge::TlsAlpn01 => ChallengeType::TlsAlpn01,
    }
}

/// Why an order came to nothing: the order itself often does not say, or little of it; its
/// authorizations do.
async fn why_invalid(order: &mut Order, problem: Option<instant_acme::Problem>) -> String {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let Ok(state) = authorization.refresh().await else { continue };
        let failed = state.challenges.iter().find_map(|one| Some((one.error.as_ref()?, &one.r#type)));
        if let Some((problem, kind)) = failed {
            let kind: Cow<'_, str> = match kind {
                ChallengeType::Http01 => "http-01".into(),
                ChallengeType::TlsAlpn01 => "tls-alpn-01".into(),
                other => format!("{other:?}").into(),
            };
            return one_line(&format!("{kind}: {}", said(problem)));
        }
    }
    problem.map_or_else(|| "the server calls the order invalid".to_owned(), |problem| one_line(&said(&problem)))
}

/// A new private key in PEM, and a request to certify it for `name`.
fn request(name: &str) -> Result<(String, Vec<u8>), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new([name.to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&key)?;
    Ok((key.serialize_pem(), csr.der().to_vec()))
}

/// The key of an account elsewhere.
async fn binding_key(id: &str, path: PathBuf) -> Result<ExternalAccountKey, Failure> {
    let wrong = |path: &PathBuf, what: &str| Failure::here(format!("{} {what}", path.display()));
    let read = path.clone();
    let bytes = spawn_blocking(move || crate::config::read(&read))
        .await
        .map_err(Failure::here)?
        .map_err(|error| wrong(&path, &format!("can't be read: {}", crate::config::reason(&error))))?;
    let key = tls::acme::binding_key(&bytes).map_err(|why| wrong(&path, &why))?;
    Ok(ExternalAccountKey::new(id.to_owned(), &key))
}
