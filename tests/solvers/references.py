"""Solvers as k-diffusion, ComfyUI, the papers and their codes define them, written down once more: loops over sigmas in float64.

Latents are ``y = x0 + sigma * epsilon`` for models that predict noise and ``y = (1 - sigma) * x0 + sigma * epsilon`` for flow
models; ``model(y, sigma)`` is the data prediction; ``draw(sigma, sigma_next)`` gives noise of variance 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

Model = Callable[[Any, float], Any]
Draw = Callable[[float, float], Any]


def lam(s: float, flow: bool) -> float:
    """Half log-SNR."""
    if s == 0:
        return math.inf
    return (math.log((1 - s) / s) if s < 1 else -math.inf) if flow else -math.log(s)


def sigma_of(value: float, flow: bool) -> float:
    return 1 / (1 + math.exp(value)) if flow else math.exp(-value)


def alpha(s: float, flow: bool) -> float:
    return 1 - s if flow else 1.0


def ancestral(s: float, t: float, eta: float) -> tuple[float, float]:
    up = min(t, eta * math.sqrt(t**2 * (s**2 - t**2) / s**2))
    return math.sqrt(t**2 - up**2), up


def slope(model: Model, y: Any, s: float) -> Any:
    return (y - model(y, s)) / s


def dpmpp_2s_a(
    model: Model, y: Any, sigmas: list[float], draw: Draw, flow: bool, eta: float = 1.0, s_noise: float = 1.0
):
    for s, t in itertools.pairwise(sigmas):
        den = model(y, s)
        if t == 0:
            y = den
            continue
        if flow:
            down = t * (1 + (t / s - 1) * eta)
        else:
            down, up = ancestral(s, t, eta)
        if down == 0 or (flow and s == 1):
            second = den
        else:
            mid = sigma_of((lam(s, flow) + lam(down, flow)) / 2, flow)
            u = mid / s * y + (alpha(mid, flow) - mid / s * alpha(s, flow)) * den
            second = model(u, mid)
        y = down / s * y + (alpha(down, flow) - down / s * alpha(s, flow)) * second
        if flow:
            ratio = (1 - t) / (1 - down)
            if eta:
                y = ratio * y + math.sqrt(t**2 - down**2 * ratio**2) * s_noise * draw(s, t)
        elif up:
            y = y + up * s_noise * draw(s, t)
    return y


def dpmpp_3m_sde(
    model: Model, y: Any, sigmas: list[float], draw: Draw, flow: bool, eta: float = 1.0, s_noise: float = 1.0
):
    dens: list[Any] = []
    hs: list[float] = []
    for s, t in itertools.pairwise(sigmas):
        den = model(y, s)
        if t == 0:
            y = den
            continue
        h = lam(t, flow) - lam(s, flow)
        he = h * (1 + eta)
        a = alpha(t, flow)
        y = t / s * (math.exp(-h * eta) if eta else 1.0) * y + a * -math.expm1(-he) * den
        if len(hs) >= 2 and hs[-2] < math.inf:
            r0, r1 = hs[-1] / h, hs[-2] / h
            d0, d1 = (den - dens[-1]) / r0, (dens[-1] - dens[-2]) / r1
            phi2 = math.expm1(-he) / he + 1
            phi3 = phi2 / he - 0.5
            y = y + a * phi2 * (d0 + (d0 - d1) * r0 / (r0 + r1)) - a * phi3 * (d0 - d1) / (r0 + r1)
        elif hs and hs[-1] < math.inf:
            y = y + a * (math.expm1(-he) / he + 1) * (den - dens[-1]) / (hs[-1] / h)
        if eta:
            y = y + t * math.sqrt(-math.expm1(-2 * h * eta)) * s_noise * draw(s, t)
        dens.append(den)
        hs.append(h)
    return y


def res_multistep(model: Model, y: Any, sigmas: list[float], draw: Draw, flow: bool, order: int = 2):
    """``y / alpha`` over ``sigma / alpha``; coefficients by quadrature of the Lagrange polynomials."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    dens: list[Any] = []
    lams: list[float] = []
    for s, t in itertools.pairwise(sigmas):
        dens.insert(0, model(y, s))
        lams.insert(0, lam(s, flow))
        if t == 0:
            y = dens[0]
            continue
        h, a = lam(t, flow) - lams[0], alpha(t, flow)
        if h == math.inf:
            y = t * 0 * y + a * dens[0] + t * (y - alpha(s, flow) * dens[0]) / s
            continue
        known = [k for k in range(min(order, len(dens))) if lams[k] > -math.inf]
        new = t / s * y
        for j in known:
            total = 0.0
            for u, w in zip((nodes + 1) / 2 * h, weights * h / 2, strict=True):
                poly = math.prod((lams[0] + u - lams[k]) / (lams[j] - lams[k]) for k in known if k != j)
                total += w * math.exp(-(h - u)) * poly
            new = new + a * total * dens[j]
        y = new
    return y


