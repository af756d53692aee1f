"""A W&B server on this machine, as far as a client can tell: it keeps what runs send, and it can refuse, hang, fail and die."""

from __future__ import annotations

import gzip
import json
import re
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789abcdef" * 2 + "01234567"
ENTITY = "me"


class Stub:
    """Start it with ``with``; ``base_url`` is what ``WANDB_BASE_URL`` is to say.

    Args:
        trouble: given what a request is for (``viewer``, ``resume``, ``upsert``, ``stream``, ``finish``, ``files``, ``upload``,
            ``runs``), says what becomes of it: None (it is answered), ``"500"``, ``"hang"``, ``"cut"`` (the connection ends
            without an answer) or ``"die"`` (so do this one and all later ones).
    """

    def __init__(self, trouble: Callable[[str], str | None] = lambda what: None):
        self.trouble = trouble
        self.runs: dict[str, dict[str, Any]] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.views: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.bodies: list[bytes] = []
        self.dead = False
        self.lock = threading.RLock()
        self._released = threading.Event()

    def __enter__(self) -> Stub:
        stub = self

        class Handler(_Handler):
            server_stub = stub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.base_url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()

    def heal(self) -> None:
        """Answer everything from now on."""
        self.dead, self.trouble = False, lambda what: None

    def content(self) -> dict[str, Any]:
        """What the server holds, less the times at which it was written."""
        return {name: _timeless(run) for name, run in sorted(self.runs.items())}

    def run(self, name: str) -> dict[str, Any]:
        return self.runs.setdefault(
            name, {"config": {}, "history": [], "summary": {}, "files": {}, "inserted": 0, "complete": False}
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_stub: Stub

    def log_message(self, *_: object) -> None:
        pass

    def _handle(self) -> None:
        stub = self.server_stub
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        what, answer = self._find(body)
        with stub.lock:
            stub.requests.append(what)
            stub.bodies.append(body)
            fate = "cut" if stub.dead else stub.trouble(what)
        if fate == "die":
            stub.dead, fate = True, "cut"
        if fate == "hang":
            stub._released.wait(120)
            fate = "cut"
        if fate == "cut":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if fate:
            self._send(int(fate), b"the server is unwell")
            return
        with stub.lock:
            self._send(200, json.dumps(answer()).encode())

    do_HEAD = do_GET = do_POST = do_PUT = _handle

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _find(self, body: bytes) -> tuple[str, Callable[[], Any]]:
        stub, path = self.server_stub, self.path.split("?")[0]
        if found := re.fullmatch(r"/upload/([^/]+)/(.+)", path):
            return "upload", lambda: stub.run(found[1])["files"].update({found[2]: body}) or {}
        if found := re.fullmatch(r"/artifact/([^/]+)/(.+)", path):
            return "upload", lambda: stub.artifacts[found[1]]["files"].update({found[2]: body}) or {}
        if found := re.fullmatch(r"/files/.*?([^/]+)/file_stream", path):
            sent = json.loads(body)
            return ("finish" if sent.get("complete") else "stream"), lambda: self._stream(found[1], sent)
        if path == "/graphql":
            sent = json.loads(body)
            # queries of the public interface have a name only in their text
            named = re.search(r"(?:query|mutation)\s+(\w+)", sent.get("query", ""))
            name, given = named[1] if named else "", sent.get("variables") or {}
            answers = {
                "Viewer": ("viewer", self._viewer),
                "GetDefaultEntity": ("viewer", self._viewer),
                "RunResumeStatus": ("resume", self._resume),
                "UpsertBucket": ("upsert", self._upsert),
                "CreateRunFiles": ("files", self._files),
                "Runs": ("runs", self._runs),
                "GetProject": ("project", self._project),
                "RunFiles": ("runfiles", self._run_files),
                "ArtifactType": ("artifact", lambda _: {"project": None}),
                "CreateArtifact": ("artifact", self._artifact),
                "CreateArtifactManifest": ("artifact", lambda given: self._manifest("create", given)),
                "UpdateArtifactManifest": ("artifact", lambda given: self._manifest("update", given)),
                "CreateArtifactFiles": ("artifact", self._artifact_files),
                "GetProjects": ("projects", self._projects),
                "UpsertView2": ("view", self._view),
                "upsertView": ("view", self._view),
                "CommitArtifact": ("artifact", self._commit),
                "UpdateArtifact": ("artifact", self._commit),
            }
            what, answer = answers.get(name, (name, lambda _: {}))
            return what, lambda: {"data": answer(given)}
        return path, dict

    # -- answers

    def _viewer(self, _: dict[str, Any]) -> Any:
        return {
            "viewer": {
                "id": "VXNlcjox",
                "entity": ENTITY,
                "username": ENTITY,
                "email": "",
                "flags": "{}",
                "teams": {"edges": []},
                "admin": False,
            }
        }

    def _resume(self, given: dict[str, Any]) -> Any:
        run = self.server_stub.runs.get(given["name"])
        bucket = run and {
            "id": given["name"],
            "name": given["name"],
            "summaryMetrics": json.dumps(run["summary"]),
            "displayName": run.get("display_name"),
            "logLineCount": 0,
            "historyLineCount": len(run["history"]),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(line) for line in run["history"][-1:]]),
            "eventsTail": "[]",
            "config": json.dumps(run["config"]),
            "tags": run.get("tags") or [],
            "notes": None,
            "wandbConfig": json.dumps({"t": 1}),
        }
        project = given.get("project")
        return {"model": {"id": "p", "name": project, "entity": {"id": "e", "name": ENTITY}, "bucket": bucket}}

    def _upsert(self, given: dict[str, Any]) -> Any:
        stub, name = self.server_stub, given.get("name") or given["id"]
        new = name not in stub.runs
        run = stub.run(name)
        run["inserted"] += new
        run["raw"] = given
        if given.get("summaryMetrics"):
            run["summary"] = json.loads(given["summaryMetrics"])
        if given.get("config"):
            run["config"] = json.loads(given["config"])
        for key, kept in (
            ("displayName", "display_name"),
            ("groupName", "group"),
            ("jobType", "job_type"),
            ("tags", "tags"),
            ("commit", "commit"),
            ("project", "project"),
        ):
            if given.get(key) is not None:
                run[kept] = given[key]
        project = {
            "id": "p",
            "name": given.get("project"),
            "entity": {"id": "e", "name": given.get("entity") or ENTITY},
        }
        bucket = {
            "id": name,
            "name": name,
            "displayName": run.get("display_name"),
            "description": None,
            "config": json.dumps(run["config"]),
            "sweepName": None,
            "project": project,
            "historyLineCount": len(run["history"]),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def _files(self, given: dict[str, Any]) -> Any:
        base = self.server_stub.base_url
        files = [{"name": name, "uploadUrl": f"{base}/upload/{given['run']}/{name}"} for name in given["files"]]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def _stream(self, name: str, sent: dict[str, Any]) -> Any:
        run = self.server_stub.run(name)
        for file, chunk in (sent.get("files") or {}).items():
            if file == "wandb-history.jsonl":
                lines = [json.loads(line) for line in chunk["content"]]
                at = chunk["offset"]
                run["history"][at : at + len(lines)] = lines
            elif file == "wandb-summary.json":
                run["summary"] = json.loads(chunk["content"][-1])
        if sent.get("complete"):
            run["complete"], run["exitcode"] = True, sent.get("exitcode")
        return {}

    def _project(self, given: dict[str, Any]) -> Any:
        return {
            "project": {
                "id": "p",
                "internalId": "1",
                "name": given.get("name") or given.get("project"),
                "entityName": ENTITY,
                "readOnly": False,
            }
        }

    def _runs(self, given: dict[str, Any]) -> Any:
        filters = json.loads(given.get("filters") or "{}")
        wanted = _values(filters, "group"), _values(filters, "name")
        edges = []
        for name, run in sorted(self.server_stub.runs.items()):
            if (wanted[0] and run.get("group") not in wanted[0]) or (wanted[1] and name not in wanted[1]):
                continue
            node = {
                "id": name,
                "name": name,
                "projectId": "1",
                "displayName": run.get("display_name"),
                "state": "finished" if run["complete"] else "running",
                "config": json.dumps(run["config"]),
                "summaryMetrics": json.dumps(run["summary"]),
                "systemMetrics": "{}",
                "group": run.get("group"),
                "tags": run.get("tags") or [],
                "historyKeys": {"lastStep": len(run["history"]) - 1, "keys": {}},
                "historyLineCount": len(run["history"]),
                "user": {"name": ENTITY, "username": ENTITY},
                "createdAt": "2026-01-01T00:00:00Z",
            }
            edges.append({"node": node, "cursor": name})
        return {
            "project": {
                "internalId": "1",
                "runCount": len(edges),
                "readOnly": False,
                "runs": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}},
            }
        }

    def _projects(self, _: dict[str, Any]) -> Any:
        node = {"__typename": "Project", "id": "p", "name": "research", "entityName": ENTITY}
        more = {"createdAt": "2026-01-01T00:00:00Z", "isBenchmark": False, "user": None}
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        return {"models": {"pageInfo": page, "edges": [{"node": {**node, **more}}]}}

    def _view(self, given: dict[str, Any]) -> Any:
        """A workspace or a report; one with an id replaces that one."""
        views = self.server_stub.views
        if given.get("id") and given["id"] not in views:
            return {"upsertView": None}
        name = given.get("id") or f"view{len(views)}"
        views[name] = {"type": given["type"], "title": given["displayName"], "spec": json.loads(given["spec"])}
        view = {
            "id": name,
            "name": given["name"],
            "type": given["type"],
            "displayName": given["displayName"],
            "description": given.get("description"),
            "spec": given["spec"],
            "project": {"id": "p", "name": given["projectName"], "entityName": given["entityName"]},
            "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": "2026-01-01T00:00:00Z",
        }
        return {"upsertView": {"view": view, "inserted": True}}

    def _artifact(self, given: dict[str, Any]) -> Any:
        """A version is known by its digest: sent again, it is the same one, and asks for nothing more."""
        asked, kept = given["input"], self.server_stub.artifacts
        name = (
            asked["artifactCollectionName"]
            if "artifactCollectionName" in asked
            else asked["artifactCollectionNames"][0]
        )
        version = f"{name}:{asked['digest'][:12]}"
        known = kept.setdefault(version, {"type": asked["artifactTypeName"], "files": {}, "state": "PENDING"})
        sequence = {"id": name, "latestArtifact": None, "name": name, "project": None}
        artifact = {"id": version, "state": known["state"], "artifactSequence": sequence}
        return {"createArtifact": {"artifact": artifact}}

    def _manifest(self, verb: str, given: dict[str, Any]) -> Any:
        version = given["artifactID"] if verb == "create" else given["artifactManifestID"]
        url = f"{self.server_stub.base_url}/artifact/{version}/manifest.json"
        file = {"id": version, "uploadUrl": url, "uploadHeaders": []}
        return {f"{verb}ArtifactManifest": {"artifactManifest": {"id": version, "file": file}}}

    def _artifact_files(self, given: dict[str, Any]) -> Any:
        edges = []
        for file in given["input"]["artifactFiles"]:
            version, name = file["artifactID"], file["name"]
            url = f"{self.server_stub.base_url}/artifact/{version}/{name}"
            node = {"storagePath": name, "uploadUrl": url, "uploadHeaders": [], "uploadMultipartUrls": None}
            edges.append({"node": {**node, "artifact": {"id": version}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _commit(self, given: dict[str, Any]) -> Any:
        version = given.get("artifactID")
        if version in self.server_stub.artifacts:
            self.server_stub.artifacts[version]["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": version, "digest": str(version).rpartition(":")[2]}}}

    def _run_files(self, given: dict[str, Any]) -> Any:
        run = self.server_stub.run(given["name"])
        edges = [
            {"node": {"id": name, "name": name, "sizeBytes": len(content)}, "cursor": name}
            for name, content in run["files"].items()
        ]
        return {
            "project": {
                "run": {
                    "fileCount": len(edges),
                    "files": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}},
                }
            }
        }


def _values(filters: Any, key: str) -> list[str]:
    """What a filter asks of a key, wherever it does."""
    found: list[str] = []
    if isinstance(filters, list):
        for part in filters:
            found += _values(part, key)
    elif isinstance(filters, dict):
        for name, value in filters.items():
            if name == key:
                found += value.get("$in", []) if isinstance(value, dict) else [value]
            elif isinstance(value, dict | list):
                found += _values(value, key)
    return found


_TIMES = ("_timestamp", "_runtime", "_wandb")


def _timeless(run: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in run.items() if key not in ("raw", "inserted", "files")}
    kept["config"] = {key: value for key, value in run["config"].items() if key != "_wandb"}
    kept["history"] = [{k: v for k, v in line.items() if k not in _TIMES} for line in run["history"]]
    kept["summary"] = {k: v for k, v in run["summary"].items() if k not in _TIMES}
    media = {name: content for name, content in run["files"].items() if name.startswith("media/")}
    kept["files"] = {name: len(content) for name, content in sorted(media.items())}
    return kept
