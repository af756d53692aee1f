"""Rules of the linter that read a scheduler's settings against its model's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from research.errors import ConfigError
from research.solvers.lint.case import MOST_STAGES, Case, Finding, Severity

_BETAS = ("beta_schedule", "beta_start", "beta_end", "trained_betas")
_SPACED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
_RUN_ALONE = ("noise_sampler_seed",)  # an option whose effect a comparison with one fixed seed cannot show
_FOURTH_ORDER = ("PNDM", "IPNDM", "LMS")  # classes that have their order in no option


def prediction_type_ignored(case: Case) -> Iterator[Finding]:
    """A class without ``prediction_type`` takes the model's output for noise, whatever it is."""
    wanted = case.asked.get("prediction_type", "epsilon")
    if "prediction_type" in case.parameters or case.flow or wanted in ("epsilon", None):
        return
    yield Finding(
        "error",
        "prediction-type-ignored",
        f"prediction_type: found {wanted!r} in the model's config, and {case.cls.__name__} takes every output "
        "for noise (epsilon); accepted here are models that predict epsilon.",
    )


def ignored_by_class(case: Case) -> Iterator[Finding]:
    """Settings of the model that mean something and that the class has no argument for."""
    missing = {key: value for key, value in case.asked.items() if key not in case.parameters}
    cls = case.cls.__name__

    def found(severity: Severity, key: str, what: str) -> Finding:
        return Finding(
            severity, "ignored-by-class", f"{key}: found {case.asked[key]!r} in the model's config, and {cls} {what}."
        )

    if not case.flow:
        levels = [key for key in _BETAS if missing.get(key) is not None]
        if levels:
            yield found(
                "warning", levels[0], "has noise levels of its own: they are not those the model was trained on"
            )
        if missing.get("rescale_betas_zero_snr"):
            yield found(
                "warning",
                "rescale_betas_zero_snr",
                "does not rescale: its levels are not those the model was trained on",
            )
    for key in _SPACED:
        if missing.get(key):
            yield found("warning", key, "knows no such spacing: its levels lie elsewhere")
    if (spacing := missing.get("timestep_spacing")) is not None:
        severity: Severity = "warning" if spacing == "trailing" else "note"
        yield found(severity, "timestep_spacing", "has a spacing of its own")
    for key, other in (("shift", "flow_shift"), ("flow_shift", "shift")):
        if missing.get(key) not in (None, 1, 1.0):
            how = (
                f"calls it {other}: give scheduler.options.{other}={missing[key]!r} (it is {case.config(other)!r} now)"
                if other in case.parameters
                else "has no such shift"
            )
            if case.config(other) != missing[key]:
                yield found("warning", key, how)
    if missing.get("steps_offset"):
        yield found("note", "steps_offset", "has no offset: with leading spacing its timesteps begin one lower")
    # native solvers clip, whatever their class does
    for key in ("thresholding",) if case.factory.native else ("clip_sample", "thresholding"):
        if missing.get(key):
            # of a model of pixels whose data fill the range it is another picture that the steps converge to
            severity = "note" if case.latent else "warning"
            yield found(severity, key, "does not clip the predicted picture, as schedulers do that have the setting")


def set_by_the_model(case: Case) -> Iterator[Finding]:
    """Settings of the model's config that change what a name does: the same name is another solver on another model."""
    for key in () if case.of_model else _SPACED:
        if case.asked.get(key) and key in case.parameters and key not in case.given and case.config(key):
            yield Finding(
                "warning",
                "set-by-the-model",
                f"{key}: the model's config turns it on, and {case.name} takes it: its noise levels are not "
                f"those that {case.name} has on other models, nor those of "
                f"schedulers that do not know it; scheduler.options.{key}=false for its own.",
            )


def option_without_effect(case: Case) -> Iterator[Finding]:
    """Options that were given and change nothing: seen by running the scheduler with and without them."""
    for key, value in case.given.items():
        if key in _RUN_ALONE or case.problem is not None or len(case.full) > MOST_STAGES:
            continue
        if key == "solver_order" and case.trajectory.timeline.steps_run < value:
            continue  # has a finding of its own
        less = case.without(key)
        if less is None or less.problem is not None:
            continue
        before = less.config(key, less.factory.step_options.get(key, _step_default(case, key)))
        if before == value or (before is None and not value):
            continue  # says what holds anyway
        try:
            one, other = case.behaviour(), less.behaviour()
        except Exception:  # a step that fails is another rule's finding
            continue
        if one is not None and other is not None and one.shape == other.shape and torch.equal(one, other):
            yield Finding(
                "warning",
                "option-without-effect",
                f"scheduler.options.{key}: found {value!r}, which changes nothing for {case.name} with these settings and "
                f"steps={case.steps}; another setting overrides it, or it belongs to one that is off.",
            )


