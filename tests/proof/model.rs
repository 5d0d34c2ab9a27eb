//! What a proxy must make of a head, by RFC 9110, RFC 9112 and doorward's own rules.
//!
//! It starts from what the [`super::reference`] parser has read, and has nothing of the
//! daemon's code either, so that a mistake has to be made twice to go unseen. It is slow
//! and plain on purpose.

use std::net::Ipv6Addr;

use super::reference::{Framing, Head};

/// Bytes of a method's name; a longer one is nobody's.
pub const LONGEST_METHOD: usize = 32;

/// Fields of a head.
pub const MOST_FIELDS: usize = 100;
/// Options that `Connection` may list in all: each may name a field.
const MOST_OPTIONS: usize = 100;

/// A field line: name and value.
pub type Line = (Vec<u8>, Vec<u8>);

/// What a request means.
#[derive(Debug)]
pub struct Request {
    /// The target in origin form, `*`, or what an absolute form has behind the authority.
    pub target: Vec<u8>,
    /// Whom it is for.
    pub authority: Option<Vec<u8>>,
    /// How its body ends.
    pub framing: Framing,
    /// The connection may go on.
    pub keep_alive: bool,
    /// The protocols it offers in place of HTTP.
    pub offers: Vec<Vec<u8>>,
    /// Whoever sent it takes trailer fields behind the answer.
    pub trailers: bool,
    /// How often it may still be passed on, where that counts.
    pub hops: Option<u64>,
}

/// What a response means.
#[derive(Debug)]
pub struct Response {
    /// How its body ends.
    pub framing: Framing,
    /// The length it states.
    pub length: Option<usize>,
    /// The connection may go on.
    pub keep_alive: bool,
}

/// What to make of a request.
pub fn request(head: &Head) -> Result<Request, &'static str> {
    let [method, target, version] = &head.line;
    let modern = version == b"HTTP/1.1";
    refuse(head.fields.len() > MOST_FIELDS, "more than 100 fields")?;
    refuse(options(head).len() > MOST_OPTIONS, "more than 100 options")?;
    refuse(method.len() > LONGEST_METHOD, "a method that is too long")?;
    refuse(method == b"CONNECT", "CONNECT")?;
    let expected = head.all("expect").iter().all(|value| value.eq_ignore_ascii_case(b"100-continue"));
    refuse(modern && !expected, "an unknown expectation")?;
    let coding = head.all("transfer-encoding");
    let length = one_length(head)?;
    let framing = match (coding.as_slice(), length) {
        ([], None) => Framing::None,
        ([], Some(length)) => Framing::Length(length),
        ([coding], None) if modern && coding.eq_ignore_ascii_case(b"chunked") => Framing::Chunked,
        _ => return Err("a coding that is not chunked, or beside a length, or in 1.0"),
    };
    let (asked, target) = if target.starts_with(b"/") || (target == b"*" && method == b"OPTIONS") {
        (None, target.clone())
    } else {
        // RFC 9110 §4.2 has two schemes, of which case does not matter (RFC 3986 §3.1).
        let colon = target.iter().position(|byte| *byte == b':').ok_or("a target of no form")?;
        let scheme = target[..colon].to_ascii_lowercase();
        refuse(scheme != b"http" && scheme != b"https", "another scheme")?;
        let rest = target[colon + 1..].strip_prefix(b"//").ok_or("no authority")?;
        let end = rest.iter().position(|byte| b"/?#".contains(byte)).unwrap_or(rest.len());
        refuse(end == 0, "no authority")?;
        (Some(rest[..end].to_vec()), rest[end..].to_vec())
    };
    refuse(target.contains(&b'#'), "a fragment")?;
    let hosts = head.all("host");
    refuse(hosts.len() > 1 || (modern && hosts.is_empty()), "not one Host")?;
    let host = hosts.first().map(|host| host.to_vec());
    refuse(host.as_deref().is_some_and(|host| !authority(host)), "a Host that is none")?;
    refuse(asked.as_deref().is_some_and(|asked| !authority(asked)), "an authority that is none")?;
    let hops = match head.all("max-forwards").as_slice() {
        _ if method != b"OPTIONS" && method != b"TRACE" => None,
        [] => None,
        [hops] => Some(number(hops).ok_or("Max-Forwards that is no number")?),
        _ => return Err("several Max-Forwards"),
    };
    let mut offers = Vec::new();
    if modern && options(head).iter().any(|option| option == b"upgrade") {
        offers = head.all("upgrade").into_iter().flat_map(entries).filter(|offer| protocol(offer)).collect();
    }
    let bodiless = matches!(framing, Framing::None | Framing::Length(0));
    refuse(!offers.is_empty() && !bodiless, "another protocol, and a body")?;
    // Its own option of `Connection` may be missing: what is asked for is plain without.
    let trailers =
        modern && head.all("te").into_iter().flat_map(entries).any(|coding| coding.eq_ignore_ascii_case(b"trailers"));
    let (authority, keep_alive) = (asked.or(host), keeps_alive(head, modern));
    Ok(Request { target, authority, framing, keep_alive, offers, trailers, hops })
}