def res_2m_comfy(model: Model, y: Any, sigmas: list[float], draw: Draw, flow: bool):
    old, before = None, 0.0
    for s, t in itertools.pairwise(sigmas):
        den = model(y, s)
        if t == 0 or old is None:
            y = y + (y - den) / s * (t - s)
        else:
            h = math.log(s / t)
            c2 = math.log(s / before) / h
            phi1 = math.expm1(-h) / -h
            phi2 = (phi1 - 1) / -h
            y = math.exp(-h) * y + h * ((phi1 - phi2 / c2) * den + phi2 / c2 * old)
        old, before = den, s
    return y


def _phi(k: int, z: float) -> float:
    value = math.exp(z)
    for j in range(k):
        value = (value - 1 / math.factorial(j)) / z
    return value


def res_singlestep(
    model: Model, y: Any, sigmas: list[float], draw: Draw, flow: bool, order: int = 2, c2: float = 0.5, c3: float = 1.0
):
    for s, t in itertools.pairwise(sigmas):
        d1 = model(y, s)
        h = lam(t, flow) - lam(s, flow)
        if h == math.inf:
            y = t / s * y + (alpha(t, flow) - t / s * alpha(s, flow)) * d1
            continue

        def at(c: float, s: float = s, h: float = h) -> float:
            return sigma_of(lam(s, flow) + c * h, flow)

        s2 = at(c2)
        y2 = s2 / s * y + alpha(s2, flow) * c2 * h * _phi(1, -c2 * h) * d1
        d2 = model(y2, s2)
        if order == 2:
            b2 = _phi(2, -h) / c2
            y = t / s * y + alpha(t, flow) * h * ((_phi(1, -h) - b2) * d1 + b2 * d2)
            continue
        s3 = at(c3)
        gamma = (3 * c3**2 - 2 * c3) / (c2 * (2 - 3 * c2))
        a32 = gamma * c2 * _phi(2, -c2 * h) + c3**2 / c2 * _phi(2, -c3 * h)
        y3 = s3 / s * y + alpha(s3, flow) * h * ((c3 * _phi(1, -c3 * h) - a32) * d1 + a32 * d2)
        d3 = model(y3, s3)
        b3 = _phi(2, -h) / (gamma * c2 + c3)
        y = t / s * y + alpha(t, flow) * h * ((_phi(1, -h) - gamma * b3 - b3) * d1 + gamma * b3 * d2 + b3 * d3)
    return y


def ipndm(model: Model, y: Any, sigmas: list[float], draw: Draw, flow: bool, order: int = 4, variable: bool = False):
    ds: list[Any] = []
    for i, (s, t) in enumerate(itertools.pairwise(sigmas)):
        ds.insert(0, slope(model, y, s))
        n = 1 if t == 0 else min(order, len(ds))
        w: tuple[float, ...] = (
            (1.0,),
            (1.5, -0.5),
            (23 / 12, -16 / 12, 5 / 12),
            (55 / 24, -59 / 24, 37 / 24, -9 / 24),
        )[n - 1]
        if variable and n > 1:
            a = t - s
            b = s - sigmas[i - 1]
            c = sigmas[i - 1] - sigmas[i - 2] if n > 2 else 0.0
            d = sigmas[i - 2] - sigmas[i - 3] if n > 3 else 0.0
            w = ((2 + a / b) / 2, -(a / b) / 2)
            if n > 2:
                p = (1 - a / (3 * (a + b)) * (a * (a + b)) / (b * (b + c))) / 2
                w = (w[0] + p, w[1] - (1 + b / c) * p, p * b / c)
            if n > 3:
                q = (1 - a / (3 * (a + b))) / 2 + (1 - a / (2 * (a + b))) * a / (6 * (a + b + c))
                q *= (a * (a + b) * (a + b + c)) / (b * (b + c) * (b + c + d))
                e = b * (b + c) / (c * (c + d))
                w = (
                    w[0] + q,
                    w[1] - (1 + b / c + e) * q,
                    w[2] + (b / c + e * (1 + c / d)) * q,
                    -q * e * c / d * d / c * b / c,
                )
        y = y + (t - s) * sum(weight * d_ for weight, d_ in zip(w, ds, strict=False))
    return y


