"""From a scheduler's name, class name or object to fresh solvers."""

from __future__ import annotations

import copy
import importlib
import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from research.errors import ConfigError, nearest
from research.sampling.interfaces import Solver
from research.sampling.prediction import Kind
from research.solvers.can_sample import check_can_sample
from research.solvers.diffusers_solver import STEP_ARGUMENTS_OF_THE_LOOP, DiffusersSolver
from research.solvers.levels import Levels, TrainedLevels
from research.solvers.linear import LinearSolver
from research.solvers.names import OF_MODEL, SchedulerSpec, resolve
from research.solvers.native.counterparts import COUNTERPARTS
from research.solvers.native.upstream_options import clip_of
from research.solvers.native_solver import NativeSolver, offers_of
from research.solvers.probing import settings_key
from research.solvers.quiet import quiet
from research.solvers.trigflow import TRIGFLOW, SCMSolver, TrigFlowGrid, is_trigflow
from research.solvers.upstream_levels import Shape, Told, levels_of, make_timesteps, nothing_told, shifted, trained_of

_KINDS: dict[str, Kind] = {
    "epsilon": "epsilon",
    "v_prediction": "v",
    "sample": "x0",
    "flow_prediction": "flow",
    "trigflow": "v",
}


_CLIP = {"clip_sample", "clip_sample_range"}  # options of every native solver, whether its class has them or not
_SPACED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")  # of diffusers' flow scheduler too
_SCM = "SCMScheduler"
_ANGLES = (
    "the trigonometric flow of this model; accepted are SCMScheduler (scheduler=model) and solvers of the project's own (euler, "
    "ddim, dpmpp_2m, ...)"
)
_TABLES: dict[Any, dict[Any, Any]] = {}
_MOST_TABLES = 256  # solvers and grids whose tables are kept


