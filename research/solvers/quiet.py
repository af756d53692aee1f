"""What diffusers and torchsde say while schedulers are built and stepped, held back: what of it matters is said by the linter."""

from __future__ import annotations

import warnings

# Brownian trees, of times that differ in their last bit
warnings.filterwarnings("ignore", message=r"Should have t[ab]", category=UserWarning, module=r"torchsde\b")


class quiet:
    """Diffusers' own log lines about configs, held back for a while."""

    def __enter__(self) -> None:
        from diffusers.utils import logging

        self._logging = logging
        self._before = logging.get_verbosity()
        self._set(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self._set(self._before)

    def _set(self, level: int) -> None:
        if self._logging.get_verbosity() != level:  # setting it empties the caches of all loggers of the process
            self._logging.set_verbosity(level)
