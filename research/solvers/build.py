"""From a scheduler's name, class name or object to fresh solvers."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from research.errors import ConfigError, nearest
from research.sampling.prediction import Kind
from research.solvers.diffusers_solver import STEP_ARGUMENTS_OF_THE_LOOP, DiffusersSolver
from research.solvers.names import SchedulerSpec, resolve
from research.solvers.tabulated import TabulatedSolver

_KINDS: dict[str, Kind] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0", "flow_prediction": "flow"}


class SolverFactory:
    """Builds a fresh `DiffusersSolver` at each call, always from the same frozen config.

    Args:
        scheduler: short name, class name, dotted path, `SchedulerSpec`, or a diffusers scheduler object (its class and config are
            read, the object is left alone).
        options: arguments of the scheduler's ``__init__`` (they replace the model's own config) or of its ``step`` (``eta``).
        base_config: the scheduler config of the model, as ``from_config`` takes it.
        parity: leave the object as the diffusers pipeline would.

    Raises:
        ConfigError: unknown scheduler or option, or a scheduler for another kind of prediction.
    """

    def __init__(
        self, scheduler: Any, options: Mapping[str, Any] | None, base_config: Mapping[str, Any], *, parity: bool = False
    ):
        self.parity = parity
        options = dict(options or {})
        if isinstance(scheduler, str | SchedulerSpec):
            spec = scheduler if isinstance(scheduler, SchedulerSpec) else resolve(scheduler)
            self.name = spec.name
            self.cls: Any = _scheduler_class(spec.class_name)
            options = {**spec.options, **options}
            self._config = dict(base_config)
        elif _drives(type(scheduler)) and hasattr(scheduler, "config"):
            self.cls = type(scheduler)
            self.name = self.cls.__name__
            self._config = dict(scheduler.config)
        else:
            raise ConfigError(f"scheduler: found {scheduler!r}; accepted is a name or a diffusers scheduler object.")
        self._init_options, self.step_options = self._route(options)
        self._untouched = self._build()
        self.kind = self._kind(self._untouched)
        _check_kind(self.name, self.cls, self.kind, base_config)

    def __call__(self) -> DiffusersSolver:
        solver = TabulatedSolver if not self.parity and is_upstream(self._untouched) else DiffusersSolver
        return solver(
            # a copy of one that was never used: some classes take a tenth of a second to construct
            copy.deepcopy(self._untouched),
            name=self.name,
            kind=self.kind,
            step_options=self.step_options,
            parity=self.parity,
        )

    def _build(self) -> Any:
        try:
            return self.cls.from_config(self._config, **self._init_options)
        except ImportError as error:
            raise ConfigError(f"scheduler: {self.name} needs a package that is not installed: {error}") from error
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ConfigError(f"scheduler: {self.name} does not accept its options: {error}") from error

    def _route(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        init = set(inspect.signature(self.cls.__init__).parameters) - {"self", "kwargs", "args"}
        step = set(inspect.signature(self.cls.step).parameters) - STEP_ARGUMENTS_OF_THE_LOOP
        for key in options:
            if key not in init | step:
                raise ConfigError(
                    f"scheduler.options: {self.name} has no option {key!r}.{nearest(key, init | step)} "
                    f"Accepted: {', '.join(sorted(init | step))}."
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


def _check_kind(name: str, cls: type, kind: Kind, base_config: Mapping[str, Any]) -> None:
    """A flow scheduler walks a path that a noise-predicting model was not trained on, and the other way round."""
    model_is_flow = "FlowMatch" in str(base_config.get("_class_name", "")) or (
        base_config.get("prediction_type") == "flow_prediction"
    )
    if (kind == "flow") != model_is_flow:
        trained = "flow" if model_is_flow else base_config.get("prediction_type", "epsilon")
        raise ConfigError(
            f"scheduler: {name} ({cls.__name__}) is for models that predict {'flow' if kind == 'flow' else 'noise'}; "
            f"this model predicts {trained}."
        )


def _scheduler_class(class_name: str) -> Any:
    if "." in class_name:
        module, _, name = class_name.rpartition(".")
        try:
            cls = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"scheduler: cannot import {class_name!r}: {error}") from error
        if not (_drives(cls) and hasattr(cls, "from_config")):
            raise ConfigError(
                f"scheduler: {class_name!r} is no scheduler class: it lacks from_config, set_timesteps or step."
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
