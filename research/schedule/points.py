"""Schedulers side by side: the points each takes, the curves their models were trained on, and what the linter says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.errors import ConfigError, ModelError
from research.jobs.build import sigmas_named, sigmas_of
from research.jobs.compose import Composer
from research.labels import value_label
from research.models.scheduler_config import ModelSchedule, scheduler_config
from research.schedule.arguments import LEVELS, OPTIONS, Values, number, one, product, several, text
from research.schedule.curves import Curve, Point

if TYPE_CHECKING:
    from research.solvers import SchedulerSpec, StagePlan
    from research.solvers.levels import Schedule

# one of its own for flow schedulers beside a model of another kind: how they step can be seen all the same
_FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
DEFAULTS: Mapping[str, Values] = {
    "scheduler": ["ddim"],
    "sigmas": ["model"],
    "steps": [25],
    "model": ["emoji"],
    "strength": [1.0],
    "parity": [False],
}


@dataclass(frozen=True)
class Series:
    """One scheduler with its settings.

    Attributes:
        label: what tells it from the others.
        name, class_name, options, steps, strength: as composed.
        points: of all steps; empty where it cannot make them.
        curve: over training timesteps; None where it is not known.
        findings: of the linter.
        flow: whether sigma is a flow time.
        remark: what a reader has to know besides, or empty.
        plan: the evaluations of a native solver with what leads from each to the next; empty where diffusers' class is run.
    """

    label: str
    name: str
    class_name: str
    options: Mapping[str, Any]
    steps: int
    strength: float
    points: Sequence[Point]
    curve: Curve | None
    findings: Sequence[Any] = field(default_factory=list)
    flow: bool = False
    remark: str = ""
    plan: Sequence[StagePlan] = ()

    @property
    def start(self) -> int:
        """The stage at which the part that is run begins."""
        return next((p.stage for p in self.points if p.run), len(self.points))


class OwnChoices:
    """The groups ``scheduler`` and ``sigmas`` with the choices of a folder of the user's own among them.

    Raises:
        ConfigError: here and in the methods: no such folder or choice, or a config that cannot be composed.
    """

    def __init__(self, folder: Path):
        self._composer = Composer(str(folder))

    def scheduler(self, name: str, options: Mapping[str, Any]) -> SchedulerSpec:
        from research.solvers import SchedulerSpec

        node = self._composed("scheduler", name)
        return SchedulerSpec(node["name"], node["class_name"], {**node["options"], **options})

    def sigmas(self, name: str, options: Mapping[str, Any]) -> Schedule | None:
        return sigmas_of({"sigmas": {**(self._composed("sigmas", name) or {}), **options}})

    def _composed(self, group: str, name: str) -> Any:
        lines = self._composer.normalise(["prompts=[a cat]", "metrics=none", f"{group}={name}"])
        return self._composer.job(self._composer.master([]), lines)[group]


def compose(values: Mapping[str, Values], *, draw: bool = True, config_dir: Path | None = None) -> list[Series]:
    """Every combination of the values given on the command line.

    Args:
        values: by key, `DEFAULTS`, ``scheduler.options.NAME`` and ``sigmas.NAME``.
        draw: also work out points and curves.
        config_dir: a folder of config groups of the user's own, or None.

    Raises:
        ConfigError: a value that cannot be, or a scheduler that cannot be built.
        ModelError: no such model.
    """
    model = _model(text("model", one("model", values["model"])))
    parity = one("parity", values["parity"])
    if not isinstance(parity, bool):
        raise ConfigError(f"parity: found {parity!r}; accepted: true, false.")
    keys = [key for key in values if key not in ("model", "parity")]
    told_apart = several(values)
    own = None if config_dir is None else OwnChoices(config_dir)
    series = []
    for row in product(values, keys):
        label = ", ".join([str(row["scheduler"]), *(_label(k, row[k]) for k in told_apart if k != "scheduler")])
        series.append(_series(row, label, model, parity, draw, own))
    return series


def _model(path: str) -> ModelSchedule:
    found = scheduler_config(path)
    if found is None:
        raise ModelError(
            f"model.path: {path} has no scheduler config at hand; accepted is a zoo model, a directory in diffusers "
            "layout, or a hub id that is in the cache."
        )
    return found


def _label(key: str, value: Any) -> str:
    name = key.removeprefix(OPTIONS).removeprefix(LEVELS)
    if isinstance(value, list):
        value = tuple(value)
    if key == "steps":
        return f"{value_label(value)} steps"
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return value if isinstance(value, str) else f"{name} {value_label(value)}"


def _series(
    row: Mapping[str, Any], label: str, model: ModelSchedule, parity: bool, draw: bool, choices: OwnChoices | None
) -> Series:
    from research.schedule.curves import points, training_curve
    from research.solvers import NativeSolver, SolverFactory, resolve
    from research.solvers.lint.linter import lint
    from research.solvers.quiet import quiet

    name = text("scheduler", row["scheduler"])
    steps = number(1, whole=True)("steps", row["steps"])
    strength = float(number(0.0, 1.0)("strength", row["strength"]))
    options = {key.removeprefix(OPTIONS): value for key, value in row.items() if key.startswith(OPTIONS)}
    spec = resolve(name, options) if choices is None else choices.scheduler(name, options)
    levels = {key.removeprefix(LEVELS): value for key, value in row.items() if key.startswith(LEVELS)}
    if choices is None or not isinstance(row["sigmas"], str):
        sigmas = sigmas_named(row["sigmas"], levels)
    else:
        sigmas = choices.sigmas(row["sigmas"], levels)
    own = getattr(sigmas, "steps", None)  # of a list
    steps = own if isinstance(own, int) and row["steps"] == DEFAULTS["steps"][0] else steps
    asked = name if choices is None else spec
    findings = lint(asked, options, model.config, steps, strength, parity=parity, latent=model.latent, sigmas=sigmas)
    base, remark = model.config, ""
    if any(finding.rule == "cannot-be-built" for finding in findings):
        # raises again unless it is all about the kind of model
        base, remark = _FLOW, f"on a flow of its own: {model.path} is no flow model"
    with quiet():
        factory = SolverFactory(asked, options, base, parity=parity, sigmas=sigmas, strict=False)
        flow = factory.kind == "flow"
        found: list[Point] = []
        plan: tuple[StagePlan, ...] = ()
        if draw:
            try:
                solver = factory()
                timeline = solver.timeline(steps)
                sliced = factory().timeline(steps, strength=strength)
                # by step: a slice of PNDM begins with a warm-up of its own
                first = sliced[0].step if len(sliced) else steps
                start = next((i for i, stage in enumerate(timeline) if stage.step >= first), len(timeline))
                found = points(timeline, start, flow=flow)
                if isinstance(solver, NativeSolver) and solver.table:
                    plan = solver.table.plan
            except ConfigError:
                remark = next(f.message for f in findings if f.severity == "error")
        curve = training_curve(factory.scheduler, flow=flow) if draw else None
    return Series(
        label,
        name,
        factory.cls.__name__,
        dict(spec.options),
        steps,
        strength,
        found,
        curve,
        findings,
        flow,
        remark,
        plan,
    )
