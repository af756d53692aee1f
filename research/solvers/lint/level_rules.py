"""Rules of the linter that look at noise levels: those a scheduler says it goes through, and those it goes to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

from research.errors import ConfigError
from research.sampling.timeline import Stage, Timeline
from research.solvers.lint.case import Case, Finding, Severity, Trajectory
from research.solvers.native.counterparts import COUNTERPARTS
from research.solvers.native_solver import tabulate

_MISS = 2e-3  # of a level, relative: fp32 leaves a thousandth of this, one timestep more or less is rarely so little
_MISS_WITH_NOISE = 0.06  # drawn noise is measured on a sample
_STEPS_TO_JUDGE = 8  # of fewer each has to do much
_MOST = 0.5  # of the way from noise to picture
_PAST_THE_PICTURE = 1.0
_ROUNDED = 1.5  # ratio of levels that one whole timestep may stand for: at the clean end a timestep is 40 %
_ANOTHER_UNIT = 1.5  # timesteps that all lie below are times, not places in a table of a thousand


def step_fails(case: Case) -> Iterator[Finding]:
    """A step raises, or gives numbers that are none."""
    if case.problem is not None:
        return
    yield from _failures(case, case.trajectory, "error")
    if case.notes and not list(_failures(case, case.trajectory, "error")):
        yield from _failures(case, case.upstream, "note")


def _failures(case: Case, trajectory: Trajectory, severity: Severity) -> Iterator[Finding]:
    where = f"scheduler {case.name}" if severity == "error" else f"diffusers' {case.cls.__name__}"
    after = "" if severity == "error" else " Corrected here; it stands with parity=true."
    if trajectory.failure is not None:
        step, cause = trajectory.failure
        reason = f"{type(cause).__name__}: {cause}".strip().rstrip(":").splitlines()[0]
        # a class of one's own may want inputs that nobody here knows
        grave: Severity = "error" if case.cls.__module__.startswith("diffusers.") else "warning"
        yield Finding(
            grave if severity == "error" else "note",
            "step-fails",
            f"scheduler.options: {where} fails in step {step + 1} of {case.steps} with these settings ({reason}).{after}",
        )
    elif trajectory.driven and not trajectory.finite:
        first = next(
            i
            for i, v in enumerate(zip(trajectory.signal, trajectory.noise, strict=True))
            if not all(map(math.isfinite, v))
        )
        yield Finding(
            "error" if severity == "error" else "note",
            "not-finite",
            f"scheduler.options: {where} gives numbers that are not finite (NaN or infinite) in step "
            f"{trajectory.timeline[first].step + 1} of {case.steps} with these settings.{after}",
        )


def level_missed(case: Case) -> Iterator[Finding]:
    """A step goes to another level than the one that the next timestep stands for."""
    if case.problem is not None:
        return
    here = worst_miss(case.trajectory)
    if here is not None:
        yield _missed(case, *here, "warning")
    elif case.notes and (there := worst_miss(case.upstream)) is not None:
        yield _missed(case, *there, "note")


def worst_miss(trajectory: Trajectory) -> tuple[float, Stage, Stage, float] | None:
    """The greatest relative miss: how much, from which stage, to which stage, and the level that was reached."""
    if not trajectory.driven or not trajectory.finite:
        return None
    worst: tuple[float, Stage, Stage, float] | None = None
    for i in range(len(trajectory.timeline) - 1):
        stage, following = trajectory.timeline[i], trajectory.timeline[i + 1]
        if not stage.last_of_step or trajectory.signal[i] <= 0:
            continue
        reached = trajectory.noise[i] / trajectory.signal[i]
        if _on_flow(following):
            reached, wanted = reached / (1 + reached), following.noise
        else:
            wanted = following.sigma
        miss = abs(reached - wanted) / max(wanted, 1e-9)
        if miss > (_MISS_WITH_NOISE if trajectory.draws[i] else _MISS) and (worst is None or miss > worst[0]):
            worst = miss, stage, following, reached
    return worst


def _on_flow(stage: Stage) -> bool:
    """Whether a stage lies on a flow's path, where signal and noise sum to 1 and neither is 1."""
    return abs(stage.signal + stage.noise - 1) < 1e-4 and stage.signal < 1 - 1e-6


