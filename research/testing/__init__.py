"""What solvers, guidance and plugs are tried on: models whose every prediction is known in closed form, small networks, and
`check_plug`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from research.lazy import lazy_names

if TYPE_CHECKING:
    from research.testing.plug_check import Report as Report
    from research.testing.plug_check import check_plug as check_plug
    from research.testing.plug_rules import Finding as Finding

_LAZY = {
    "Finding": "research.testing.plug_rules",
    "Report": "research.testing.plug_check",
    "check_plug": "research.testing.plug_check",
}

__all__ = ["Finding", "Report", "check_plug"]


__getattr__ = lazy_names(__name__, _LAZY)
