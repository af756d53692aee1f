"""The inner blocks of a UNet, made to compute some rows of a batch alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from research.errors import SamplingError

Rows = Callable[[Tensor], Tensor | None]
Merged = Callable[[Tensor | None], Tensor]


class DeepPart:
    """What lies between the outermost blocks of a UNet: all of it is skipped for the rows of a batch that are not wanted.

    Args:
        unet: `UNet2DConditionModel` or `UNet2DModel`.
        blocks: outermost blocks on either side that do not belong to it.
    """

    def __init__(self, unet: Any, blocks: int):
        middle = [] if unet.mid_block is None else [unet.mid_block]
        self.modules: list[Any] = [*unet.down_blocks[blocks:], *middle, *unet.up_blocks[:-blocks]]
        self.residuals = [0] * len(self.modules)  # how many of them a block hands on, known once it was computed
        self._forwards: list[Callable[..., Any]] = []  # made once: a compiled network knows them again
        self._now: tuple[Rows, Merged] | None = None
        self._calls = self._batch = 0
        self._rows: Tensor | None = None

    @contextmanager
    def _attached(self) -> Iterator[None]:
        """The blocks have another ``forward``, and afterwards their own again."""
        if not self._forwards:
            self._forwards = [partial(self._forward, k, module.forward) for k, module in enumerate(self.modules)]
        before = [module.__dict__.get("forward") for module in self.modules]
        for module, forward in zip(self.modules, self._forwards, strict=True):
            module.__dict__["forward"] = forward
        try:
            yield
        finally:
            for module, own in zip(self.modules, before, strict=True):
                if own is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.__dict__["forward"] = own

    @contextmanager
    def used(self, rows: Rows, merged: Merged) -> Iterator[None]:
        """While it lasts, a call of the network computes the deep part for some rows; without it, for all as ever.

        Args:
            rows: of the input [B, c, h, w] of the deep part: the rows that are computed, or None for all.
            merged: of the output of these rows (None if there were none): that of all rows [B, c, h, w].

        Raises:
            SamplingError: the network was not called, or more than once.
        """
        self._now, self._calls = (rows, merged), 0
        try:
            with self._attached():
                yield
        finally:
            self._now = None
        if self._calls != 1:
            raise SamplingError(
                f"hooks.feature_cache: the network was called {self._calls} times for the branches of one stage; "
                "accepted is once."
            )

    def _forward(self, place: int, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._now is None:
            return own(*args, **kwargs)
        hidden = args[0] if args else kwargs["hidden_states"]
        if place == 0:
            self._batch, self._rows, self._calls = len(hidden), self._now[0](hidden), self._calls + 1
        returned: Any = None
        if self._rows is None or len(self._rows):
            cut = self._cut
            returned = own(*map(cut, args), **{name: cut(value) for name, value in kwargs.items()})
            if isinstance(returned, tuple):
                self.residuals[place] = len(returned[1])
        if place == len(self.modules) - 1:
            return self._now[1](returned)
        if returned is not None:
            return returned
        # nobody looks at it: all that takes it in is skipped as well
        count = self.residuals[place]
        return (hidden, (hidden,) * count) if count else hidden

    def _cut(self, value: Any) -> Any:
        """The wanted rows of what has all of them. What the deep part computed itself has no others."""
        if self._rows is None:
            return value
        if isinstance(value, Tensor):
            return value[self._rows] if value.ndim and len(value) == self._batch else value
        if isinstance(value, tuple | list):
            return type(value)(map(self._cut, value))
        if isinstance(value, Mapping):
            return {key: self._cut(entry) for key, entry in value.items()}
        return value
