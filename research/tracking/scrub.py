"""Takes local paths and secrets out of what leaves the machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# where a run was written or how it was launched is nobody else's business, and decides nothing
_LEFT_OUT = {"output_dir", "tracker", "hydra", "directory", "cache_dir"}
_SECRET = re.compile(r"(^|_)(api_?key|token|secret|password|passwd|credentials?)($|_)", re.IGNORECASE)
# an absolute path: from the root, the home folder or a drive, not the slashes inside "owner/name" or a URL
_PATH = re.compile(
    r"(?<![\w:/.])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\"=,;:\]\)]+[/\\])*([^\s/\\'\"=,;:\]\)]+)[/\\]?"
)


def scrub(value: Any) -> Any:
    """A config without secrets and with absolute paths cut to their last part; prompts and numbers are untouched."""
    if isinstance(value, Mapping):
        return {
            str(key): item if key in ("prompt", "prompts") else scrub(item)
            for key, item in value.items()
            if key not in _LEFT_OUT and not _SECRET.search(str(key))
        }
    if isinstance(value, (list, tuple)):
        return [scrub(item) for item in value]
    return scrub_text(value) if isinstance(value, str) else value


def scrub_text(text: str) -> str:
    """Absolute paths in a text, cut to their last part."""
    return _PATH.sub(lambda found: found.group(1), text)