def _missed(case: Case, miss: float, stage: Stage, following: Stage, reached: float, severity: Severity) -> Finding:
    cls = case.cls.__name__
    wanted = following.noise if _on_flow(following) else following.sigma
    how = (
        f"from timestep {stage.time:g} it steps to noise level {reached:.4g}, and its next timestep "
        f"{following.time:g} stands for {wanted:.4g} ({100 * miss:.2g} % off)"
    )
    full = case.full_trajectory if severity == "warning" else None
    if case.strength < 1.0 and (full is None or worst_miss(full) is None):
        rule, why = ("sliced-history", f"strength={case.strength:g} cuts off steps whose history {cls} counts on")
    elif case.kind == "v" and cls.startswith("PNDM"):
        rule, why = "level-missed", f"{cls} sums v-predictions of several levels as though they were of one"
    elif severity == "warning" and (native := case.factory.native) and type(native) is not COUNTERPARTS.get(cls):
        # the class only gives the levels
        rule, why = (
            "level-missed",
            f"the updates of {type(native).__name__} do not agree with its levels at steps={case.steps}",
        )
    else:
        rule, why = "level-missed", f"the spacing of {cls} at steps={case.steps} and its updates do not agree"
    if severity == "warning":
        advice = "Another step count or spacing may hit it" if rule == "level-missed" else "Another scheduler may not"
        advice += ", and parity=false corrects it." if case.parity else "."
    else:
        advice = "That is how diffusers does it; corrected here unless parity=true."
    return Finding(
        "warning" if severity == "warning" else "note", rule, f"scheduler {case.name}: {why}: {how}. {advice}"
    )


def noise_left(case: Case) -> Iterator[Finding]:
    """The last step does not end at zero."""
    if (
        case.problem is not None
        or not case.trajectory.driven
        or not case.trajectory.finite
        or case.trajectory.signal[-1] <= 0
    ):
        return
    left, lowest = case.trajectory.noise[-1] / case.trajectory.signal[-1], case.lowest_trained_sigma
    if left < 1e-4:
        return
    # the older algorithms divide by the last level
    asked = case.config("final_sigmas_type") == "sigma_min" and not str(case.config("algorithm_type")).endswith(
        "dpmsolver"
    )
    if left > 1.01 * lowest or asked:
        key = "scheduler.options.final_sigmas_type: found sigma_min" if asked else f"scheduler {case.name}"
        yield Finding(
            "warning",
            "noise-left",
            f"{key}; after the last step noise of level {left:.3g} is left in the picture."
            + (" Accepted for clean pictures is zero." if asked else ""),
        )
    else:
        how = " (set_alpha_to_one=false)" if case.config("set_alpha_to_one") is False else ""
        yield Finding(
            "note",
            "noise-left",
            f"scheduler {case.name}: ends at the lowest trained level {left:.3g} and not at zero{how}, as its "
            "model was trained.",
        )


def duplicate_timesteps(case: Case) -> Iterator[Finding]:
    """Steps at different levels of which the model is told the same."""
    if case.problem is not None:
        return
    starts = _starts(case.full)
    times = [stage.time for stage in starts]
    twice = (
        sorted({time for time in times if times.count(time) > 1}, reverse=True) if len(set(times)) < len(times) else []
    )
    if twice:
        levels = {time: [stage.sigma for stage in starts if stage.time == time] for time in twice}
        worst = max(twice, key=lambda time: levels[time][0] / max(levels[time][-1], 1e-9))
        same = levels[worst]
        yield Finding(
            "warning" if not same[0] < _ROUNDED * same[-1] else "note",
            "duplicate-timesteps",
            f"scheduler.options: {len(times) - len(set(times))} of the {len(times)} steps of {case.name} repeat "
            f"a timestep: the model is told {worst:g} at noise levels {same[0]:.4g} to {same[-1]:.4g}. Accepted "
            "are fewer steps or another spacing.",
        )


