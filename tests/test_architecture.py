"""The shape of the project: the contracts between rooms, one loop, nothing heavy before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest
from importlinter.cli import lint_imports

import research

ROOT = Path(research.__file__).parent
MODULES = sorted(p.relative_to(ROOT) for p in ROOT.rglob("*.py"))

HEAVY = ("torch", "diffusers", "transformers", "wandb", "matplotlib", "torchmetrics", "numpy", "scipy")


@cache
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse((ROOT / path).read_text(encoding="utf-8")) for path in MODULES}


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every imported name, dotted, wherever in the file it stands."""
    for node in ast.walk(trees()[path]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def test_the_contracts_between_rooms_hold():
    """Those of `[tool.importlinter]` in pyproject.toml, which `make lint` also holds."""
    assert lint_imports(config_filename=str(ROOT.parent / "pyproject.toml"), no_cache=True) == 0


def test_no_file_imports_one_that_imports_it():
    """Finer than the contract of siblings: a package's `__init__` is a file too. Imports for types and lazy ones count."""
    graph = grimp.build_graph("research", cache_dir=None)
    TopologicalSorter({name: graph.find_modules_directly_imported_by(name) for name in graph.modules}).prepare()


# itself, and leaves that need no library
OF_THE_CORE = {"sampling", "arguments", "checks", "errors", "progress_bar", "showing", "strength"}


def test_the_core_imports_torch_and_nothing_else():
    for path in [path for path in MODULES if path.parts[0] == "sampling"]:
        for name, line in imports(path):
            top = name.split(".")[0]
            if top == "research":
                assert name.split(".")[1] in OF_THE_CORE, f"{path}:{line}: {name}"
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
    loops = {str(path): found for path, tree in trees().items() if (found := sampling_loops(tree))}
    assert loops.keys() == {str(Path("sampling/loop.py"))}
    assert len(loops[str(Path("sampling/loop.py"))]) == 1


def network_calls(tree: ast.AST) -> list[ast.Call]:
    """Two positional arguments and more: latents and a time."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and len(node.args) >= 2:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in NETWORKS - {"denoiser"}:
                found.append(node)
    return found


def test_only_evaluate_calls_the_network_at_a_timestep():
    """In a model its method `evaluate`, and else what hands on what it is asked for. The zoo's training does not sample."""
    callers = set()
    for path, tree in trees().items():
        evaluating = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "evaluate"]
        allowed = {call for node in evaluating for call in network_calls(node)}
        if any(call not in allowed for call in network_calls(tree)) and not str(path).startswith("zoo"):
            callers.add(str(path))
    assert callers == {
        str(Path("hooks/feature_cache.py")),  # hands on what it is asked for
        str(Path("hooks/freeu.py")),  # the same
        str(Path("guidance/scales.py")),  # the same
        str(Path("models/own/model.py")),  # the same, and notes the stage for `evaluate`
        str(Path("testing/gaussian_conditional.py")),  # around the denoisers of two Gaussians
        str(Path("sampling/loop.py")),  # the denoisers of several models, each asked for its branches
        str(Path("sampling/interfaces.py")),  # a step's state, asked by hooks
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
        for node in ast.walk(trees()[Path("sampling/loop.py")])
        if isinstance(node, ast.FunctionDef) and node.name == "_denoise"
    )
    assert loop.end_lineno - loop.lineno + 1 <= 50


def test_no_two_files_of_tests_have_one_name():
    """pytest takes them for one module, and runs none."""
    names = [file.name for file in Path(__file__).parent.rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_every_module_says_what_it_is():
    assert [str(path) for path, tree in trees().items() if not ast.get_docstring(tree)] == []


# --- nothing heavy before it is needed


@pytest.mark.parametrize(
    "module",
    [
        "research",
        "research.check_cli",
        "research.cli",
        "research.compare",
        "research.compare.cli",
        "research.models.inspect_cli",
        "research.models.inspect.safe_files",
        "research.models.inspect.parts",
        "research.models.inspect.find_model",
        "research.preview_cli",
        "research.models.inspect.weights",
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
@pytest.mark.spread(3)
def test_importing_is_light(module):
    code = f"import sys, {module}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout.split() == []


def test_the_public_names_are_there():
    for name in research.__all__:
        assert getattr(research, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        research.nothing  # noqa: B018
