"""Random command lines: overrides such as people mistype, paste and generate."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any


def _words(text: str) -> list[str]:
    return text.split()


_WORDS = [
    *_words("""
    a fox True null none inf -0 1e400 ddim emoji über 狐 steps cfg
    """),
    "x" * 90,
]
_CLASSES = _words("""
    research.guidance.CFG research.guidance.Interval research.guidance.CGF research.tasks.TextToImage
    research.hooks.Record research.metrics.FID research.metrics.CLIPScore research.sigmas.Karras
    research.tracking.WandbTracker research.sampling.loop.LoopSampler research.solvers.LinearSolver
    research.guidance research os.getcwd builtins.int builtins.dict collections.OrderedDict json.loads pathlib.Path
    nowhere.Mine a..b .a a. DDIMScheduler diffusers.DDIMScheduler diffusers.UNet2DModel
""")
_SCHEDULERS = _words("""
    DDIMScheduler TCDScheduler RePaintScheduler KarrasVeScheduler VQDiffusionScheduler DDIMSheduler
    FlowMatchEulerDiscreteScheduler ScoreSdeVeScheduler Scheduler diffusers.DDIMScheduler
""")
_FUNCTIONS = _words("""
    int(3) str(3) json_str('1') range(1,4) range(4) range(0,3,0) range(0,1,0.25) glob(*) glob([d*,e*]) choice(1,2)
    sort(3,1,2) shuffle(1,2,3) interval(0,1) tag(a,b) extend_list(1) float(nan) bool(x) shuffle(range(1,4))
    sort(a,b,reverse=true) int('x') glob(*,exclude=d*)
