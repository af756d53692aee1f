"""What a pickle would import if it were read, found without reading it: its opcodes are listed and none is carried out.

Unpickling may call any function that the pickle names. PyTorch's ``weights_only`` refuses names outside a short list; the list
here is shorter still, so that what this project opens with ``allow_pickle`` holds tensors and plain containers alone.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from research.errors import ModelError
from research.models.inspect.safe_files import shown, sniff, unreadable

_LIMIT = 64 << 20  # bytes of opcodes; those of Stable Diffusion 1.x take 0.3 MB
_PLAIN = re.compile(
    r"collections OrderedDict"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state)"
    r"|torch (\w+Storage|Size|device|Tensor|(b?float|u?int|complex|q?u?int)\d+\w*|bool|half|double|float|long|int|short)"
    r"|torch\.storage (UntypedStorage|TypedStorage)"
    r"|torch\.nn\.parameter Parameter|torch\._tensor _rebuild_from_type_v2"
)
_TENSOR_NAME = re.compile(r"[\w.*<>-]*[._][\w.*<>-]*", re.ASCII)
_STRINGS = ("UNICODE", "STRING")


@dataclass(frozen=True)
class PickleReport:
    """What stands in a pickled file.

    Attributes:
        names: every function or class it names, as "module name".
        foreign: those that are no tensors or plain containers.
        problem: why it cannot be told, or why PyTorch could not read it; None if all is well.
        texts: strings in it that look like names of tensors.
    """

    names: tuple[str, ...]
    foreign: tuple[str, ...]
    problem: str | None = None
    texts: tuple[str, ...] = ()


def report_pickle(file: Path) -> PickleReport:
    """List what a pickled weight file (a ``torch.save`` archive or a bare pickle) names. Nothing of it is run."""
    if why := unreadable(file):
        return PickleReport((), (), why)
    try:
        streams = _archived(file) if sniff(file) == "zip" else [_head(file)]
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        return PickleReport((), (), shown(error))
    names: set[str] = set()
    texts: set[str] = set()
    problem = None
    for data in streams:
        try:
            names |= _names(data, texts)
        except Exception as error:  # the bytes are anyone's, and so is what the parser makes of them
            problem = f"is no pickle that can be followed: {shown(error)}"
    foreign = sorted(n for n in names if not _PLAIN.fullmatch(n))
    return PickleReport(tuple(sorted(names)), tuple(foreign), problem, tuple(sorted(texts)))


def check_pickle(file: Path) -> None:
    """Make sure that a pickle which is allowed to be read holds nothing but tensors and containers.

    Raises:
        ModelError: it names other things, or cannot be followed.
    """
    report = report_pickle(file)
    if report.problem:
        raise ModelError(f"model.path: {file} {report.problem}.")
    if report.foreign:
        more = f" and {len(report.foreign) - 1} more" if len(report.foreign) > 1 else ""
        raise ModelError(
            f"model.path: {file} is a pickle that names {shown(report.foreign[0].replace(' ', '.'))}{more}; accepted are "
            "pickles of tensors alone, since any other name can run code."
        )


def _head(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(_LIMIT)


def _archived(file: Path) -> list[bytes]:
    """The pickles of a zip archive, as torch.save writes them."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(re.search(r"(^|/)(code/|constants\.pkl$)", e.filename) for e in entries):
            raise ValueError("is a TorchScript archive, which holds a program")
        pickles = [e for e in entries if e.filename.endswith((".pkl", ".pickle"))]
        if not pickles:
            raise ValueError("is a zip archive without a pickle of PyTorch (data.pkl)")
        if any(e.compress_type != zipfile.ZIP_STORED or e.file_size > _LIMIT for e in pickles):
            raise ValueError("is a zip archive that PyTorch did not write: its pickle is compressed or too large")
        found = []
        for entry in pickles:
            with archive.open(entry) as stream:
                found.append(stream.read(_LIMIT))
        return found


def _names(data: bytes, texts: set[str]) -> set[str]:
    """Every global that the opcodes name. A pickle of before PyTorch 1.6 is several, one after the other."""
    stream, names = io.BytesIO(data), set()
    for part in range(8):
        start = stream.tell()
        if part and data[start : start + 1] != b"\x80":
            break
        try:
            names |= _names_of_one(stream, texts)
        except ValueError:
            # the old format goes on with raw storage after its pickles, and that may look like one
            if part < 5:
                raise
            break
    return names


def _names_of_one(stream: io.BytesIO, texts: set[str]) -> set[str]:
    names: set[str] = set()
    recent: list[str | None] = []  # what the stack holds, as far as strings go
    memo: dict[int, str | None] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        name = opcode.name
        place = argument if isinstance(argument, int) else -1
        if name in ("GLOBAL", "INST"):
            names.add(str(argument))
            recent.append(None)
        elif name == "STACK_GLOBAL":
            module, attribute = recent[-2:] if len(recent) > 1 else (None, None)
            names.add(f"{module or '?'} {attribute or '?'}")
            recent.append(None)
        elif name.startswith("EXT"):
            names.add(f"copyreg extension-{argument}")
        elif any(kind in name for kind in _STRINGS):
            recent.append(argument if isinstance(argument, str) else None)
            if isinstance(argument, str) and _TENSOR_NAME.fullmatch(argument):
                texts.add(argument)
        elif name == "MEMOIZE":
            memo[len(memo)] = recent[-1] if recent else None
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[place] = recent[-1] if recent else None
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            recent.append(memo.get(place))
        elif name in ("POP", "POP_MARK", "DUP"):
            recent.append(None)  # no pickler writes these; what they leave on top is not followed
        elif opcode.stack_after:
            recent.append(None)
        del recent[:-4]
    return names
