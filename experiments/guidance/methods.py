"""The methods of the study and the five settings that each is tuned over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NONE, CFG, CFG_INTERVAL = "no guidance", "CFG", "CFG, interval"
MODELS = ("emoji", "emoji_flow")


@dataclass(frozen=True)
class Setting:
    """One of the settings of a method.

    Attributes:
        label: what is set, for tables.
        keys: of the config, as a point of a sweep has them.
        cost: network evaluations a step.
    """

    label: str
    keys: Mapping[str, Any]
    cost: float

    def steps(self, evaluations: int) -> int:
        """The steps that cost so many evaluations, as nearly as whole ones can."""
        return max(1, round(evaluations / self.cost))

    def point(self, evaluations: int) -> dict[str, Any]:
        """As a line of a sweep's file of points."""
        return {**self.keys, "steps": self.steps(evaluations)}


@dataclass(frozen=True)
class Method:
    """A method with what it is tuned over.

    Attributes:
        name: in figures and tables.
        kind: "baseline", "rule" (another combination of the predictions of CFG), "branch" (a prediction of another kind) or
            "on CFG" (a modifier or a hook).
        settings: five; one where nothing is to be tuned.
        models: that it runs on.
        noisy: whether it draws noise in each step, and has no solver error.
    """

    name: str
    kind: str
    settings: Sequence[Setting]
    models: Sequence[str] = MODELS
    noisy: bool = False


def _scales(guidance: str, *scales: float, cost: float = 2, **more: Any) -> tuple[Setting, ...]:
    """The scale alone is tuned."""
    return tuple(
        Setting(f"scale {scale:g}", {"guidance": guidance, "guidance.scale": scale, **more}, cost) for scale in scales
    )


def _on_cfg(guidance: str, *pairs: tuple[float, float], added: float = 1) -> tuple[Setting, ...]:
    """The scale and that of the CFG below are tuned; 1 is none."""
    return tuple(
        Setting(
            f"scale {scale:g}, " + (f"on CFG {base:g}" if base != 1 else "alone"),
            {"guidance": guidance, "guidance.scale": scale, "guidance.base.scale": base},
            added + (1 if base == 1 else 2),
        )
        for scale, base in pairs
    )


def _modified(modifier: str, *scales: float, **more: Any) -> tuple[Setting, ...]:
    """CFG with a modifier, its scale tuned."""
    return _scales("cfg", *scales, **{"guidance/modifiers": [modifier]}, **more)


def _interval(*chosen: tuple[float, float, float]) -> tuple[Setting, ...]:
    return tuple(
        Setting(
            f"scale {scale:g}, steps {low:g} to {high:g}",
            {
                "guidance": "cfg",
                "guidance.scale": scale,
                "guidance/modifiers": ["interval"],
                "guidance.modifiers.interval.steps": [low, high],
            },
            1 + high - low,
        )
        for scale, low, high in chosen
    )


def _nag(*pairs: tuple[float, float]) -> tuple[Setting, ...]:
    below = {"_target_": "research.guidance.CFG"}
    return tuple(
        Setting(
            f"scale {scale:g}, " + (f"on CFG {base:g}" if base != 1 else "alone"),
            {"guidance": "nag", "guidance.scale": scale}
            | ({} if base == 1 else {"guidance.base": {**below, "scale": base}}),
            1 if base == 1 else 2,
        )
        for scale, base in pairs
    )


LOW = (1.5, 2.0, 3.0, 4.5, 7.0)  # scales of what acts as CFG does
HIGH = (2.0, 3.0, 5.0, 7.5, 10.0)  # and of what is made for high ones

METHODS = [
    Method(NONE, "baseline", _scales("cfg", 1.0, cost=1)),
    Method(CFG, "baseline", _scales("cfg", *LOW)),
    Method(CFG_INTERVAL, "baseline", _interval((2, 0.2, 0.8), (3, 0.2, 0.8), (5, 0.2, 0.8), (3, 0, 0.6), (3, 0.4, 1))),
    Method("CFG++", "rule", _scales("cfg_plus_plus", 0.2, 0.4, 0.6, 0.8, 1.0)),
    Method("CFG-Zero*", "rule", _scales("cfg_zero", *LOW)),
    Method("APG", "rule", _scales("apg", *HIGH)),
    Method("TCFG", "rule", _scales("tcfg", 2, 3, 4, 6, 9)),
    Method("FDG", "rule", _scales("fdg", 2, 3, 4, 6, 9)),
    Method("MAMBO-G", "rule", _scales("magnitude_aware", *HIGH)),
    Method("feedback", "rule", _scales("feedback", 2, 4, 7, 10, 15)),
    Method("SMC-CFG", "rule", _scales("smc_cfg", *LOW)),
    Method("Rectified-CFG++", "rule", _scales("rectified_cfg", 0.5, 1, 2, 3, 5, cost=3), ("emoji_flow",)),
    Method("ICG", "branch", _scales("icg", 1.25, 1.5, 2, 3, 5), noisy=True),
    Method("TSG", "branch", _scales("tsg", 2, 3, 5, 8, 12)),
    Method("autoguidance", "branch", _on_cfg("autoguidance", (1.5, 1), (2.5, 1), (1.5, 2), (2.5, 2), (1.5, 3))),
    Method("PAG", "branch", _on_cfg("pag", (1, 1), (3, 1), (1, 2), (3, 2), (1, 3))),
    Method("SEG", "branch", _on_cfg("seg", (1, 1), (3, 1), (1, 2), (3, 2), (1, 3)), ("emoji",)),
    Method("SLG", "branch", _on_cfg("slg", (0.5, 1), (1, 1), (0.25, 2), (0.5, 2), (0.25, 3))),
    Method("SAG", "branch", _on_cfg("sag", (0.25, 1), (0.5, 1), (0.25, 2), (0.5, 2), (0.25, 3)), ("emoji",)),
    Method("SWG", "branch", _on_cfg("swg", (0.5, 1), (1, 1), (0.25, 2), (0.5, 2), (0.25, 3), added=4)),
    Method("TPG", "branch", _on_cfg("tpg", (1, 1), (3, 1), (1, 2), (3, 2), (1, 3))),
    Method("NAG", "branch", _nag((2, 1), (5, 1), (2, 2), (5, 2), (5, 3))),
    Method("PLADIS", "branch", _on_cfg("pladis", (1, 1), (2, 1), (1, 2), (2, 2), (1, 3), added=0), ("emoji",)),
    Method("rescale", "on CFG", _modified("rescale", *HIGH)),
    Method("threshold", "on CFG", _modified("threshold", *HIGH)),
    Method("mimic threshold", "on CFG", _modified("mimic_threshold", 3, 4, 5, 7.5, 10)),
    Method("linear schedule", "on CFG", _modified("schedule", *HIGH)),
    Method("epsilon scaling", "on CFG", _modified("epsilon_scaling", *LOW)),
    Method("TSR", "on CFG", _modified("tsr", *LOW)),
    Method("HiGS", "on CFG", _modified("higs", *LOW)),
    Method("momentum", "on CFG", _modified("momentum", *LOW)),
    Method("CADS", "on CFG", _scales("cfg", *HIGH, hooks="cads"), noisy=True),
    Method("FreeU", "on CFG", _scales("cfg", *LOW, hooks="freeu"), ("emoji",)),
]


def methods_of(model: str) -> list[Method]:
    """Those that run on a model, in the order of the tables."""
    return [method for method in METHODS if model in method.models]
