"""Who may speak to the studio: the page that it served itself, and nobody else.

Any page in the browser can send requests to this machine, and any program on it can open
connections. So each request must have the token in its path, this server as its Host, and, if it
has an Origin, this server as its Origin; requests that do something must have one.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from secrets import compare_digest
from typing import Any

MAX_CONNECTIONS = 64
MAX_HEADERS = 1 << 14  # bytes
PATIENCE = 10  # seconds in which a connection must send its request, and a request its body
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Refused(Exception):
    """A request that is not answered. It has the HTTP status and one clear line."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


def guarded(app: App, token: str, port: int, max_body: int, ticket: str = "") -> App:
    """The ASGI app, behind all checks. It sees bodies of at most `max_body` bytes, whole.

    ticket: a path that leads to the page once. The browser is started with it, because all users of
    a machine can read how its programs were started.
    """
    tickets = [ticket] if ticket else []
    hosts = [f"127.0.0.1:{port}", f"localhost:{port}"]
    origins = [f"http://{host}" for host in hosts]

    def check(scope: Scope, secret: str) -> None:
        """Raises Refused if anything is wrong, or if `secret` does not begin the path."""
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADERS:
            raise Refused(431, "the headers are too large")
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        if headers.get("host", [""])[-1] not in hosts or len(headers["host"]) > 1:
            raise Refused(403, "the Host is not this server")
        is_post = scope["method"] == "POST"
        if not is_post and scope["method"] not in ("GET", "HEAD"):
            raise Refused(405, "only GET and POST are answered")
        if any(origin not in origins for origin in headers.get("origin", [])):
            raise Refused(403, "the Origin is not this server's page")
        if is_post and "origin" not in headers:
            raise Refused(403, "the request has no Origin")
        given = scope["path"].split("/")[1].encode("utf-8", "replace")
        if not compare_digest(given, secret.encode()):
            raise Refused(403, "the token is missing: open the address that minisd studio printed")
        if is_post and headers.get("content-type") != ["application/json"]:
            raise Refused(415, "the body must be application/json")
        length = headers.get("content-length", ["0"])[-1]
        if not length.isdecimal() or len(length) > 15 or int(length) > max_body:
            raise Refused(413, f"the body is larger than {max_body:,} bytes")

    async def read_body(receive: Receive) -> bytes:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > max_body:
                raise Refused(413, f"the body is larger than {max_body:,} bytes")
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                return body

    async def guarded_app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                pairs = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
                message["headers"] = [*message["headers"], *pairs]
            await send(message)

        async def refuse(status: int, reason: str) -> None:
            # The rest of a body is not read, so the connection cannot be used again.
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
            start = {"type": "http.response.start", "status": status, "headers": headers}
            await send_with_headers(start)
            await send({"type": "http.response.body", "body": f"{reason}\n".encode()})

        async def redirect() -> None:
            location = (b"location", f"/{token}/".encode())
            start = {"type": "http.response.start", "status": 303, "headers": [location]}
            await send_with_headers(start)
            await send({"type": "http.response.body", "body": b""})

        try:
            if scope["path"].strip("/") in tickets:
                check(scope, ticket)
                tickets.clear()
                await redirect()
                return
            check(scope, token)
            scope["state"] = {
                "body": await asyncio.wait_for(read_body(receive), PATIENCE)
                if scope["method"] == "POST"
                else b""
            }
        except Refused as refused:
            await refuse(refused.status, str(refused))
        except asyncio.TimeoutError:
            await refuse(408, f"the body did not arrive within {PATIENCE} seconds")
        else:
            await app(scope, receive, send_with_headers)

    return guarded_app