def gradient_estimation(model: Model, y: Any, sigmas: list[float], draw: Draw, flow: bool, gamma: float = 2.0):
    old = None
    for s, t in itertools.pairwise(sigmas):
        d = slope(model, y, s)
        y = y + d * (t - s)
        if old is not None and t:
            y = y + (gamma - 1) * (d - old) * (t - s)
        old = d
    return y


SCALERS: dict[str, Callable[[Any], Any]] = {
    "ode": lambda x: x,
    "sde": lambda x: x**2,
    "er_sde_1": lambda x: x * (np.exp(-1 / x) + 10),
    "er_sde_2": lambda x: x**1.5,
    "er_sde_3": lambda x: x**2.5,
    "er_sde_4": lambda x: x**0.9 * np.log10(1 + 100 * x**1.5),
    "er_sde_5": lambda x: x * (np.exp(x**0.3) + 10),
}


def er_sde(
    model: Model,
    y: Any,
    sigmas: list[float],
    draw: Draw,
    flow: bool,
    order: int = 3,
    scaler: str = "er_sde_5",
    points: int | None = None,
):
    fn = SCALERS[scaler]
    rs = [s / alpha(s, flow) if alpha(s, flow) else math.inf for s in sigmas]
    old = old_d = None
    since = 0
    for i, (s, t) in enumerate(itertools.pairwise(sigmas)):
        den = model(y, s)
        if t == 0:
            y = den
            continue
        a, b, at = rs[i], rs[i + 1], alpha(t, flow)
        if a == math.inf:
            y = at * den + t * (y / s if scaler in ("ode", "er_sde_4") else draw(s, t))
            continue
        since += 1
        r = fn(b) / fn(a)
        y = at / alpha(s, flow) * r * y + at * (1 - r) * den
        n = points or 40_000
        k = np.arange(n) if points else np.arange(n) + 0.5
        places = b + k * (a - b) / n
        if since >= 2 and order >= 2:
            d = (den - old) / (a - rs[i - 1])
            y = y + at * (b - a + fn(b) * float(np.sum(1 / fn(places))) * (a - b) / n) * d
            if since >= 3 and order >= 3:
                u = 2 * (d - old_d) / (a - rs[i - 2])
                y = y + at * ((b - a) ** 2 / 2 + fn(b) * float(np.sum((places - a) / fn(places))) * (a - b) / n) * u
            old_d = d
        old = den
        variance = b**2 - (a * r) ** 2
        if variance > 1e-14:
            y = y + at * math.sqrt(variance) * draw(s, t)
    return y


def heunpp2(model: Model, y: Any, sigmas: list[float], draw: Draw, flow: bool):
    last = len(sigmas) - 1
    for i in range(last):
        s, t = sigmas[i], sigmas[i + 1]
        d = slope(model, y, s)
        if i + 1 == last:
            y = y + d * (t - s)
            continue
        y2 = y + d * (t - s)
        d2 = slope(model, y2, t)
        if i + 2 == last:
            w2 = t / (2 * sigmas[0])
            y = y + (t - s) * ((1 - w2) * d + w2 * d2)
            continue
        t2 = sigmas[i + 2]
        d3 = slope(model, y2 + d2 * (t2 - t), t2)
        w2, w3 = t / (3 * sigmas[0]), t2 / (3 * sigmas[0])
        y = y + (t - s) * ((1 - w2 - w3) * d + w2 * d2 + w3 * d3)
    return y