/// What to make of a response to `method`.
pub fn response(head: &Head, method: &[u8]) -> Result<Response, &'static str> {
    let [version, status, _] = &head.line;
    let modern = version == b"HTTP/1.1";
    refuse(head.fields.len() > MOST_FIELDS, "more than 100 fields")?;
    refuse(options(head).len() > MOST_OPTIONS, "more than 100 options")?;
    let coding = head.all("transfer-encoding");
    let stated = one_length(head)?;
    refuse(!modern && !coding.is_empty(), "a coding in 1.0")?;
    let (framing, length) = if status[0] == b'1' || status == b"204" {
        (Framing::None, None)
    } else if method == b"HEAD" || status == b"304" {
        (Framing::None, stated.filter(|_| coding.is_empty()))
    } else {
        match (coding.as_slice(), stated) {
            ([], None) => (Framing::UntilClose, None),
            ([], Some(length)) => (Framing::Length(length), Some(length)),
            ([coding], None) if coding.eq_ignore_ascii_case(b"chunked") => (Framing::Chunked, None),
            _ => return Err("a coding that is not chunked, or beside a length"),
        }
    };
    let keep_alive = keeps_alive(head, modern) && framing != Framing::UntilClose;
    Ok(Response { framing, length, keep_alive })
}

/// Fields of one connection (RFC 9110 §7.6.1). `Trailer` is none of them: it says what
/// stands behind the body (§6.6.2), wherever that goes on.
const HOP: [&[u8]; 7] =
    [b"connection", b"http2-settings", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade"];

/// The trailer fields that go on behind a chunked body whose head is `head`, if there was
/// one: those that a reader may merge with the head without harm (RFC 9110 §6.5.1).
pub fn trailing(trailers: &[Line], head: Option<&Head>) -> Vec<Line> {
    // By the kinds that the section names; RFC 7230 §4.1.2 said which fields these are.
    const FRAMING: &str = "content-length trailer transfer-encoding";
    const ROUTING: &str = "host via";
    const CONTROLS: &str = "cache-control expect max-forwards pragma range te";
    const WHO_ASKS: &str =
        "authorization cookie proxy-authenticate proxy-authorization realm set-cookie www-authenticate";
    const RESPONSE: &str = "age cache-control date expires location proxy-status retry-after vary warning";
    const CONTENT: &str = "content-encoding content-range content-type";
    // What doorward says of a request, and nobody else in its name.
    const OURS: &str = "x-request-id";
    let kinds = [FRAMING, ROUTING, CONTROLS, WHO_ASKS, RESPONSE, CONTENT, OURS];
    let mut named = head.map(options).unwrap_or_default();
    named.retain(|option| option != b"close");
    let ends = |name: &[u8]| {
        let name = name.to_ascii_lowercase();
        let listed = kinds.iter().flat_map(|kind| kind.split(' ')).any(|field| field.as_bytes() == name);
        let conditional = name.starts_with(b"if-");
        listed || conditional || is_forwarding(&name) || HOP.contains(&&name[..]) || named.contains(&name)
    };
    trailers.iter().filter(|(name, _)| !ends(name)).cloned().collect()
}

/// The fields that do not end here: hop-by-hop ones do, and those that `Connection`
/// names, but for the ones that no sender may name.
pub fn passed_on(head: &Head) -> Vec<Line> {
    const KEPT: [&[u8]; 2] = [b"host", b"content-length"];
    let mut named = options(head);
    // An option, and the name of no field (RFC 9110 §16.3.1).
    named.retain(|option| option != b"close");
    let stays = |(name, _): &&Line| {
        let name = name.to_ascii_lowercase();
        let ends = HOP.contains(&name.as_slice()) || named.contains(&name);
        KEPT.contains(&name.as_slice()) || !ends
    };
    head.fields.iter().filter(stays).cloned().collect()
}

/// Whether the name is one of those that tell whom a request is made for.
pub fn is_forwarding(name: &[u8]) -> bool {
    let name = name.to_ascii_lowercase();
    name == b"forwarded"
        || name.iter().map(|byte| if *byte == b'_' { b'-' } else { *byte }).take(12).eq(*b"x-forwarded-")
}

/// `1*DIGIT` within 64 bits.
pub fn number(value: &[u8]) -> Option<u64> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(value).ok().filter(|_| digits)?.parse().ok()
}

/// The entries of a list in a field's value, without empty ones.
pub fn entries(value: &[u8]) -> Vec<Vec<u8>> {
    let parts = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    parts.filter(|part| !part.is_empty()).map(<[u8]>::to_vec).collect()
}