""")
_INTERPOLATIONS = _words(r"""
    ${steps} ${nothing} ${guidance} ${guidance.scale} ${.scale} ${oc.env:HOME} ${oc.env:NO_SUCH_VARIABLE}
    ${oc.decode:'[1'} ${hydra:runtime.cwd} ${prompts} ${now:%Y} ${sweep} ${model.path} ${steps ${}
    ${oc.select:steps,3} ${prompts[0]} ${prompts[99]} \${steps} ${${steps}} ??? ${oc.create:{a:1}}
""")
# what belongs to Hydra, and flags
_HYDRA = _words("""
    hydra.run.dir=x hydra.sweep.dir=x hydra.sweep.subdir=y hydra.job.chdir=true hydra.mode=MULTIRUN hydra.mode=x
    hydra.verbose=true hydra/launcher=basic hydra/launcher=nothing hydra.searchpath=[x]
    hydra.sweeper.params={steps:3} +hydra.sweeper.params.steps=[1 hydra.job.num=3 ~hydra.sweep hydra=3
    hydra.launcher._target_=os.getcwd hydra.sweeper._target_=os.getcwd hydra/help=research hydra.output_subdir=a
""")
_FLAGS = _words("""
    -m --plan=quick --json --cfg=job --resolve --info=defaults --run -x
""")
_OTHER_KEYS = [
    *_words("""
    num_inference_steps guidance_scale negative_prompt generator step seeds modle a.b.c guidance.a.b
    guidance.modifiers guidance.modifiers.interval hooks.record hooks.mine._target_ metrics.mine
    metrics.fid.reference tracker.mode tracker.mine scheduler.options.eta scheduler.options.use_karras_sigmas
    sigmas.rho sigmas._target_ model.loras model._target_ task.image task.strength task.frames steps.a prompts.0
    prompts[0] seed. sweep.exclude sweep.points sweep.zip sweep.sample sweep.max_points sweep.nothing
    report.margin.fid report.unit budget.nfe budget.over timesteps guidance@task guidance@ @ é _target_ defaults
    """),
    "",
]


class RandomLines:
    """Command lines drawn from a seed.

    Args:
        config: the config that is composed when nothing is said, whose keys are drawn from.
        groups: the groups with their choices.
        seed: the same seed gives the same lines.
    """

    def __init__(self, config: dict[str, Any], groups: dict[str, list[str]], seed: int):
        self._rng = random.Random(seed)
        self._keys = [*_dotted(config, "")]
        self._groups = {name: choices for name, choices in groups.items() if not name.startswith("hydra")}

    def __iter__(self) -> Iterator[list[str]]:
        while True:
            yield self.line()

    def line(self) -> list[str]:
        """The arguments of one command."""
        rng = self._rng
        found = [self._override() for _ in range(rng.choice((1, 1, 1, 2, 2, 3)))]
        if rng.random() < 0.04:
            found.append(rng.choice(_HYDRA))
        if rng.random() < 0.04:
            found.append(rng.choice(_FLAGS))
        elif rng.random() < 0.3:
            found.append("-m")
        rng.shuffle(found)
        return found

    def _override(self) -> str:
        rng = self._rng
        kind = rng.random()
        if kind < 0.02:
            return self._value(0)  # no key at all
        if kind < 0.3:
            return self._of_group()
        key = rng.choice(self._keys if rng.random() < 0.75 else _OTHER_KEYS)
        if kind < 0.42:
            return f"~{key}" if rng.random() < 0.8 else f"~{key}={self._value(0)}"
        value = self._fitting(key) if rng.random() < 0.25 else self._value(0)
        return f"{rng.choice(('', '', '', '+', '++'))}{key}={value}"

    def _of_group(self) -> str:
        rng = self._rng
        group = rng.choice([*self._groups])
        choices = self._groups[group]
        prefix = rng.choice(("", "", "", "", "+", "++", "~"))
        if prefix == "~":
            return f"~{group}"
        if group == "scheduler" and rng.random() < 0.3:
            return f"{prefix}{group}={rng.choice(_SCHEDULERS)}"
        kind = rng.random()
        if kind < 0.5:
            value = rng.choice(choices)
        elif kind < 0.7:
            value = ",".join(rng.choices(choices, k=2))
        elif kind < 0.8:
            value = f"[{','.join(rng.choices(choices, k=2))}]"
        else:
            value = self._value(0)
        return f"{prefix}{group}={value}"

    def _fitting(self, key: str) -> str:
        """A value that may well be right for a key."""
        rng = self._rng
        last = key.rpartition(".")[2]
        if last == "_target_":
            return rng.choice(_CLASSES)
        if last == "class_name":
            return rng.choice((*_SCHEDULERS, *_CLASSES))
        if "prompt" in last:
            return rng.choice(("[a fox]", '["a fox","an owl, red"]', "a fox", '"a fox"'))
        return rng.choice(("1", "2", "3", "0.5", "7", "true", "false", "auto", "null", "1,2", "0.1,0.9"))

    def _value(self, depth: int) -> str:
        rng = self._rng
        kind = rng.random()
        if kind < 0.2:
            return rng.choice(
                ("0", "1", "-1", "3", "2.5", "10", "1e9", "99999999999999999999", "0.1", "1_000", "0x10", "1e-320")
            )
        if kind < 0.35:
            return rng.choice(_WORDS)
        if kind < 0.45 and depth < 3:
            return f"[{','.join(self._value(depth + 1) for _ in range(rng.randrange(4)))}]"
        if kind < 0.55 and depth < 3:
            pairs = (
                f"{rng.choice(('a', '_target_', 'scale', 'path', '1'))}:{self._value(depth + 1)}" for _ in range(2)
            )
            return f"{{{','.join(pairs)}}}"
        if kind < 0.65:
            return rng.choice(_CLASSES)
        if kind < 0.75:
            return rng.choice(_FUNCTIONS)
        if kind < 0.87:
            return rng.choice(_INTERPOLATIONS)
        if kind < 0.92:
            return ",".join(self._value(3) for _ in range(rng.randrange(2, 4)))
        return rng.choice(self._odd())

    def _odd(self) -> Sequence[str]:
        """What breaks out of the grammar, or is far too much of it."""
        return (
            *(
                "",
                " ",
                '"',
                "'",
                "'a",
                '"a\\"',
                "[",
                "]",
                "{",
                "}",
                "(",
                "a=b",
                "=",
                ":",
                ",",
                ",,",
                "\\",
                "$",
                "${",
                "%",
                "a\nb",
                "\t",
            ),
            *(
                "[" * 300,
                "[" * 300 + "]" * 300,
                "{a:" * 200 + "1" + "}" * 200,
                "(" * 300,
                "a" * 80_000,
                "\x00",
                "\x1b[31m",
                "\udcff",
            ),
            *(
                "a\u2028b",
                "../../etc",
                "/dev/null",
                "~",
                "*",
                "!!python/object:os.system",
                "- a",
                "# a",
                "&a [*a]",
                "9" * 5_000,
            ),
        )


def _dotted(node: Any, above: str) -> Iterator[str]:
    for key, value in node.items():
        name = f"{above}{key}"
        yield name
        if isinstance(value, dict):
            yield from _dotted(value, f"{name}.")
