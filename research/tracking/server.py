"""The W&B server, as far as a glance tells."""

from __future__ import annotations

import http.client
import os
import socket
import urllib.error
from urllib.parse import urlparse
from urllib.request import Request, getproxies, proxy_bypass, urlopen


def reach(timeout: float) -> None:
    """See that the server takes a connection: W&B's own client goes on trying where none is taken.

    Raises:
        ConnectionError: it does not.
    """
    base = server()
    address = urlparse(base)
    if address.scheme in getproxies() and not proxy_bypass(address.hostname or ""):
        return  # it is for the proxy to reach it
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=timeout):
            pass
    except OSError as error:
        raise ConnectionError(f"{base} cannot be reached ({error.strerror or error})") from error


def server() -> str:
    """The server that is spoken to."""
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def answers(timeout: float) -> bool:
    """Whether the server gives any answer within so many seconds; a refusal is one, 500 and up are none."""
    try:
        with urlopen(Request(server(), method="HEAD"), timeout=timeout):
            return True
    except urllib.error.HTTPError as error:
        return error.code < http.HTTPStatus.INTERNAL_SERVER_ERROR
    except (OSError, ValueError, http.client.HTTPException):
        return False
