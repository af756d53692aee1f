"""How many of the user's steps a strength keeps. Needs no torch, so that jobs can be checked before it is imported."""

from __future__ import annotations

import math

from research.checks import check_number


def kept_steps(steps: int, strength: float, *, parity: bool = False, flow: bool = False, told: bool = False) -> int:
    """How many of ``steps`` user steps a strength in [0, 1] keeps.

    The product is rounded down after binary noise is removed, so that 0.29 of 100 steps is 29. With ``parity`` it is
    ``int(steps * strength)`` as in the diffusers Stable Diffusion pipelines (28), and for ``flow`` models what is left when
    ``int(steps - steps * strength)`` are taken away, as in the pipelines of these: one step at least. Where their scheduler is
    ``told`` the strength (latent consistency models) all steps are run, at lower noise levels.

    Raises:
        ConfigError: strength is not a number in [0, 1].
    """
    product = steps * check_number("strength", strength, least=0, most=1)
    if parity and told:
        return steps if product > 0 else 0
    if parity and flow:
        return steps - int(max(steps - min(product, steps), 0))
    return min(int(product if parity else math.floor(product + 1e-9 * steps)), steps)


def steps_needed(strength: float) -> int:
    """The smallest number of steps of which a strength above 0 keeps at least one."""
    return math.ceil(1.0 / strength - 1e-9)