/// The elements of a `Forwarded` field, read from the left as a backend does; all
/// quotation marks are closed.
pub fn elements(value: &[u8]) -> Vec<Vec<u8>> {
    let (mut elements, mut quoted, mut escaped) = (vec![Vec::new()], false, false);
    for byte in value {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => {
                elements.push(Vec::new());
                continue;
            }
            _ => {}
        }
        elements.last_mut().unwrap().push(*byte);
    }
    assert!(!quoted, "an open quotation mark: {}", value.escape_ascii());
    elements.iter().map(|element| element.trim_ascii().to_vec()).collect()
}

fn refuse(fault: bool, why: &'static str) -> Result<(), &'static str> {
    if fault { Err(why) } else { Ok(()) }
}

/// What the Connection fields list, in lower case.
fn options(head: &Head) -> Vec<Vec<u8>> {
    head.all("connection").into_iter().flat_map(entries).map(|entry| entry.to_ascii_lowercase()).collect()
}

fn keeps_alive(head: &Head, modern: bool) -> bool {
    let options = options(head);
    let has = |wanted: &[u8]| options.iter().any(|option| option == wanted);
    !has(b"close") && (modern || has(b"keep-alive"))
}

fn one_length(head: &Head) -> Result<Option<usize>, &'static str> {
    let mut length = None;
    for value in head.all("content-length") {
        let value = number(value).and_then(|value| usize::try_from(value).ok()).ok_or("a length that is none")?;
        refuse(length.is_some_and(|before| before != value), "lengths that differ")?;
        length = Some(value);
    }
    Ok(length)
}

fn tchars(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

/// `protocol-name ["/" protocol-version]`, and not HTTP/2.
fn protocol(offer: &[u8]) -> bool {
    let parts: Vec<_> = offer.split(|byte| *byte == b'/').collect();
    parts.len() <= 2 && parts.iter().all(|part| tchars(part)) && !parts[0].eq_ignore_ascii_case(b"h2c")
}

/// `uri-host [ ":" port ]` (RFC 9110 §7.2, RFC 3986 §3.2.2), possibly empty; a port is one
/// of TCP's in five digits at most, and none stands alone.
pub fn authority(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let port = |text: &str| {
        let digits = text.len() <= 5 && text.chars().all(|digit| digit.is_ascii_digit());
        text.is_empty() || (digits && text.parse::<u16>().is_ok())
    };
    if let Some(inner) = text.strip_prefix('[') {
        let Some((address, rest)) = inner.split_once(']') else { return false };
        let rest = rest.strip_prefix(':').map_or(rest.is_empty(), port);
        return address.parse::<Ipv6Addr>().is_ok() && rest;
    }
    let (host, rest) = text.split_once(':').unwrap_or((text, ""));
    if host.is_empty() && text.contains(':') {
        return false;
    }
    let mut parts = host.split('%');
    let plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=".contains(c));
    let coded = |text: &str| text.len() >= 2 && text.chars().take(2).all(|c| c.is_ascii_hexdigit());
    parts.next().is_some_and(plain) && parts.all(|part| coded(part) && plain(part)) && port(rest)
}

/// The target as it goes on: what came, or, where its path has dot segments, the path's
/// normal form by the letter of RFC 3986 §5.2.4.
pub fn sent_target(target: &[u8]) -> Vec<u8> {
    let end = target.iter().position(|byte| *byte == b'?').unwrap_or(target.len());
    let (path, query) = target.split_at(end);
    let mut normal = String::new();
    let mut rest = std::str::from_utf8(path).expect("targets are ASCII");
    while let Some(first) = rest.chars().next() {
        let digits = rest.get(1..3).filter(|digits| first == '%' && digits.chars().all(|c| c.is_ascii_hexdigit()));
        let plain = digits.map(|digits| char::from(u8::from_str_radix(digits, 16).unwrap()));
        match (plain, digits) {
            (Some(plain), _) if plain.is_ascii_alphanumeric() || "-._~".contains(plain) => normal.push(plain),
            (_, Some(digits)) => normal.push_str(&format!("%{}", digits.to_uppercase())),
            _ if first == '%' => normal.push_str("%25"),
            _ => normal.push(first),
        }
        rest = &rest[if digits.is_some() { 3 } else { 1 }..];
    }
    if !normal.split('/').skip(1).any(|segment| matches!(segment, "." | "..")) {
        return target.to_vec();
    }
    let (mut input, mut output) = (normal, String::new());
    while !input.is_empty() {
        if input.starts_with("/./") || input == "/." {
            input = format!("/{}", input.get(3..).unwrap_or_default());
        } else if input.starts_with("/../") || input == "/.." {
            input = format!("/{}", input.get(4..).unwrap_or_default());
            output.truncate(output.rfind('/').unwrap_or(0));
        } else {
            let end = input.get(1..).and_then(|rest| rest.find('/')).map_or(input.len(), |at| at + 1);
            output.push_str(&input[..end]);
            input.drain(..end);
        }
    }
    [output.as_bytes(), query].concat()
}