def seeds(
    model: Model,
    y: Any,
    sigmas: list[float],
    draw: Draw,
    flow: bool,
    order: int = 2,
    eta: float = 1.0,
    kind: str = "phi_1",
    s_noise: float = 1.0,
):
    for s, t in itertools.pairwise(sigmas):
        d1 = model(y, s)
        if t == 0:
            y = d1
            continue
        h = lam(t, flow) - lam(s, flow)
        if h == math.inf:
            y = alpha(t, flow) * d1 + (t * s_noise * draw(s, t) if eta else t * (y - alpha(s, flow) * d1) / s)
            continue
        he = h * (1 + eta)

        def place(c: float, s: float = s, h: float = h) -> float:
            return sigma_of(lam(s, flow) + c * h, flow)

        def stage(level: float, c: float, weights: dict[int, float], ds: list[Any], s=s, y=y, h=h) -> Any:
            new = level / s * math.exp(-c * h * eta) * y
            for k, w in weights.items():
                new = new + alpha(level, flow) * w * ds[k]
            return new

        def one(c: float, he: float = he) -> float:
            return -math.expm1(-c * he)

        def two(c: float, he: float = he) -> float:
            return -(math.expm1(-c * he) / (c * he) + 1) * -1

        def grown(sde: Any, gap: float, a: float, b: float, h: float = h) -> Any:
            if not eta:
                return 0.0
            return sde * math.exp(-gap * h * eta) + math.sqrt(-math.expm1(-2 * gap * h * eta)) * draw(a, b)

        if order == 2:
            s1 = place(0.5)
            sde = grown(0.0, 0.5, s, s1)
            d2 = model(stage(s1, 0.5, {0: one(0.5)}, [d1]) + s1 * s_noise * sde, s1)
            if kind == "phi_1":
                weights = {0: 0.0, 1: one(1)}
            else:
                weights = {0: one(1) - two(1) / 0.5, 1: two(1) / 0.5}
            new = stage(t, 1, weights, [d1, d2])
            y = new + t * s_noise * grown(sde, 0.5, s1, t)
            continue
        s1, s2 = place(1 / 3), place(2 / 3)
        sde = grown(0.0, 1 / 3, s, s1)
        d2 = model(stage(s1, 1 / 3, {0: one(1 / 3)}, [d1]) + s1 * s_noise * sde, s1)
        a2 = 2 * two(2 / 3)
        sde = grown(sde, 1 / 3, s1, s2)
        d3 = model(stage(s2, 2 / 3, {0: one(2 / 3) - a2, 1: a2}, [d1, d2]) + s2 * s_noise * sde, s2)
        b3 = two(1) * 1.5
        y = stage(t, 1, {0: one(1) - b3, 2: b3}, [d1, d2, d3]) + t * s_noise * grown(sde, 1 / 3, s2, t)
    return y


def restart(
    model: Model, y: Any, sigmas: list[float], draw: Draw, flow: bool, lo: float, hi: float, times: int, steps: int
):
    """Sigmas of VE; the interval's own by EDM."""

    def heun(y: Any, s: float, t: float) -> Any:
        d = slope(model, y, s)
        new = y + d * (t - s)
        return new if not t else y + (t - s) * (d + slope(model, new, t)) / 2

    near_lo = min(range(len(sigmas)), key=lambda k: abs(sigmas[k] - lo))
    top, bottom = hi ** (1 / 7), sigmas[near_lo] ** (1 / 7)
    own = [(top + k / steps * (bottom - top)) ** 7 for k in range(steps + 1)]
    for i, (s, t) in enumerate(itertools.pairwise(sigmas)):
        y = heun(y, s, t)
        if i + 1 == near_lo:
            for _ in range(times):
                y = y + math.sqrt(own[0] ** 2 - t**2) * draw(t, own[0])
                for a, b in itertools.pairwise(own):
                    y = heun(y, a, b)
    return y


def dpm_solver(model: Model, y: Any, sigmas: list[float], draw: Draw, flow: bool, order: int = 2):
    def noise(y: Any, s: float) -> Any:
        return (y - alpha(s, flow) * model(y, s)) / s

    for s, t in itertools.pairwise(sigmas):
        e = noise(y, s)
        h = lam(t, flow) - lam(s, flow)
        if h == math.inf or order == 1:
            y = (
                alpha(t, flow) * (y - s * e) / alpha(s, flow) + t * e
                if alpha(s, flow)
                else alpha(t, flow) * model(y, s) + t * e
            )
            continue

        def to(level: float, part: float, e: Any, s: float = s, y: Any = y, h: float = h) -> Any:
            return alpha(level, flow) / alpha(s, flow) * y - level * math.expm1(part * h) * e

        def at(c: float, s: float = s, h: float = h) -> float:
            return sigma_of(lam(s, flow) + c * h, flow)

        if order == 2:
            y = to(t, 1, noise(to(at(0.5), 0.5, e), at(0.5)))
            continue
        s1, s2 = at(1 / 3), at(2 / 3)
        d1 = noise(to(s1, 1 / 3, e), s1) - e
        u2 = to(s2, 2 / 3, e) - s2 * 2 * (math.expm1(2 * h / 3) / (2 * h / 3) - 1) * d1
        d2 = noise(u2, s2) - e
        y = to(t, 1, e) - t * 1.5 * (math.expm1(h) / h - 1) * d2
    return y
