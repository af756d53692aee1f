"""What a pickle would import if it were read, found without reading it: its opcodes are listed and none is carried out.

Unpickling may call any function that the pickle names. PyTorch's ``weights_only`` refuses names outside a short list; the list
here is shorter still, so that what this project opens with ``allow_pickle`` holds tensors and plain containers alone.

PyTorch's own `torch.serialization.get_unsafe_globals_in_checkpoint` (of 2.6 and later) is no substitute: it reads zip archives of
protocol 2 and no files of before PyTorch 1.6 or bare pickles, tells no names of tensors, and needs torch. Tests hold
that whatever it finds unsafe is refused here.
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
    foreign: set[str] = set()
    texts: set[str] = set()
    problem = None
    for data in streams:
        try:
            _list(data, names, foreign, texts)
        except Exception as error:  # the bytes are anyone's, and so is what the parser makes of them
            problem = f"is no pickle that can be followed: {shown(error)}"
    foreign |= {name for name in names if not _PLAIN.fullmatch(name)}
    return PickleReport(tuple(sorted(names)), tuple(sorted(foreign)), problem, tuple(sorted(texts)))


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
        return [archive.read(entry) for entry in pickles]


def _list(data: bytes, names: set[str], foreign: set[str], texts: set[str]) -> None:
    """Note the names and texts of a pickle; one of before PyTorch 1.6 is several, one after the other."""
    stream = io.BytesIO(data)
    for number in range(8):
        start = stream.tell()
        if number and data[start : start + 1] != b"\x80":
            return
        try:
            _list_one(stream, names, foreign, texts)
        except ValueError:
            # the old format goes on with raw storage after its pickles, and that may look like one
            if number < 5:
                raise
            return


def _list_one(stream: io.BytesIO, names: set[str], foreign: set[str], texts: set[str]) -> None:
    strings = ["?", "?"]
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            names.add(str(argument))
        elif opcode.name == "STACK_GLOBAL" or opcode.name.startswith("EXT"):
            # torch.save writes neither and weights_only reads neither; the name is a guess, and whatever it is, it is refused
            guess = " ".join(strings[-2:]) if opcode.name == "STACK_GLOBAL" else f"copyreg extension-{argument}"
            names.add(guess)
            foreign.add(guess)
        elif isinstance(argument, str):
            strings.append(argument)
            if _TENSOR_NAME.fullmatch(argument):
                texts.add(argument)