def levels_do_not_fall(case: Case) -> Iterator[Finding]:
    """Noise levels that rise or stand still from one step to the next."""
    if case.problem is not None:
        return
    starts = [stage for stage in _starts(case.full) if math.isfinite(stage.log_snr)]
    for stage, following in pairwise(starts):
        if not following.log_snr > stage.log_snr:
            yield Finding(
                "warning",
                "levels-do-not-fall",
                f"scheduler {case.name}: the noise level goes from {stage.sigma:.4g} to {following.sigma:.4g} between steps "
                f"{stage.step + 1} and {following.step + 1} of {case.steps}; accepted are levels that fall.",
            )
            return


def timesteps_past_training(case: Case) -> Iterator[Finding]:
    """The model is told timesteps that it never saw."""
    limit = case.train_timesteps or case.base.get("num_train_timesteps")
    if case.problem is not None or case.flow or not isinstance(limit, int) or not len(case.full):
        return
    times = [stage.time for stage in case.full]
    past = [time for time in times if time > limit - 1 or time < 0]
    if past:
        offset = case.config("steps_offset")
        why = f" (steps_offset={offset} with leading spacing)" if offset and max(past) <= limit - 1 + offset else ""
        yield Finding(
            "warning",
            "timesteps-past-training",
            f"scheduler {case.name}: timestep {past[0]:g} is past the training range of 0 to {limit - 1}{why}; "
            "accepted are fewer steps or another spacing.",
        )
    elif len(set(times)) > 2 and max(times) < _ANOTHER_UNIT and limit > 100:
        yield Finding(
            "warning",
            "timesteps-past-training",
            f"scheduler {case.name}: tells the model times from {max(times):.3g} to {min(times):.3g}; a model "
            f"trained on timesteps 0 to {limit - 1} takes all of them for its cleanest. Accepted are schedulers "
            "with the model's own timesteps.",
        )


def starts_too_clean(case: Case) -> Iterator[Finding]:
    """Pure noise, told to be half clean: leading spacing with very few steps begins in the middle."""
    if case.problem is not None or case.flow or not len(case.full) or case.strength < 1.0:
        return
    first = case.full[0].sigma
    table = getattr(case.fresh, "alphas_cumprod", None)
    highest = 0.0 if table is None else math.sqrt((1 - float(table[-1])) / max(float(table[-1]), 1e-12))
    if first < 2.0 < highest:
        yield Finding(
            "warning",
            "starts-too-clean",
            f"steps: found {case.steps}; {case.name} with {case.config('timestep_spacing', 'its own')} spacing "
            f"starts at timestep {case.full[0].time:g}, noise level {first:.3g}, from noise of level "
            f"{highest:.3g}. Accepted are more steps, or "
            "timestep_spacing=trailing.",
        )


def off_the_flow(case: Case) -> Iterator[Finding]:
    """A flow model on levels that are not those of a flow."""
    if not case.flow or case.problem is not None:
        return
    for stage in case.full:
        if not (abs(stage.signal + stage.noise - 1) < 1e-2 and -1e-3 < stage.noise < 1.001):
            advice = " with use_flow_sigmas=true and no Karras sigmas" if "use_flow_sigmas" in case.parameters else ""
            yield Finding(
                "error",
                "off-the-flow",
                f"scheduler {case.name}: at timestep {stage.time:g} its latents hold {stage.signal:.3g} of the picture and "
                f"{stage.noise:.3g} of noise, and a flow model knows only mixtures that sum to 1. Accepted are "
                f"flow schedulers{advice}.",
            )
            return


