"""The headers of every answer, which keep browsers from doing with it what the page does not need."""

from collections.abc import Iterable

_CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    ]
)
_ALWAYS = {
    "content-security-policy": _CONTENT_SECURITY_POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
STATIC = "/static/"
_VERSIONED = "public, max-age=31536000, immutable"
_HSTS = "max-age=86400"  # a day: it counts for all ports of the host

Headers = list[tuple[bytes, bytes]]


def with_security(headers: Iterable[tuple[bytes, bytes]], *, path: str, has_version: bool, is_tls: bool) -> Headers:
    """Return the headers of an answer, with those that every answer has; the answer's own `Cache-Control` stays.

    `has_version` is whether the request names a version of a static file, which then never changes.
    """
    added = dict(_ALWAYS)
    if is_tls:
        added["strict-transport-security"] = _HSTS
    own = [(name, value) for name, value in headers if name.lower().decode("latin-1") not in added]
    if not any(name.lower() == b"cache-control" for name, _ in own):
        is_static = path.startswith(STATIC)
        added["cache-control"] = "no-store" if not is_static else _VERSIONED if has_version else "no-cache"
    return own + [(name.encode(), value.encode()) for name, value in added.items()]
