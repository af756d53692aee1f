"""A live view of a sweep: the page made again as jobs end, with a bar on top; in a file, or served on this machine alone."""

from __future__ import annotations

import io
import json
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from research.errors import UserError
from research.files import write_atomic
from research.report.page import LIVE, PROGRESS, render, render_progress, render_waiting
from research.report.progress import Progress, progress
from research.results.read import read_sweep
from research.results.scales import Margin

EVERY = 2.0  # seconds between two looks at the folder
LOOPBACK = "127.0.0.1"
_LOOPBACKS = {socket.AF_INET: LOOPBACK, socket.AF_INET6: "::1"}
_HOSTS = (LOOPBACK, "[::1]", "localhost")
_IDLE = 30.0  # seconds that a connection may stand still
_REST = 4  # a build is followed by so many times its own length without one, so that a sweep keeps its processors


class LiveReport:
    """The page of a sweep that is going on, brought up to date by `look`."""

    def __init__(
        self,
        directory: Path,
        margins: Mapping[str, Margin] | None = None,
        figures: Sequence[tuple[str, str]] = (),
        unit: str | None = None,
        budget: Mapping[str, float | None] | None = None,
    ):
        self.directory, self.figures = directory, figures
        self.judging = margins, unit, budget
        self.page = directory / "report.html"
        self.now = Progress()
        self._seen: dict[str, tuple[int, bool]] = {}
        self._thumbs: dict[Any, tuple[str, int, int]] = {}
        self._body = ""
        self._built: str | None = None
        self._not_before = 0.0

    def look(self) -> bool:
        """Write the page again if something has changed; returns whether it did. A folder that is not there yet is waited for."""
        now = progress(self.directory, self._seen)
        changed = now.version != self._built and time.monotonic() >= self._not_before
        if changed:
            self._build(now)
        if (changed or now != self.now) and self.directory.is_dir():
            self.now = now
            self._write(live=True)
        return changed

    def close(self) -> None:
        """Leave a page that no longer asks for news."""
        if self.directory.is_dir():
            now = progress(self.directory, self._seen)
            if now.done + now.failed:
                self._build(now)
                self._write(live=False)
            else:
                self.page.unlink(missing_ok=True)  # there was nothing to report

    def data(self) -> dict[str, str]:
        """What a served page asks for every few seconds."""
        return {"version": str(self._built), "progress": render_progress(self.now)}

    def _build(self, now: Progress) -> None:
        from rich.console import Console

        from research.report.build import judged_by, write_parts

        started = time.monotonic()
        try:
            sweep = replace(judged_by(read_sweep(self.directory), *self.judging), figures=self.figures)
        except UserError:  # no job is done yet
            self._body = render_waiting(self.directory.resolve().name)
        else:
            parts = write_parts(sweep, self._thumbs, console=Console(file=io.StringIO()))
            self._body = render(sweep, plots=parts.plots, thumbs=parts.thumbs)
        self._built = now.version
        self._not_before = time.monotonic() + _REST * (time.monotonic() - started)

    def _write(self, *, live: bool) -> None:
        head = f'<meta name="live" content="{EVERY:g}">\n<noscript><meta http-equiv="refresh" content="5"></noscript>\n'
        page = self._body.replace(LIVE, head if live else "", 1)
        write_atomic(self.page, page.replace(PROGRESS, render_progress(self.now) if live else "", 1))


def watch(
    directory: Path,
    *,
    until_finished: bool = False,
    port: int | None = None,
    margins: Mapping[str, Margin] | None = None,
    figures: Sequence[tuple[str, str]] = (),
    unit: str | None = None,
    budget: Mapping[str, float | None] | None = None,
) -> None:
    """Keep the page of a sweep up to date until interrupted, or, if asked to, until every job has its record.

    Args:
        directory: the sweep's folder; it may not be there yet.
        port: serve the folder at this port of 127.0.0.1, and of ::1 where there is IPv6, as well; 0 takes any that is free.
        margins, figures, unit, budget: see `research.report.build_report`.

    Raises:
        UserError: the port is taken, or `directory` is a file.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory}: found a file; accepted is a sweep's folder, outputs/<sweep_name>.")
    report = LiveReport(directory, margins, figures, unit, budget)
    servers = _serve(report, port) if port is not None else []
    where = f"http://{LOOPBACK}:{servers[0].server_port}/report.html" if servers else str(report.page)
    print(f"live at {where} (Ctrl-C ends)", flush=True)
    last = ""
    try:
        while True:
            report.look()
            if (line := report.now.line()) != last:
                print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)
                last = line
            if until_finished and report.now.finished:
                return
            time.sleep(EVERY)
    except KeyboardInterrupt:
        print(file=sys.stderr)
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
        report.close()


def _serve(report: LiveReport, port: int) -> list[_Server]:
    """Serve the folder on this machine's own addresses: that of IPv4, and that of IPv6 where there is one with the port free."""
    handler = partial(_Handler, report, directory=str(report.directory))
    try:
        servers = [_Server(handler, port)]
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--serve {port}: {reason}; accepted is a free port, or 0 for any.") from error
    with suppress(OSError):
        servers.append(_Server(handler, servers[0].server_port, socket.AF_INET6))
    for server in servers:
        threading.Thread(target=server.serve_forever, name="report", daemon=True).start()
    return servers


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, handler: Any, port: int, family: socket.AddressFamily = socket.AF_INET):
        self.address_family = family
        super().__init__((_LOOPBACKS[family], port), handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        super().server_bind()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is no news."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(SimpleHTTPRequestHandler):
    """The page and the pictures beside it, to be read; nothing hidden, no listings, and no host but this one."""

    timeout = _IDLE

    def __init__(self, report: LiveReport, *args: Any, **kwargs: Any) -> None:
        self.report = report
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        if self._refused():
            return
        if urlsplit(self.path).path == "/live.json":
            self.wfile.write(self._live_head())
            return
        super().do_GET()

    def do_HEAD(self) -> None:
        if self._refused():
            return
        if urlsplit(self.path).path == "/live.json":
            self._live_head()
            return
        super().do_HEAD()

    def _live_head(self) -> bytes:
        content = json.dumps(self.report.data()).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are no news."""

    def _refused(self) -> bool:
        """Whether this is answered with 404: it is none of the folder's files, or asks in the name of another host.

        Another name than this machine's own means that a page elsewhere asks through this browser.
        """
        try:
            path = unquote(urlsplit(self.path).path)
            if path == "/":
                self.path = path = "/report.html"
            fine = self._is_own_host() and (path == "/live.json" or self._is_own_file(path))
        except (OSError, ValueError, RuntimeError):  # longer than names can be, with zeros, links in a circle, no URL
            fine = False
        if not fine:
            self.send_error(404)
        return not fine

    def _is_own_host(self) -> bool:
        host = (self.headers.get("Host") or "").strip().lower()
        name, colon, port = host.rpartition(":")
        return (name if colon and port.isdigit() else host) in _HOSTS

    def _is_own_file(self, path: str) -> bool:
        if path.endswith("/") or any(part.startswith(".") for part in path.split("/")):
            return False
        target, folder = Path(self.translate_path(self.path)).resolve(), self.report.directory.resolve()
        hidden = any(part.startswith(".") for part in target.parts[len(folder.parts) :])
        return target.is_relative_to(folder) and not hidden and target.is_file()  # to open a pipe waits for ever
