"""A model's directory as the libraries are shown it: links to the files that are to be read, under plain names.

Configs that are read otherwise than they are stored are written there. Nothing is written where a directory can be read as it is.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from research.models.inspect.safe_files import read_json
from research.models.inspect.weights import index_files, plain_name, stems, write_renamed


@dataclass
class View:
    """How the folder of one part is shown.

    Attributes:
        part: its name.
        folder: where its files are.
        weights: the files of weights, and their index, that are shown, by the names that they are to have; no others are.
        written: files of JSON that are written anew.
        renamed: tensors that are to have other names.
        only: besides these, the files that are shown; None: all.
    """

    part: str
    folder: Path
    weights: dict[str, Path] = field(default_factory=dict)
    written: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    only: tuple[str, ...] | None = None

    def of_weights(self, files: Sequence[Path], variant: str) -> None:
        """Show these files of weights, with their index if they are shards."""
        self.weights = {plain_name(self.part, file.name) or file.name: file for file in files}
        for stem, ending in zip(stems(self.part), ("safetensors", "bin"), strict=True):
            indices = index_files(self.folder, stem, ending, variant)
            if not indices or f"{stem}.{ending}" in self.weights or files[0].suffix != f".{ending}":
                continue
            content = read_json(indices[0])
            name = f"{stem}.{ending}.index.json"
            if isinstance(content.get("metadata"), dict) and not self.renamed:
                self.weights[name] = indices[0]
                continue
            metadata = content["metadata"] if isinstance(content.get("metadata"), dict) else {}
            where = {self.renamed.get(key, key): file for key, file in content["weight_map"].items()}
            self.written[name] = {**content, "metadata": metadata, "weight_map": where}

    @property
    def is_plain(self) -> bool:
        """Whether the folder itself will do."""
        if self.written or self.renamed or self.only is not None or self.folder.name != self.part:
            return False
        # other weights beside these do no harm: what the libraries read of them is known, see `weight_files`
        return all(name == file.name for name, file in self.weights.items())

    def write(self, target: Path) -> None:
        """Make a folder of it."""
        target.mkdir()
        for entry in self.folder.iterdir():
            is_weights = self.weights and plain_name(self.part, entry.name)
            shown = self.only is None or entry.name in self.only
            if entry.is_file() and not is_weights and shown and entry.name not in self.written:
                (target / entry.name).symlink_to(entry.absolute())
        for name, file in self.weights.items():
            if self.renamed and file.suffix == ".safetensors":
                write_renamed(file, self.renamed, target / name)
            else:
                (target / name).symlink_to(file.absolute())
        for name, content in self.written.items():
            (target / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def shown_folder(view: View) -> Iterator[Path]:
    """The folder of a part as it is to be read. Files that were opened from it stay readable after it is gone."""
    if view.is_plain:
        yield view.folder
        return
    with tempfile.TemporaryDirectory(prefix="research-") as scratch:
        view.write(Path(scratch, view.part))
        yield Path(scratch, view.part)


@contextlib.contextmanager
def shown_directory(directory: Path, index: Mapping[str, Any], views: Sequence[View]) -> Iterator[Path]:
    """A directory of these parts as it is to be read; the directory itself where nothing is to be read otherwise."""
    if all(view.is_plain for view in views) and read_json(directory / "model_index.json") == index:
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="research-") as scratch:
        shown = Path(scratch, directory.name or "model")
        shown.mkdir()
        (shown / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        for view in views:
            if view.is_plain:
                (shown / view.part).symlink_to(view.folder.absolute(), target_is_directory=True)
            else:
                view.write(shown / view.part)
        yield shown
