//! The messages that are counted. To change one is to change the baseline.

/// What one case is made of.
#[derive(Debug, Clone, Copy)]
pub enum Case {
    /// A request's head, on its way from a client to a backend.
    Request {
        /// As it is read.
        head: &'static [u8],
        /// The route that must be found.
        route: &'static str,
    },
    /// A response's head, on its way back.
    Response {
        /// As it is read.
        head: &'static [u8],
    },
    /// What opens a stream of HTTP/2, on its way from a client to a backend.
    Stream {
        /// Whom and what it asks.
        uri: &'static str,
        /// Its fields.
        fields: &'static [(&'static str, &'static str)],
        /// The route that must be found.
        route: &'static str,
    },
    /// A response's head, on its way back to a client of HTTP/2.
    Http2Response {
        /// As it is read.
        head: &'static [u8],
    },
    /// A chunked body.
    Chunks {
        /// Bytes in each chunk.
        each: usize,
        /// How many there are.
        count: usize,
    },
}

/// The main file and the routes of the configuration that routes them.
pub const CONFIG: &str = "BACKEND_ADDRESS=127.0.0.1:8080\nTRUSTED_PROXIES=192.0.2.0/24\n";

/// Routes, each by name and text.
pub const ROUTES: [(&str, &str); 4] = [
    ("api", "MATCH_HOST=www.example.com\nMATCH_PATH=/api\n"),
    ("assets", "MATCH_PATH=/static,=/favicon.ico\n"),
    ("site", "MATCH_HOST=www.example.com,*.eu.example.com\n"),
    ("standard", "MATCH_HOST=rfc.example.com\nFORWARDED=rfc7239\n"),
];

/// All cases by name.
pub const CASES: [(&str, Case); 13] = [
    ("get", Case::Request { head: b"GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n", route: "site" }),
    ("post", Case::Request { head: POST, route: "api" }),
    ("browser", Case::Request { head: BROWSER, route: "assets" }),
    ("path-to-mend", Case::Request { head: MEND, route: "site" }),
    ("upgrade", Case::Request { head: UPGRADE, route: "site" }),
    ("chain", Case::Request { head: CHAIN, route: "standard" }),
    ("answer", Case::Response { head: SHORT }),
    ("long-answer", Case::Response { head: ANSWER }),
    ("h2-get", Case::Stream { uri: "https://www.example.com/", fields: &[("accept", "*/*")], route: "site" }),
    ("h2-answer", Case::Http2Response { head: SHORT }),
    ("h2-long-answer", Case::Http2Response { head: ANSWER }),
    ("large-chunks", Case::Chunks { each: 4000, count: 4 }),
    ("small-chunks", Case::Chunks { each: 8, count: 500 }),
];

const POST: &[u8] =
    b"POST /api/v1/orders?draft=1 HTTP/1.1\r\nHost: www.example.com\r\nContent-Type: application/json\r\n\
    Accept: application/json\r\nAuthorization: Bearer 0123456789abcdef0123456789abcdef\r\nContent-Length: 512\r\n\r\n";

const BROWSER: &[u8] = b"GET /static/app.5f2c.js HTTP/1.1\r\nHost: cdn.example.net\r\nConnection: keep-alive\r\n\
    sec-ch-ua: \"Chromium\";v=\"130\", \"Not?A_Brand\";v=\"99\"\r\nsec-ch-ua-mobile: ?0\r\nsec-ch-ua-platform: \"Linux\"\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36\r\n\
    Accept: */*\r\nSec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: script\r\n\
    Referer: http://cdn.example.net/\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-GB,en;q=0.9,de;q=0.8\r\n\
    Cookie: session=4d2f8c0a9b7e4a51b0f3; theme=dark; consent=1\r\nIf-None-Match: \"5f2c-62a1\"\r\nPriority: u=1\r\n\r\n";

const MEND: &[u8] = b"GET /a/%7Euser/./b/../c//d?x=1 HTTP/1.1\r\nHost: A.EU.Example.COM.:8080\r\naccept:text/html\r\n\
    X-Forwarded-For: 198.51.100.7\r\nx_forwarded_proto: https\r\nConnection: close, X-Gone\r\nX-Gone: 1\r\nTE: trailers\r\n\r\n";

const UPGRADE: &[u8] = b"GET /chat HTTP/1.1\r\nHost: www.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nOrigin: http://www.example.com\r\n\r\n";

const CHAIN: &[u8] = b"GET /x HTTP/1.1\r\nHost: rfc.example.com\r\nX-Request-Id: 6a1b0c\r\n\
    Forwarded: for=198.51.100.7;proto=https;host=rfc.example.com, for=\"[2001:db8::7]:4711\"\r\n\
    Forwarded: for=192.0.2.9\r\nVia: 1.1 edge\r\n\r\n";

const SHORT: &[u8] = b"HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 3\r\n\r\n";

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
    Content-Type: text/html; charset=utf-8\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\n\
    Vary: Accept-Encoding\r\nCache-Control: max-age=0, private, must-revalidate\r\nETag: W/\"62a1\"\r\n\
    Set-Cookie: session=4d2f8c0a9b7e4a51b0f3; Path=/; HttpOnly; SameSite=Lax\r\nSet-Cookie: theme=dark; Path=/\r\n\
    Strict-Transport-Security: max-age=31536000\r\nX-Content-Type-Options: nosniff\r\nX-Frame-Options: DENY\r\n\
    Content-Security-Policy: default-src 'self'; img-src 'self' data:; object-src 'none'\r\n\r\n";