def step_across_most(case: Case) -> Iterator[Finding]:
    """One of many steps in which most of the picture is decided: the others are hardly used.

    The share of the latents' variance that is picture goes from 0 to 1; a step is judged by how much of that it crosses.
    """
    if case.problem is not None or case.steps < _STEPS_TO_JUDGE or not len(case.full):
        return
    starts = _starts(case.full)
    shares = [_share(stage.signal, stage.noise) for stage in starts]
    if any(map(math.isnan, shares)):
        return
    ends = [*shares[1:], 1.0]
    crossed, place = max((end - share, i) for i, (share, end) in enumerate(zip(shares, ends, strict=True)))
    if crossed > _MOST:
        last = " to the end" if place == len(starts) - 1 else ""
        yield Finding(
            "warning",
            "step-across-most",
            f"scheduler {case.name}: step {starts[place].step + 1} of {case.steps} goes from noise level "
            f"{starts[place].sigma:.4g}{last} across {100 * crossed:.0f} % of the picture; "
            f"accepted are levels that leave each step a smaller part.",
        )


def overshoots(case: Case) -> Iterator[Finding]:
    """A step that extrapolates from earlier predictions so far that it passes the picture.

    Of a step's update, the factors of earlier data predictions, each times how much of the picture was decided between
    that prediction and the newest: 1 is as much as there is between noise and picture. Multistep methods on usual levels
    stay below 0.5; a step over many times the log-SNR of the one before it (to a last level near zero) does not.
    """
    if case.problem is not None or not (plan := case.plan):
        return
    try:
        rows = tabulate(plan, "x0", case.name).rows
    except ConfigError:
        return
    shares = [_share(stage.level.signal, stage.level.noise) for stage in plan]
    passed, place = max(
        (sum(abs(factor * (shares[i - back] - shares[i])) for back, factor in row.outputs if back), i)
        for i, row in enumerate(rows)
    )
    if passed > _PAST_THE_PICTURE:
        last = place + 1 == len(plan)
        target = "the end" if last else f"{plan[place + 1].level.sigma:.4g}"
        yield Finding(
            "warning",
            "overshoots",
            f"scheduler {case.name}: step {plan[place].step + 1} of {case.steps} goes from noise level "
            f"{plan[place].level.sigma:.4g} to {target} by extrapolating earlier predictions {passed:.2g} pictures far. "
            "Accepted are more steps, levels that fall evenly in log-SNR, or a scheduler without memory (euler, ddim, heun).",
        )


def _share(signal: float, noise: float) -> float:
    """Of the latents' variance, what is picture; 0 of noise alone."""
    total = signal**2 + noise**2
    return signal**2 / total if total > 0 else math.nan


def levels_unknown(case: Case) -> Iterator[Finding]:
    """A scheduler that does not say its levels: neither these rules nor any picture of it can. Where it says some, the others are
    no numbers, and that is an error."""
    unknown = [math.isnan(stage.sigma) for stage in case.full] if case.problem is None else []
    if any(unknown) and not all(unknown):
        stage = case.full[unknown.index(True)]
        yield Finding(
            "error",
            "not-finite",
            f"scheduler {case.name}: its noise level in step {stage.step + 1} of {case.steps} is no number (NaN).",
        )
    elif any(unknown):
        yield Finding(
            "note",
            "levels-unknown",
            f"scheduler {case.name}: {case.cls.__name__} does not say its noise levels; no curve of it is "
            "drawn, and strength and conversions between predictions cannot work with it.",
        )


def _starts(timeline: Timeline) -> list[Stage]:
    """The first evaluation of each of the user's steps: second-order steps and PNDM's warm-up repeat timesteps by design."""
    return [stage for i, stage in enumerate(timeline) if i == 0 or timeline[i - 1].last_of_step]


RULES: tuple[Callable[[Case], Iterable[Finding]], ...] = (
    step_fails,
    level_missed,
    noise_left,
    duplicate_timesteps,
    levels_do_not_fall,
    timesteps_past_training,
    starts_too_clean,
    off_the_flow,
    step_across_most,
    overshoots,
    levels_unknown,
)