class SolverFactory:
    """Builds a fresh `Solver` at each call, always from the same frozen config.

    A class of diffusers that has a native counterpart is replaced by it, at the noise levels that the class would visit; with
    ``parity``, and where the config asks for what the counterpart does not do (thresholding, say), the class itself is driven.

    Args:
        scheduler: short name, class name, dotted path, `SchedulerSpec`, a `LinearSolver` or its class, a diffusers scheduler
            object (its class and config are read, the object is left alone), or a `Solver` object, which is copied for each run.
        options: arguments of the scheduler's ``__init__`` (they replace the model's own config) or of its ``step`` (``eta``).
        base_config: the scheduler config of the model, as ``from_config`` takes it.
        parity: leave the object as the diffusers pipeline would.
        sigmas: the noise levels to visit: an object with ``levels(trained, steps)``, or None for the scheduler's own.
        schedule: what the model has a scheduler told besides the number of steps; see `research.solvers.upstream_levels.Told`.
        trained: the noise levels that the model was trained on, where no scheduler config says them exactly; the config is
            then for diffusers' classes that have no native counterpart.
        strict: refuse a class that would take the model's output for something else; the linter says it in its own way.

    Attributes:
        native: the native solver, or None where diffusers' class is driven.
        trained: the noise levels that the model was trained on.

    Raises:
        ConfigError: unknown scheduler or option, or a scheduler for another kind of prediction.
    """

    native: LinearSolver | None = None

    def __init__(
        self,
        scheduler: Any,
        options: Mapping[str, Any] | None,
        base_config: Mapping[str, Any],
        *,
        parity: bool = False,
        sigmas: Any = None,
        schedule: Told | None = None,
        trained: TrainedLevels | None = None,
        strict: bool = True,
    ):
        self.parity, self.sigmas = parity, checked_sigmas(sigmas)
        self._trained = trained
        self._schedule = nothing_told if schedule is None else schedule
        options = dict(options or {})
        self._own: Any = None  # a Solver object of the user's
        self._known: dict[Any, Any] | None = None
        flow, own_config = _is_flow(base_config), base_config
        self._angles = is_trigflow(base_config)
        if self._angles:
            self._trained = trained or TRIGFLOW
            self.sigmas = self.sigmas or (None if parity else TrigFlowGrid())
            # what classes that know no angles take
            base_config = {"prediction_type": "v_prediction", "num_train_timesteps": TRIGFLOW.n_timesteps}
        if isinstance(scheduler, str | SchedulerSpec):
            spec = scheduler if isinstance(scheduler, SchedulerSpec) else resolve(scheduler)
            own = spec.class_name == OF_MODEL
            cls = _scheduler_class(_of_model(own_config) if own else spec.class_name)
            self.name = cls.__name__ if own else spec.name
            options = {**spec.options, **options}
            if issubclass(cls, LinearSolver):
                self._of_native(_construct(cls, options, self.name), base_config)
                return
            self.cls: Any = cls
            self._config = dict(own_config if cls.__name__ == _SCM else base_config)
        elif isinstance(scheduler, type) and issubclass(scheduler, LinearSolver):
            self.name = scheduler.__name__
            self._of_native(_construct(scheduler, options, self.name), base_config)
            return
        elif isinstance(scheduler, LinearSolver):
            self.name = type(scheduler).__name__
            if options:
                raise ConfigError(
                    f"scheduler_options: {self.name} is built already; accepted are options of its class."
                )
            self._of_native(scheduler, base_config)
            return
        elif _drives(type(scheduler)) and hasattr(scheduler, "config"):
            self.cls = type(scheduler)
            self.name = self.cls.__name__
            self._config = dict(scheduler.config)
            _check_untouched(scheduler)
        elif all(hasattr(scheduler, name) for name in ("timeline", "step", "supports", "kind")):
            if options or sigmas is not None:
                raise ConfigError(
                    "scheduler: a Solver object brings its own options and noise levels; accepted are none besides."
                )
            self._own, self.name, self.kind = scheduler, scheduler.name, scheduler.kind
            return
        else:
            raise ConfigError(
                f"scheduler: found {scheduler!r}; accepted is a name, a diffusers scheduler object, a LinearSolver or a Solver."
            )
        self._init_options, self.step_options = self._route(options)
        upstream = self.cls.__module__.startswith("diffusers.")
        counterpart = COUNTERPARTS.get(self.cls.__name__) if upstream and not parity else None
        if flow and "FlowMatch" not in self.cls.__name__ and counterpart and not self._asks_for_flow():
            # the solver on a flow model: its own class knows no such levels, the model's own scheduler does
            given = {
                **self.cls.from_config({}, **self._init_options).config,
                "clip_sample": False,
                **self._clip_options,
            }
            solver = counterpart.from_upstream(given, self.step_options) or counterpart()
            # options of the class that its own scheduler has too say the levels
            spaced = {key: value for key, value in self._init_options.items() if key in _SPACED}
            self._of_native(_clipped(solver, given), base_config, spaced)
            return
        self._check_angles(own_config)
        self._untouched = self._build()
        if upstream and counterpart is None:
            check_can_sample(self._untouched, self.name, self.step_options)
        self.kind = self._kind(self._untouched)
        _check_kind(self.name, self.cls, self.kind, own_config)
        if strict and not _is_flow(own_config):
            _check_prediction(self.cls, own_config)
        self.trained = self._trained or trained_of(self._untouched, self._config, flow=self.kind == "flow")
        if counterpart and is_upstream(self._untouched):
            # with the keys of the model's config that the class has no argument for
            config = {**self._untouched.config, **self._clip_options}
            found = counterpart.from_upstream(config, self.step_options)
            self.native = None if found is None else _clipped(found, {} if flow else config)
        if self.native:
            self._offers = self._native_offers()
        elif self._angles and not parity:
            raise ConfigError(f"scheduler: {self.name} with these options cannot walk {_ANGLES}.")
        elif self._clip_options:
            raise ConfigError(
                f"scheduler.options.{next(iter(self._clip_options))}: {self.cls.__name__} does not clip with its other options "
                "as they are; accepted is a scheduler whose class does (ddim, ddpm, heun)."
            )

    def __call__(self) -> Solver:
        if self._own is not None:
            return copy.deepcopy(self._own)
        if self.native is not None:
            return NativeSolver(
                self.native,
                self.levels,
                name=self.name,
                kind=self.kind,
                offers=self._offers,
                scheduler=self._untouched,
                known=self._tables(),
            )
        driver = SCMSolver if self._angles else DiffusersSolver
        return driver(
            # a copy of one that was never used: some classes take a tenth of a second to construct
            copy.deepcopy(self._untouched),
            name=self.name,
            kind=self.kind,
            step_options=self.step_options,
            parity=self.parity,
            levels=None if self.sigmas is None else self.levels,
            grid=self.sigmas,
            told=self._told,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> SolverFactory:
        """Itself: it never changes, and a copy of a solver that it built needs no copy of the model that it knows."""
        return self

    @property
    def scheduler(self) -> Any:
        """The scheduler object of diffusers, untouched: whose place a native solver takes, or whose levels it visits."""
        return self._untouched

    def levels(self, steps: int, shape: Shape | None = None) -> Levels:
        """The grid of a run of so many steps: that of ``sigmas``, or the scheduler's own.

        Args:
            shape: of the latents, which the levels of some models depend on; by default that of the model's own size.

        Raises:
            ConfigError: a count that the grid cannot make.
        """
        told = self._told(self._untouched, steps, shape)
        trained = self.trained if self.trained.flow is False else shifted(self.trained, self._untouched, told)
        if self.sigmas is not None:
            found = self.sigmas.levels(trained, steps)
            found.check(type(self.sigmas).__name__.lower())
            return found
        return levels_of(self._untouched, self.name, trained, steps, told)

    def _told(self, scheduler: Any, steps: int, shape: Shape | None) -> Mapping[str, Any]:
        return self._schedule(scheduler, steps, shape, self.parity)

    def first_timestep(self, steps: int) -> float:
        """Where diffusers' class itself begins with so many steps, not yet corrected: quick to ask.

        Raises:
            Exception: whatever the class raises for a count that it cannot make.
        """
        scheduler = copy.copy(self._untouched)
        make_timesteps(scheduler, self.name, steps, told=self._told(scheduler, steps, None))
        return float(scheduler.timesteps[0])

    def _of_native(
        self, solver: LinearSolver, base_config: Mapping[str, Any], levels: Mapping[str, Any] | None = None
    ) -> None:
        """Take a native solver, at the levels of the class that it names, or on a flow model of the model's own scheduler."""
        if self.parity:
            raise ConfigError(
                f"scheduler: {self.name} has no counterpart in diffusers, so there is no parity; accepted is parity=false, or a "
                "class of diffusers."
            )
        flow = _is_flow(base_config)
        if flow:  # the kind is known, and the class of levels has no such setting
            base_config = {key: value for key, value in base_config.items() if key != "prediction_type"}
            base_config.setdefault("shift", base_config.get("flow_shift", 1.0))  # as multistep classes call it
        self.native, self.step_options, self._init_options = (
            _clipped(solver, {} if flow else base_config),
            {},
            dict(levels or {}),
        )
        self.cls = _scheduler_class("FlowMatchEulerDiscreteScheduler" if flow else solver.levels_like)
        self._config = dict(base_config)
        self._untouched = self._build()
        self.kind = "flow" if flow else self._kind(self._untouched)
        self.trained = self._trained or trained_of(self._untouched, self._config, flow=flow)
        self._offers = self._native_offers()

    def _tables(self) -> dict[Any, Any]:
        """Where the tables of this solver and grid are kept: shared by all samplers where both are the project's own, whose
        settings say all; for plugs of somebody else's, by the runs of this sampler."""
        if self._known is None:
            own = [
                type(plug).__module__.startswith("research.") for plug in (self.native, self.sigmas) if plug is not None
            ]
            key = self.name, self.native, self.sigmas, self.kind, settings_key(self._untouched), self._trained
            if len(_TABLES) > _MOST_TABLES:
                _TABLES.clear()
            self._known = _TABLES.setdefault(key, {}) if all(own) else {}
        return self._known

    def _native_offers(self) -> frozenset[str]:
        """What the native solver offers, looked up on a made-up grid."""
        assert self.native is not None
        highest = min(self.trained.sigma_max, 10.0)
        lowest = self.trained.sigma_min
        count = 7
        ratio = (lowest / highest) ** (1 / (count - 1))
        grid = [self.trained.at_sigma(highest * ratio**i) for i in range(count)]
        return offers_of(self.native, Levels((*grid, self.trained.clean()), self.trained))

    def _check_angles(self, config: Mapping[str, Any]) -> None:
        """Refuse what cannot walk trigonometric flow on a model of it, and its scheduler on any other.

        Raises:
            ConfigError: it is one of these.
        """
        of_angles = self.cls.__name__ == _SCM
        if of_angles and not self._angles:
            raise ConfigError(
                f"scheduler: {self.name} is for models of trigonometric flow (Sana-Sprint); this model predicts "
                f"{'flow' if _is_flow(config) else config.get('prediction_type', 'epsilon')}."
            )
        if self._angles and not of_angles and (self.parity or self.cls.__name__ not in COUNTERPARTS):
            parity = " with parity, whose pipeline takes it alone" if self.parity else ""
            raise ConfigError(f"scheduler: {self.name} cannot walk {_ANGLES}{parity}.")

    def _asks_for_flow(self) -> bool:
        """Whether the class is configured for flow models by options of its own (``use_flow_sigmas``)."""
        return bool(self._init_options.get("use_flow_sigmas") or self._config.get("use_flow_sigmas"))

    def _build(self) -> Any:
        try:
            with quiet():
                return self.cls.from_config(self._config, **self._init_options)
        except ImportError as error:
            raise ConfigError(f"scheduler: {self.name} needs a package that is not installed: {error}") from error
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ConfigError(f"scheduler: {self.name} does not accept its options: {error}") from error

    def _route(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        init = set(inspect.signature(self.cls.__init__).parameters) - {"self", "kwargs", "args"}
        step = set(inspect.signature(self.cls.step).parameters) - STEP_ARGUMENTS_OF_THE_LOOP
        native = not self.parity and self.cls.__name__ in COUNTERPARTS and self.cls.__module__.startswith("diffusers.")
        clip = _CLIP - init if native else set()
        self._clip_options = {key: value for key, value in options.items() if key in clip}
        options = {key: value for key, value in options.items() if key not in clip}
        for key in options:
            if key not in init | step:
                raise ConfigError(
                    f"scheduler.options: {self.name} has no option {key!r}.{nearest(key, init | step | clip)} "
                    f"Accepted: {', '.join(sorted(init | step | clip))}."
                )
        # a few names stand in both signatures; the constructor's is what the class is configured by
        return {k: v for k, v in options.items() if k in init}, {k: v for k, v in options.items() if k not in init}

    def _kind(self, scheduler: Any) -> Kind:
        found = getattr(scheduler.config, "prediction_type", None)
        # a config keeps keys of the model's own scheduler that this class does not know
        if found is None or "prediction_type" not in inspect.signature(self.cls.__init__).parameters:
            return "flow" if "FlowMatch" in self.cls.__name__ else "epsilon"
        if found not in _KINDS:
            raise ConfigError(f"scheduler.options.prediction_type: found {found!r}; accepted: {', '.join(_KINDS)}.")
        return _KINDS[found]


def is_upstream(scheduler: Any) -> bool:
    """Whether all that a scheduler does is diffusers' own code: no subclass from elsewhere, no method replaced.

    Only then may a table stand for its ``step``: of a step that somebody else wrote nobody knows what it looks at (neighbouring
    pixels, other images, sizes), and no probe of it proves anything.
    """
    methods = [value for cls in type(scheduler).__mro__ for value in vars(cls).values() if inspect.isfunction(value)]
    replaced = [value for value in vars(scheduler).values() if inspect.isfunction(value) or inspect.ismethod(value)]
    modules = {cls.__module__ for cls in type(scheduler).__mro__ if cls is not object}
    modules |= {method.__module__ for method in (*methods, *replaced)}
    return all(str(module).partition(".")[0] in ("diffusers", "huggingface_hub", "torch") for module in modules)


def _clipped(solver: LinearSolver, config: Mapping[str, Any]) -> LinearSolver:
    """A solver that cuts data predictions where it says so itself, or else where the config of the model does."""
    limit = clip_of(config) if solver.clip is None else solver.clip
    limit = None if limit == math.inf else limit
    if solver.clip != limit:
        solver = copy.copy(solver)
        object.__setattr__(solver, "clip", limit)  # of somebody else's class nobody knows how it is built
    return solver


def checked_sigmas(sigmas: Any) -> Any:
    """Noise levels as a schedule: an object with ``levels(trained, steps)``, or None.

    Raises:
        ConfigError: it is something else.
    """
    if sigmas is None or (hasattr(sigmas, "levels") and not isinstance(sigmas, type)):
        return sigmas
    raise ConfigError(
        f"sigmas: found {sigmas!r}; accepted is an object with levels(trained, steps), or None for the model's own."
    )


def _check_untouched(scheduler: Any) -> None:
    """Refuse a scheduler object that was given timesteps or sigmas of its own: a fresh one is built for each run, without them.

    Raises:
        ConfigError: its timesteps are others than it makes itself.
    """
    steps, times = getattr(scheduler, "num_inference_steps", None), getattr(scheduler, "timesteps", None)
    if not steps or not isinstance(times, Tensor):
        return
    fresh = type(scheduler).from_config(scheduler.config)
    try:
        fresh.set_timesteps(int(steps))
    except (ValueError, LookupError, RuntimeError, TypeError, AttributeError):
        return
    if len(fresh.timesteps) != len(times) or not torch.allclose(
        fresh.timesteps.double(), times.cpu().double(), atol=1e-3
    ):
        shown = ", ".join(f"{float(time):g}" for time in times[:4])
        raise ConfigError(
            f"scheduler: this {type(scheduler).__name__} was given timesteps of its own ({shown}, ...), which no run keeps; "
            "accepted is one without, and sigmas=Given(timesteps=[...]) of research.sigmas."
        )


def _construct(cls: Any, options: Mapping[str, Any], name: str) -> LinearSolver:
    """A linear solver of a class, with its options.

    Raises:
        ConfigError: an option that it does not have, or does not accept.
    """
    accepted = [key for key in inspect.signature(cls).parameters if key not in ("args", "kwargs")]
    for key in options:
        if key not in accepted:
            raise ConfigError(
                f"scheduler.options: {name} has no option {key!r}.{nearest(key, accepted)} Accepted: "
                f"{', '.join(sorted(accepted)) or 'none'}."
            )
    try:
        return cls(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"scheduler: {name} does not accept its options: {error}") from error


def _of_model(config: Mapping[str, Any]) -> str:
    """The class of a model's own scheduler; where its config names none, that of DDIM, or of Euler's method for flow."""
    name = config.get("_class_name")
    if isinstance(name, str):
        return name
    return "FlowMatchEulerDiscreteScheduler" if _is_flow(config) else "DDIMScheduler"


def _is_flow(config: Mapping[str, Any]) -> bool:
    """Whether the model of a scheduler config predicts flow."""
    return "FlowMatch" in str(config.get("_class_name", "")) or config.get("prediction_type") == "flow_prediction"


def _check_kind(name: str, cls: type, kind: Kind, base_config: Mapping[str, Any]) -> None:
    """A flow scheduler walks a path that a noise-predicting model was not trained on, and the other way round."""
    model_is_flow = _is_flow(base_config)
    if (kind == "flow") != model_is_flow:
        trained = "flow" if model_is_flow else base_config.get("prediction_type", "epsilon")
        raise ConfigError(
            f"scheduler: {name} ({cls.__name__}) is for models that predict {'flow' if kind == 'flow' else 'noise'}; "
            f"this model predicts {trained}."
        )


def _check_prediction(cls: type, config: Mapping[str, Any]) -> None:
    """A class without ``prediction_type`` takes what a model puts out for noise, whatever it is."""
    wanted = config.get("prediction_type") or "epsilon"
    if wanted != "epsilon" and "prediction_type" not in inspect.signature(cls).parameters:
        raise ConfigError(
            f"prediction_type: found {wanted!r} in the model's config, and {cls.__name__} takes every output for noise "
            "(epsilon); accepted here are models that predict epsilon."
        )


def _scheduler_class(class_name: str) -> Any:
    if "." in class_name:
        module, _, name = class_name.rpartition(".")
        try:
            cls = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"scheduler: cannot import {class_name!r}: {error}") from error
        if not (isinstance(cls, type) and issubclass(cls, LinearSolver)) and not (
            _drives(cls) and hasattr(cls, "from_config")
        ):
            raise ConfigError(
                f"scheduler: {class_name!r} is no scheduler class: it lacks from_config, set_timesteps or step, and is no "
                "LinearSolver."
            )
        return cls
    import diffusers

    cls = getattr(diffusers, class_name, None) if hasattr(diffusers, class_name) else None
    if not _drives(cls):
        names = [n for n in dir(diffusers) if n.endswith("Scheduler")]
        raise ConfigError(
            f"scheduler: diffusers {diffusers.__version__} has no scheduler class {class_name!r}.{nearest(class_name, names)}"
        )
    return cls


def _drives(cls: Any) -> bool:
    return isinstance(cls, type) and hasattr(cls, "set_timesteps") and hasattr(cls, "step")
