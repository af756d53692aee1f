"""Draws the rooms of `research/` and which of them import which: `python -m tools.rooms docs/img/rooms.svg`.

All of it is measured from the code. A room stands above all that it imports. Only arrows that say something are drawn: where
A imports B and B imports C, the arrow from A to C is left out, and so are those to the leaves, which are free to all. An arrow
of a circle is red.
"""

from __future__ import annotations

import argparse
import ast
import re
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

matplotlib.rcParams["svg.hashsalt"] = "rooms"  # the same picture is the same file
PACKAGE = Path(__file__).resolve().parents[1] / "research"
_LEAVES = "leaves"
_INK, _FILL, _CORE, _CIRCLE = "#24343a", "#eef4f2", "#bfe3d8", "#c0392b"


def room_of(module: str) -> str:
    """The room of a dotted module below ``research``: its package, or the leaves for a file that stands alone."""
    head = module.split(".")[0]
    if head in ("__main__", "show_results") or head.endswith("cli"):
        return "cli"
    return head if (PACKAGE / head).is_dir() and head != "zoo" else _LEAVES


def measured() -> tuple[dict[str, int], dict[str, set[str]]]:
    """Lines of each room, and the rooms that each imports, for types and lazily too."""
    lines: dict[str, int] = {}
    uses: dict[str, set[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
        if module in ("__init__", "zoo.__init__"):
            continue
        room, text = room_of(module), file.read_text(encoding="utf-8")
        lines[room] = lines.get(room, 0) + text.count("\n")
        found = uses.setdefault(room, set())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module == "research":
                found |= {room_of(alias.name) for alias in node.names if (PACKAGE / alias.name).is_dir()}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("research."):
                found.add(room_of(str(node.module).removeprefix("research.")))
    return lines, {room: found - {room} for room, found in uses.items()}


def floors(uses: dict[str, set[str]]) -> dict[str, int]:
    """How many rooms stand below each, one above the other; rooms of a circle are cut where it was entered."""
    found: dict[str, int] = {}

    def floor(room: str, above: tuple[str, ...]) -> int:
        if room not in found:
            below = [
                floor(other, (*above, room)) for other in sorted(uses.get(room, ())) if other not in (*above, room)
            ]
            found[room] = 1 + max(below, default=-1)
        return found[room]

    for room in sorted(uses):
        floor(room, ())
    return found


def telling(uses: dict[str, set[str]]) -> set[tuple[str, str]]:
    """The arrows that follow from no others."""

    def reach(start: str, left_out: tuple[str, str]) -> set[str]:
        seen: set[str] = set()
        rest = [start]
        while rest:
            room = rest.pop()
            for other in uses.get(room, ()):
                if (room, other) != left_out and other not in seen:
                    seen.add(other)
                    rest.append(other)
        return seen

    arrows = {(a, b) for a, found in uses.items() for b in found if b != _LEAVES}
    return {(a, b) for a, b in arrows if b not in reach(a, (a, b))}


def purpose(room: str) -> str:
    """The first words of a room's docstring, up to its first stop."""
    if room == _LEAVES:
        return "errors, files, pictures, statistics, the zoo's paths ..."
    file = PACKAGE / "cli.py" if room == "cli" else PACKAGE / room / "__init__.py"
    text = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")[0].replace("\n", " ")
    return re.split(r"[.:;]( |$)", text.replace("`", ""))[0]


def draw(out: Path) -> None:
    lines, uses = measured()
    leaves = {_LEAVES}
    floor = {_LEAVES: 0} | {
        room: 1 + at for room, at in floors({room: uses[room] - leaves for room in uses if room != _LEAVES}).items()
    }
    rows: dict[int, list[str]] = {}
    for room in floor:
        rows.setdefault(floor[room], []).append(room)
    top = max(rows)
    figure = Figure(figsize=(10, 1.25 * (top + 1)))
    axes = figure.add_subplot()
    width, height = 2.25, 0.62
    widest = max(len(names) for names in rows.values()) * (width + 0.25)
    place: dict[str, tuple[float, float]] = {}
    for level, names in rows.items():
        for k, room in enumerate(sorted(names)):
            place[room] = (5 + (k - (len(names) - 1) / 2) * (width + 0.25), float(level))
    for room, (x, y) in place.items():
        wide = widest - 0.25 if room == _LEAVES else width
        box = FancyBboxPatch(
            (x - wide / 2, y - height / 2),
            wide,
            height,
            boxstyle="round,pad=0.02,rounding_size=0.06",
            facecolor=_CORE if room == "sampling" else _FILL,
            edgecolor=_INK,
            linewidth=0.9,
            zorder=2,
        )
        axes.add_patch(box)
        axes.text(x, y + 0.14, room, ha="center", va="center", fontsize=11, weight="bold", color=_INK, zorder=3)
        axes.text(x, y - 0.03, f"{lines[room]:,} lines", ha="center", va="center", fontsize=6.5, color=_INK, zorder=3)
        said = purpose(room)
        if room != _LEAVES and len(said) > 38:
            cut = said.rfind(" ", 0, 39)
            said = f"{said[:cut]}\n{said[cut + 1 :]}" if len(said) - cut < 40 else f"{said[:cut]} ..."
        axes.text(x, y - 0.2, said, ha="center", va="center", fontsize=5.6, color=_INK, zorder=3)
    for a, b in sorted(telling(uses)):
        (xa, ya), (xb, yb) = place[a], place[b]
        arrow = FancyArrowPatch(
            (xa, ya - height / 2 - 0.02),
            (xb, yb + height / 2 + 0.02),
            arrowstyle="-|>",
            mutation_scale=9,
            connectionstyle="arc3,rad=0.0" if ya - yb < 1.5 else "arc3,rad=0.12",
            color=_CIRCLE if floor[a] <= floor[b] else _INK,
            linewidth=0.8,
            alpha=0.75,
            zorder=1,
        )
        axes.add_patch(arrow)
    axes.set_xlim(5 - widest / 2 - 0.1, 5 + widest / 2 + 0.1)
    axes.set_ylim(-0.5, top + 0.5)
    axes.axis("off")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, bbox_inches="tight", dpi=150, metadata={"Date": None} if out.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.rooms", description=__doc__)
    parser.add_argument("out", type=Path, help="the picture, .svg or .png")
    draw(parser.parse_args().out)


if __name__ == "__main__":
    main()
