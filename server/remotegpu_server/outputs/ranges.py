"""The HTTP of a download: which bytes are asked for, and the headers of the answer."""

from __future__ import annotations

import base64
import re
from urllib.parse import quote

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_PLAIN = re.compile(r"[^A-Za-z0-9._ -]")


def wanted(given: str | None, *, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last, of one satisfiable range; ``None``: the whole file (RFC 9110
    lets a server ignore any other range).
    """
    found = _RANGE.fullmatch(given or "")
    if found is None or found[1] == found[2] == "":
        return None
    if not found[1]:
        start, end = max(0, size - int(found[2])), size
    else:
        start, end = int(found[1]), min(size, int(found[2]) + 1) if found[2] else size
    return (start, end) if start < end else None


def headers_of(path: str, *, sha256: str) -> dict[str, str]:
    """A download, never a page: nobody's file runs as a script of ours. The name is data, and is encoded."""
    name = path.rsplit("/", 1)[-1]
    plain = _PLAIN.sub("_", name)
    digest = base64.b64encode(bytes.fromhex(sha256)).decode()
    return {
        "ETag": f'"{sha256}"',
        "Repr-Digest": f"sha-256=:{digest}:",
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
    }
