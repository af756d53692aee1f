"""Files by URL: fetched once with a limit of size and of time, and kept in a folder of the user's caches."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

from research.errors import ConfigError
from research.files import write_atomic
from research.package import VERSION

MOST_BYTES = 64 << 20
SECONDS = 30.0  # for a whole file; a server that sends nothing is given up as soon
_PIECE = 64 << 10
_URL = re.compile(r"https?://", re.IGNORECASE)
_OTHER = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_TRUE = ("1", "ON", "YES", "TRUE")
_cached_only: str | None = None  # who fetches nothing now


def is_url(name: object) -> bool:
    """Whether a name is a URL that is fetched: of http or https."""
    return isinstance(name, str) and _URL.match(name) is not None


def is_other_url(name: object) -> bool:
    """Whether a name is a URL of another kind (ftp, file, s3, ...), which is not."""
    return isinstance(name, str) and not is_url(name) and _OTHER.match(name) is not None


def cache_folder() -> Path:
    """Where fetched files are kept: ``$RESEARCH_CACHE``, or ``research`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if own := os.environ.get("RESEARCH_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "research"


def cached(url: str) -> Path | None:
    """The file that was fetched of a URL before, or None."""
    file = _place(url)
    return file if file.is_file() else None


@contextmanager
def cached_only(who: str) -> Iterator[None]:
    """For a while nothing is fetched that is not in the cache: what a record of somebody's names is no reason to ask a server."""
    global _cached_only
    before, _cached_only = _cached_only, who
    try:
        yield
    finally:
        _cached_only = before


def fetched(key: str, url: str, check: Callable[[bytes, str], None]) -> Path:
    """The file of a URL: the one that was fetched before, or fetched now.

    Args:
        key: how messages call it.
        url: of http or https.
        check: is given what came and its kind as the server says it; raises a ConfigError for what is not to be kept.

    Raises:
        ConfigError: offline and not fetched before, no answer, an error of the server, too much or too slow, not what
            ``check`` takes, or the cache cannot be written.
    """
    if (file := cached(url)) is not None:
        return file
    if _cached_only:
        raise ConfigError(
            f"{key}: {url} was not fetched before, and {_cached_only} fetches nothing that a record names; accepted is a URL "
            f"that is in the cache ({cache_folder()})."
        )
    if name := next((name for name in _OFFLINE if os.environ.get(name, "").upper() in _TRUE), None):
        raise ConfigError(
            f"{key}: {url} was not fetched before, and {name} asks for no network; accepted offline is a file, or a URL that "
            f"is in the cache ({cache_folder()})."
        )
    content, kind = _fetch(key, url)
    check(content, kind)
    file = _place(url)
    try:
        write_atomic(file, content)
    except OSError as error:
        raise ConfigError(
            f"{key}: {url} cannot be kept in {file.parent} ({error.strerror or error}); RESEARCH_CACHE names another folder."
        ) from error
    return file


def _place(url: str) -> Path:
    return cache_folder() / "urls" / hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()


class _WebAlone(urllib.request.HTTPRedirectHandler):
    """Follows a server to other addresses of the web, and to nothing else."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # as in the library
        if not is_url(newurl):
            raise urllib.error.URLError(f"it leads to {newurl:.60}, which is no address of http or https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(key: str, url: str) -> tuple[bytes, str]:
    """What a URL holds, and of which kind the server says it is."""
    ends = time.monotonic() + SECONDS
    parts: list[bytes] = []
    size = 0
    try:
        parsed = urlsplit(url)
        if not parsed.hostname:
            raise ValueError("it names no host")
        # letters that an address may not have are written as browsers do
        asked = urllib.request.Request(
            quote(url, safe="%/:=&?~#+!$,;'@()*[]"), headers={"User-Agent": f"diffusion-sampling-research/{VERSION}"}
        )
        with urllib.request.build_opener(_WebAlone).open(asked, timeout=SECONDS) as answer:
            told = answer.headers.get("Content-Length", "")
            if told.isdigit() and int(told) > MOST_BYTES:
                raise ConfigError(_too_large(key, url, int(told)))
            while piece := answer.read1(_PIECE):
                parts.append(piece)
                size += len(piece)
                if size > MOST_BYTES:
                    raise ConfigError(_too_large(key, url, None))
                if time.monotonic() > ends:
                    raise TimeoutError
            if told.isdigit() and size < int(told):
                raise ValueError(f"the connection ended after {size} of {told} bytes")
            return b"".join(parts), answer.headers.get_content_type()
    except urllib.error.HTTPError as error:
        raise ConfigError(
            f"{key}: {url} cannot be fetched: the server says {error.code} {error.reason}; accepted is the address of a file."
        ) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason: object = getattr(error, "reason", error)
        slow = isinstance(error, TimeoutError) or isinstance(reason, TimeoutError)
        why = (
            f"it took more than {SECONDS:g} seconds" if slow else " ".join(str(reason).split()) or type(error).__name__
        )
        raise ConfigError(
            f"{key}: {url} cannot be fetched ({why}), and was not fetched before; accepted without a network is a file."
        ) from error


def _too_large(key: str, url: str, size: int | None) -> str:
    found = f"{size / 1e6:.1f} MB, " if size else ""
    return f"{key}: {url} has {found}more than the {MOST_BYTES / 1e6:.1f} MB that are fetched; fetch it, and name the file."
