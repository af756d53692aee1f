"""What may stand at a place of a job's config: the roles of plugs, and what a class of each has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Role:
    """What may stand at a place of a job's config.

    Attributes:
        name: for the message.
        room: the package that holds the project's classes of the role.
        methods: what each of them has.
        inside: roles of the nodes among its arguments.
    """

    name: str
    room: str
    methods: tuple[str, ...]
    inside: tuple[str, ...] = ()

    def lacks(self, names: object) -> str:
        """What is to be said of a thing with these attributes that is of another kind altogether; empty where it has a method of
        the role. What else it should have is for the check of plugs to say."""
        if not isinstance(names, frozenset | set | list | tuple) or any(method in names for method in self.methods):
            return ""
        return (
            f"is no {self.name}: it has no method {' or '.join(self.methods)}; accepted are classes as in {self.room}."
        )


# by the section of a job's config; below the line, what stands only inside others
ROLES = {
    "guidance": Role("guidance", "research.guidance", ("branches", "combine"), ("guidance", "loss")),
    "hooks": Role("hook", "research.hooks", ("pre_step", "post_step"), ("transform",)),
    "metrics": Role("metric", "research.metrics", ("check", "compute")),
    "task": Role("task", "research.tasks", ("conditions", "timeline")),
    "sigmas": Role("grid of noise levels", "research.sigmas", ("levels",)),
    "tracker": Role("tracker", "research.tracking", ("log_job", "close")),
    "sampler": Role("sampler", "research.samplers", ("batches",), ("score", "loss")),
    # --
    "score": Role("score", "research.metrics", ("compute",)),
    "loss": Role("loss", "research.guidance.losses", ("__call__",)),
    "transform": Role("latent transform", "research.hooks", ("__call__",)),
}


def role_at(key: str) -> Role | None:
    """The role of a plug by its dotted key (``guidance``, ``hooks.mine``, ``guidance.modifiers.interval``); None of what stands
    inside of one, and of what has none."""
    section, _, rest = key.partition(".")
    named = rest.removeprefix("modifiers.") if section == "guidance" else rest
    outermost = (
        bool(named) == (section in ("hooks", "metrics") or named != rest) and "." not in named and "[" not in key
    )
    return ROLES.get(section) if outermost and section not in ("loss", "score", "transform") else None