def _step_default(case: Case, key: str) -> Any:
    parameter = inspect.signature(case.cls.step).parameters.get(key)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def terminal_snr(case: Case) -> Iterator[Finding]:
    """Zero-terminal-SNR betas exclude epsilon; trailing spacing and v-prediction want them (arXiv:2305.08891)."""
    timeline = case.full if case.problem is None else case.upstream.timeline
    if case.flow or not len(timeline):
        return
    first = timeline[0]
    rescaled = bool(case.config("rescale_betas_zero_snr"))
    zero = first.signal < 1e-3 * first.noise
    if rescaled and case.kind == "epsilon":
        if zero:
            what = (
                f"the first step is at timestep {first.time:g}, where the latents hold no picture, and divides "
                "what is left of the predicted noise by it"
            )
        else:
            what = "the betas are not those that a model of epsilon can have been trained on"
        yield Finding(
            "error" if zero else "warning",
            "zero-snr-epsilon",
            f"rescale_betas_zero_snr: found true with prediction_type=epsilon; {what}. Accepted are models that "
            "predict v or the sample.",
        )
    if case.kind == "v" and case.config("timestep_spacing") == "trailing" and not rescaled:
        table = getattr(case.fresh, "alphas_cumprod", None)
        if table is not None and (left := float(table[-1]) ** 0.5) > 1e-3:
            yield Finding(
                "warning",
                "terminal-snr-not-zero",
                "timestep_spacing: found trailing with prediction_type=v_prediction and betas that leave "
                f"{left:.3g} of the picture at timestep {len(table) - 1}; sampling starts from noise alone. Right is "
                "rescale_betas_zero_snr=true if the model was trained with it; if not, its pictures keep a "
                "medium brightness.",
            )


def order_beyond_steps(case: Case) -> Iterator[Finding]:
    """A solver whose order needs more steps than there are."""
    if case.problem is not None:
        return
    steps = case.trajectory.timeline.steps_run
    order = case.config("solver_order")
    if not isinstance(order, int):
        order = 4 if case.cls.__name__.startswith(_FOURTH_ORDER) else int(getattr(case.fresh, "order", 1))
    if 0 < steps < order:
        key = "scheduler.options.solver_order" if "solver_order" in case.parameters else "steps"
        found = order if "solver_order" in case.parameters else case.steps
        sliced = f" of which strength={case.strength:g} keeps {steps}" if steps != case.steps else ""
        yield Finding(
            "warning",
            "order-beyond-steps",
            f"{key}: found {found}; {case.name} is of order {order} and has steps={case.steps}{sliced}: it never gets beyond "
            f"order {steps}. Accepted are {order} steps and more.",
        )
    single = "Singlestep" in case.cls.__name__ and not case.config("lower_order_final")
    if single and (case.config("final_sigmas_type") == "zero" or case.steps % order):
        why = (
            "a last sigma of zero needs it"
            if case.config("final_sigmas_type") == "zero"
            else "the steps do not divide by the order"
        )
        yield Finding(
            "note",
            "order-lowered-at-the-end",
            f"scheduler.options.lower_order_final: found false, and {case.cls.__name__} sets it to true itself: {why}.",
        )


def cannot_make_steps(case: Case) -> Iterator[Finding]:
    """Step counts that there is no timeline for."""
    problem, limit = case.problem, case.train_timesteps
    if problem is None or "begins without signal" in str(problem):  # of which `terminal_snr` says more
        return
    if limit is not None and case.steps > limit:
        rule = "steps-beyond-training"
    elif case.cls.__name__.startswith("PNDM") and not case.config("skip_prk_steps") and case.steps < 4:
        rule = "warm-up-beyond-steps"
        problem = ConfigError(
            f"steps: found {case.steps}; the Runge-Kutta warm-up of {case.name} takes 4 steps "
            "(skip_prk_steps=false). Accepted are 4 and more, or scheduler.options.skip_prk_steps=true."
        )
    elif "leave its" in str(problem):
        rule = "timesteps-past-training"
    else:
        rule = "cannot-make-steps"
    yield Finding("error", rule, str(problem))


def karras_on_flow(case: Case) -> Iterator[Finding]:
    """Spacings made for the noise levels of diffusion, on the straight path of flow matching."""
    if case.flow and case.config("use_karras_sigmas"):
        yield Finding(
            "warning",
            "karras-on-flow",
            "scheduler.options.use_karras_sigmas: found true for a flow model; the spacing was made for noise "
            "levels (arXiv:2206.00364) and puts most steps of a flow at its clean end. Accepted is false, with "
            "a shift instead.",
        )


def clips_latents(case: Case) -> Iterator[Finding]:
    """Latents have no range of -1 to 1: what clips them takes their colours away."""
    if not case.latent:
        return
    for key in ("clip_sample", "thresholding"):
        native = case.factory.native
        if case.config(key) if key == "thresholding" or native is None else native.clip is not None:
            whose = "" if key in {**case.base, **case.given} else ", the class's own default,"
            yield Finding(
                "warning",
                "clips-latents",
                f"scheduler.options.{key}: found true{whose} for a model of latents, which go beyond 1: the "
                "predicted picture is clipped at each step. Accepted is false.",
            )


RULES: tuple[Callable[[Case], Iterable[Finding]], ...] = (
    cannot_make_steps,
    prediction_type_ignored,
    terminal_snr,
    order_beyond_steps,
    karras_on_flow,
    clips_latents,
    ignored_by_class,
    set_by_the_model,
    option_without_effect,
)
