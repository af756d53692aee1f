"""The shape of the project: who may import whom, one loop, short modules, nothing heavy before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import research

ROOT = Path(research.__file__).parent
MODULES = sorted(p.relative_to(ROOT) for p in ROOT.rglob("*.py"))
TREES = {path: ast.parse((ROOT / path).read_text(encoding="utf-8")) for path in MODULES}

# imports go one way: a package may use those of a lower number
LAYERS = {
    "pictures": 0,
    "sampling": 0,
    "solvers": 1,
    "schedule": 2,
    "statistics": 0,
    "testing": 2,
    "guidance": 1,
    "hooks": 1,
    "tasks": 2,
    "models": 2,
    "metrics": 2,
    "tracking": 2,
    "report": 2,
    "results": 1,
    "zoo": 2,
    "compare": 3,
    "jobs": 3,
    "cli": 4,
    "preview_cli": 4,
    "__main__": 5,
}
LEAVES = {
    "caches",
    "checks",
    "drawing",
    "errors",
    "files",
    "hashing",
    "clip",
    "image_tensors",
    "labels",
    "lazy",
    "strength",
}  # free to all, and using nobody but the errors
# the zoo's paths are asked for by everyone; its scripts may use anything below the runner
SAME_LEVEL = {
    ("tasks", "models"),  # types of what a task encodes with
    ("models", "zoo"),
    ("hooks", "zoo"),  # what comes with an embedded model
    ("pictures", "zoo"),
    ("metrics", "zoo"),
    ("zoo", "models"),
    ("zoo", "metrics"),
    ("zoo", "tasks"),
    ("metrics", "models"),
    ("schedule", "models"),  # whose schedules are drawn
}
HEAVY = ("torch", "diffusers", "transformers", "wandb", "matplotlib", "torchmetrics", "numpy", "scipy")


def package_of(path: Path) -> str:
    return path.parts[0] if len(path.parts) > 1 else path.stem


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every imported name, dotted, wherever in the file it stands."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def ours(path: Path) -> Iterator[tuple[str, int]]:
    """The parts of the project that a module imports."""
    for name, line in imports(path):
        parts = name.split(".")
        if parts[0] == "research" and len(parts) > 1 and parts[1] != "config_dir":
            yield parts[1], line


def test_every_part_of_the_project_has_its_place():
    packages = {package_of(path) for path in MODULES} - {"__init__"}
    assert packages <= LAYERS.keys() | LEAVES


@pytest.mark.parametrize("path", [p for p in MODULES if package_of(p) in LAYERS], ids=str)
def test_imports_go_one_way(path):
    package = package_of(path)
    for other, line in ours(path):
        if other == package or other in LEAVES or other.startswith("__"):
            continue
        if other not in LAYERS:  # a name that research itself re-exports: those are of the core and of models
            assert other in research.__all__
            other = {"load_model": "models"}.get(other, "sampling")
        allowed = LAYERS[other] < LAYERS[package] or (package, other) in SAME_LEVEL
        assert allowed, f"{path}:{line}: research.{package} imports research.{other}"


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_leaves_use_nobody(name):
    assert {other for other, _ in ours(Path(f"{name}.py"))} <= {"checks", "errors"}


@pytest.mark.parametrize("path", [p for p in MODULES if package_of(p) == "sampling"], ids=str)
def test_the_core_imports_torch_and_nothing_else(path):
    for name, line in imports(path):
        top = name.split(".")[0]
        if top == "research":
            assert name.split(".")[1] in {"sampling", "checks", "errors", "strength"}, f"{path}:{line}: {name}"
        else:
            assert top == "torch" or top in sys.stdlib_module_names, f"{path}:{line}: {name}"


# --- one loop


def calls(node: ast.AST) -> set[str]:
    """Names of what is called anywhere below."""
    found = set()
    for call in ast.walk(node):
        if isinstance(call, ast.Call):
            function = call.func
            found.add(function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", ""))
    return found


def walks_over_time(node: ast.For | ast.While | ast.comprehension) -> bool:
    over = ast.unparse(node.test if isinstance(node, ast.While) else node.iter).lower()
    return any(word in over for word in ("timestep", "timeline", "stages", "sigmas", "times"))


NETWORKS = {"predict", "unet", "denoiser", "network", "transformer"}


def sampling_loops(tree: ast.AST) -> list[int]:
    """Lines of loops that walk over time and evaluate a network."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.For | ast.While) and walks_over_time(node) and calls(node) & NETWORKS
    ]


def test_there_is_one_loop_over_timesteps():
    loops = {str(path): found for path, tree in TREES.items() if (found := sampling_loops(tree))}
    assert loops.keys() == {str(Path("sampling/loop.py"))}
    assert len(loops[str(Path("sampling/loop.py"))]) == 1


def test_only_the_denoisers_call_the_unet_at_a_timestep():
    """Two positional arguments and more: latents and a time. The zoo's training calls it too; it does not sample."""
    callers = set()
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and len(node.args) >= 2:
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in NETWORKS - {"denoiser"}:
                    callers.add(str(path))
    callers = {caller for caller in callers if not caller.startswith("zoo")}
    assert callers == {
        str(Path("hooks/feature_cache.py")),  # hands on what it is asked for
        str(Path("guidance/scales.py")),  # the same
        str(Path("testing/gaussian_conditional.py")),  # around the denoisers of two Gaussians
        str(Path("models/unet_denoiser.py")),
        str(Path("sampling/branches.py")),
        str(Path("sampling/state.py")),
    }


def test_the_check_sees_a_second_loop():
    second = """
for t in scheduler.timesteps:
    noise = self.unet(x, t, encoder_hidden_states=e).sample
    x = scheduler.step(noise, t, x).prev_sample
"""
    assert sampling_loops(ast.parse(second)) == [2]


def test_the_loop_fits_a_screen():
    (loop,) = (
        node
        for node in ast.walk(TREES[Path("sampling/loop.py")])
        if isinstance(node, ast.FunctionDef) and node.name == "_denoise"
    )
    assert loop.end_lineno - loop.lineno + 1 <= 50


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_no_module_is_long(path):
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(TREES[path])


# --- nothing heavy before it is needed


@pytest.mark.parametrize(
    "module",
    [
        "research",
        "research.cli",
        "research.compare",
        "research.compare.cli",
        "research.models.inspect.cli",
        "research.models.inspect.safe_files",
        "research.models.inspect.parts",
        "research.models.find_model",
        "research.preview_cli",
        "research.models.weights",
        "research.solvers",
        "research.zoo",
        "research.errors",
        "research.hashing",
        "research.files",
        "research.lazy",
        "research.pictures",
        "research.strength",
        "research.tasks",
        "research.tasks.checks",
    ],
)
def test_importing_is_light(module):
    code = f"import sys, {module}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout.split() == []


def test_the_public_names_are_there():
    for name in research.__all__:
        assert getattr(research, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        research.nothing  # noqa: B018
