"""Which images of two sides belong together: those of one prompt and seed, made with the same other settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from research.compare.jobs import Key
from research.compare.sides import Cell, Side
from research.errors import UserError
from research.statistics import PROMPTS, SEEDS, drawn, unit_of

AUTO = "auto"  # the unit that `research.statistics.unit_of` says


@dataclass(frozen=True)
class Shared:
    """Images that sides have in common, cell by cell.

    Attributes:
        cells: ``{cell: images}``, in one order for all sides.
        over: what is drawn at random: ``images`` (a prompt with a seed, in all cells at once), ``prompts``, or ``seeds``
            (images, while their prompts stay).
    """

    cells: dict[Cell, tuple[Key, ...]]
    over: str

    @cached_property
    def units(self) -> list[Key | str]:
        """What is drawn at random, in a fixed order."""
        found = {self.unit(key): None for keys in self.cells.values() for key in keys}
        return sorted(found, key=repr)

    def unit(self, key: Key) -> Key | str:
        """What an image is drawn with: itself in all cells, as its noise is the same there, or all of its prompt."""
        return key[0] if self.over == PROMPTS else key

    def drawn(self, images: Sequence[Key]) -> tuple[Sequence[str] | None, Sequence[str] | None]:
        """Of some images, ``units`` and ``strata`` of `research.statistics.mean`."""
        return drawn([str(image[0]) for image in images], self.over)

    @cached_property
    def name(self) -> tuple[tuple[Cell, tuple[Key, ...]], ...]:
        """What two of the same images agree in."""
        return tuple(self.cells.items())

    def __len__(self) -> int:
        return sum(len(keys) for keys in self.cells.values())


def share(sides: Sequence[Side], over: str) -> Shared:
    """What all of some sides have.

    Args:
        over: what is drawn at random, ``images``, ``prompts``, ``seeds``, or `AUTO`.
    """
    first, *others = sides
    cells = {}
    for cell, rows in first.cells.items():
        keys = tuple(key for key in sorted(rows, key=repr) if all(key in side.cells.get(cell, {}) for side in others))
        if keys:
            cells[cell] = keys
    if over in (AUTO, SEEDS):
        # an image is one in all cells: its noise is the same there
        over = unit_of([key[0] for key in {key for keys in cells.values() for key in keys}], over)
    return Shared(cells, over)


def left_over(a: Side, b: Side, shared: Shared, within: Sequence[str]) -> list[str]:
    """Sentences on what of two sides cannot be paired; none where all can be."""
    notes = []
    for one, other in ((a, b), (b, a)):
        unmatched = [cell for cell in one.cells if cell not in other.cells]
        if unmatched and within:
            named = "; ".join(cell_name(cell, within) for cell in unmatched[:3]) + (" …" if len(unmatched) > 3 else "")
            notes.append(
                f"{len(unmatched)} settings of {one.name} have no counterpart in {other.name} ({named}) and are left out."
            )
        within_cells = sum(len(rows) for cell, rows in one.cells.items() if cell in other.cells)
        if within_cells > len(shared):
            notes.append(
                f"{within_cells - len(shared)} of {within_cells} images of {one.name} have no image of the same prompt and seed "
                f"in {other.name} and are left out."
            )
    return notes


def nothing_shared(a: Side, b: Side, within: Sequence[str]) -> UserError:
    """The refusal of two sides without a common image, with the reason."""
    if not set(a.cells) & set(b.cells):
        mine, theirs = (cell_name(next(iter(s.cells)), within) for s in (a, b))
        why = f"{a.name} has {mine}, {b.name} has {theirs}"
        return UserError(
            f"nothing to pair: {why}; accepted are sides with the same {', '.join(within)}, --axis KEY, or --each."
        )
    keys = [{key for rows in s.cells.values() for key in rows} for s in (a, b)]
    if not all(keys):
        empty = (a, b)[bool(keys[0])].name
        return UserError(f"nothing to pair: the record of {empty} lists no images; run it again.")
    prompts, seeds = ({key[k] for key in keys[0]} & {key[k] for key in keys[1]} for k in (0, 1))
    examples = [
        f"{s.name} {_some([key[0 if seeds else 1] for key in sorted(k, key=repr)])}"
        for s, k in zip((a, b), keys, strict=True)
    ]
    what = "prompts" if seeds and not prompts else "seeds" if prompts and not seeds else "prompts with the same seeds"
    return UserError(
        f"nothing to pair: found no common {what} ({', '.join(examples)}); accepted are jobs of the same prompts and seeds, "
        "or --unpaired for independent samples."
    )


def cell_name(cell: Cell, within: Sequence[str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in zip(within, cell, strict=True)) or "one setting"


def _some(values: Sequence[object]) -> str:
    different = list(dict.fromkeys(str(v) for v in values))
    shown = [v if len(v) <= 24 else v[:23] + "…" for v in different[:2]]
    return " ".join(shown) + (f" and {len(different) - 2} more" if len(different) > 2 else "")
