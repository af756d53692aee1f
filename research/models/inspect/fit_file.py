"""Whether a single-file checkpoint and a directory of configs make a model, tried without reading a weight.

`fit_file` is asked by `load_model`, ``--convert``, ``research-inspect`` and planning; what it raises is what all of them say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from research.errors import ModelError
from research.models.inspect.checkpoints import Checkpoint, Layout, Marks
from research.models.inspect.families import FAMILIES, Classes, family_of
from research.models.inspect.find_model import pipeline_class, read_index
from research.models.inspect.fit import quietly, reason, scheduler_problem, tokenizer_problem
from research.models.inspect.kinds import Kind
from research.models.inspect.parts import WEIGHTED, choose_variants, config_problems, entry_of, index_problems
from research.models.inspect.safe_files import read_json, shown
from research.models.inspect.weights import TensorInfo, variants, weight_files

_BESIDE = ("depth_estimator", "feature_extractor")  # of a depth model: in no single file
# schedulers of diffusers that can start from noise alone (rescale_betas_zero_snr)
ZERO_SNR = (
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)


@dataclass
class FileFit:
    """A single file and the directory that gives what it lacks.

    Attributes:
        index: ``model_index.json`` of the directory that they make.
        classes: of the parts that are in the file.
        taken: the parts whose weights are the directory's, with the variant of these weights.
        scheduler: the config of its scheduler, with the file's own marks heeded.
        notes, warnings: what is good to know, and what is doubtful.
    """

    index: dict[str, Any]
    classes: dict[str, str]
    taken: dict[str, str]
    scheduler: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_directory(checkpoint: Checkpoint, directory: Path) -> dict[str, Any]:
    """Make sure from its small files that a directory goes with a checkpoint, and return its index. Needs no torch.

    Raises:
        ModelError: it is of another family, or one of its configs is missing or broken.
    """
    try:
        index = {**read_index(directory), "_class_name": pipeline_class(directory)}
        original = checkpoint.original
        family = family_of(index["_class_name"])
        if family is not FAMILIES[original.family]:
            raise ModelError(
                f"model.path: {directory} is a {shown(index['_class_name'])}; accepted with a single file of {original.what} is "
                f"a {FAMILIES[original.family].pipelines[0]}, or one of the same parts."
            )
        for name, classes in _wanted(index).items():
            if problems := index_problems(directory, name, index.get(name), classes):
                raise ModelError(problems[0])
            if name in WEIGHTED:
                file = directory / name / "config.json"
                if problems := config_problems(file, read_json(file), entry_of(index[name])[1]):
                    raise ModelError(problems[0])
        read_json(directory / "scheduler" / "scheduler_config.json")
    except ModelError as error:
        raise ModelError(str(error).replace("model.path", "model.config", 1)) from error
    return index


def check_whole(file: Path, kind: Kind) -> None:
    """Make sure that a file lacks nothing that its model needs, since there is no directory to take it from.

    Raises:
        ModelError: it lacks parts.
    """
    if needed := [part for part in _checkpoint(file, kind).missing if part != "text_encoder_3"]:
        raise ModelError(
            f"model.path: {file} is {kind.what}; accepted with it is a diffusers directory as model.config (--config DIR) that "
            f"has weights of its {', '.join(needed)}."
        )


def missing_parts(
    file: Path, kind: Kind, directory: Path, index: Mapping[str, Any]
) -> tuple[dict[str, str], list[str]]:
    """The parts that a file lacks and a directory has, with the variant of their weights, and the parts that the model does
    without. Needs no torch.

    Raises:
        ModelError: a part that the model needs is in neither.
    """
    checkpoint = _checkpoint(file, kind)
    family = FAMILIES[checkpoint.original.family]
    lacking = [name for name in _wanted(index) if name in WEIGHTED and name not in checkpoint.parts]
    with_weights: list[str] = []
    without: list[str] = []
    for name in lacking:
        (with_weights if _has_weights(directory / name) else without).append(name)
    needed = [name for name in without if name not in family.optional or name != "text_encoder_3"]
    if needed:
        raise ModelError(
            f"model.path: {file} is {kind.what}; {directory} has no weights of its {', '.join(needed)}, accepted as "
            "model.config (--config DIR) is a directory that has them."
        )
    if strange := [name for name in checkpoint.parts if name not in _wanted(index) and name != "text_encoder_3"]:
        raise ModelError(
            f"model.path: {file} and the configs of {directory} do not fit: the file has a {strange[0]}, the configs none."
        )
    try:
        chosen = choose_variants(directory, with_weights)
    except ModelError as error:
        raise ModelError(str(error).replace("model.path", "model.config", 1)) from error
    return chosen, without


def check_small_files(file: Path, kind: Kind, directory: Path) -> None:
    """Look whether a single file and a directory can make a model, as far as that is told without torch.

    Raises:
        ModelError: see `check_directory` and `missing_parts`.
    """
    missing_parts(file, kind, directory, check_directory(_checkpoint(file, kind), directory))


def fit_file(
    file: Path, kind: Kind, tensors: Mapping[str, TensorInfo] | None, directory: Path, *, given: bool = True
) -> FileFit:
    """What a single file makes with a directory of configs.

    Args:
        tensors: the file's, from its header; None for a pickle that is not opened, of which only the names are known.
        given: whether somebody chose the directory for this file; if not it is the hub's for files of this kind.

    Raises:
        ModelError: they do not fit, or parts are in neither; or the directory is broken.
    """
    checkpoint = _checkpoint(file, kind)
    index = dict(check_directory(checkpoint, directory))
    taken, absent = missing_parts(file, kind, directory, index)
    if problem := _small_problem(directory, index):
        raise ModelError(problem.replace("model.path", "model.config", 1))
    notes = list(checkpoint.notes) if tensors is not None else []
    classes = {}
    for name, accepted in _wanted(index).items():
        if name not in checkpoint.parts:
            continue
        named = str(entry_of(index[name])[1])
        # diffusers' index may name the class with a projection, which Stable Diffusion has no use for
        classes[name] = "CLIPTextModel" if "CLIPTextModel" in accepted else named
        index[name] = [entry_of(index[name])[0], classes[name]]
        if tensors is not None:
            layout, names = checkpoint.parts[name]
            config = directory / name / "config.json"
            notes += _part_notes(
                file, directory, name, layout, {n: tensors[at] for n, at in names.items()}, config, classes[name]
            )
    if "text_encoder_3" in absent or ("text_encoder_3" in index and "text_encoder_3" not in _wanted(index)):
        index["text_encoder_3"] = index["tokenizer_3"] = [None, None]
    if "text_encoder_3" in absent:
        notes.append(
            "neither it nor its configs have weights of T5 (text_encoder_3): zeros stand in the place of its text"
        )
    if taken:
        notes.append(f"{', '.join(taken)}: the weights are those of {directory}")
    scheduler = read_json(directory / "scheduler" / "scheduler_config.json")
    scheduler, said, doubted = heeded(scheduler, checkpoint.marks, given=given)
    if checkpoint.marks.edm and not str(scheduler.get("_class_name")).startswith("EDM"):
        raise ModelError(
            f"model.config: {file} is preconditioned as EDM ({checkpoint.marks.edm}), and the scheduler of {directory} is a "
            f"{shown(scheduler.get('_class_name'))}; accepted with it is a directory with an EDM scheduler."
        )
    return FileFit(index, classes, taken, scheduler, notes + said, doubted)


def heeded(
    config: Mapping[str, Any], marks: Marks, *, given: bool = True
) -> tuple[dict[str, Any], list[str], list[str]]:
    """A scheduler config with what a single file says of itself put into it, with notes and warnings.

    A mark of v-prediction or of a terminal signal-to-noise ratio of zero (Lin et al., arXiv:2305.08891) is stronger than the
    configs. One of epsilon, which programs write by default, is not stronger than configs that somebody chose.
    """
    found = dict(config)
    notes: list[str] = []
    warnings: list[str] = []
    if "FlowMatch" in str(config.get("_class_name")):
        return found, notes, warnings
    own = str(config.get("prediction_type", "epsilon"))
    if marks.prediction_type is not None and marks.prediction_type != own:
        if marks.prediction_type == "v_prediction" or not given:
            found["prediction_type"] = marks.prediction_type
            notes.append(f"its network predicts {marks.prediction_type} (so {marks.by}); the configs say {own}")
        else:
            warnings.append(
                f"its network predicts {own}, as the configs say; {marks.by} says {marks.prediction_type}, which is not heeded"
            )
    if marks.zero_terminal_snr and not config.get("rescale_betas_zero_snr"):
        found |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        said = "betas are rescaled to a terminal signal-to-noise ratio of zero and steps start at the last timestep"
        if config.get("_class_name") not in ZERO_SNR:
            found["_class_name"] = "DDIMScheduler"
            for key in ("skip_prk_steps", "trained_betas", "interpolation_type", "use_karras_sigmas"):
                found.pop(key, None)
            said += f", by DDIM, as a {shown(config.get('_class_name'))} cannot"
        notes.append(f"{said} (so {marks.by})")
    return found, notes, warnings


def _checkpoint(file: Path, kind: Kind) -> Checkpoint:
    if kind.checkpoint is None:
        raise ModelError(f"model.path: {file} {kind.sentence()}")
    return kind.checkpoint


def _wanted(index: Mapping[str, Any]) -> dict[str, Classes]:
    """The parts that a directory is asked for, but those that go with a depth map, which may be missing."""
    family = family_of(index["_class_name"])
    assert family is not None
    return {name: classes for name, classes in family.wanted(index).items() if name not in _BESIDE}


def _has_weights(folder: Path) -> bool:
    try:
        return any(weight_files(folder, allow_pickle=False, variant=each)[0] for each in variants(folder))
    except (ModelError, OSError):
        return False


def _small_problem(directory: Path, index: Mapping[str, Any]) -> str | None:
    """What is wrong with tokenizers and scheduler."""
    for name in _wanted(index):
        if name.startswith("tokenizer"):
            config = read_json(directory / name.replace("tokenizer", "text_encoder") / "config.json")
            if problem := tokenizer_problem(directory / name, config.get("vocab_size"), str(entry_of(index[name])[1])):
                return problem
    return scheduler_problem(directory / "scheduler")


# -- one part


def make_module(config: Path, class_name: str) -> Any:
    """The module that a config describes, without contents (on torch's meta device).

    Raises:
        ModelError: the config makes none.
    """
    import diffusers
    import torch
    import transformers

    content = read_json(config)
    try:
        with quietly(), torch.device("meta"):
            if (cls := getattr(diffusers, class_name, None)) is not None:
                return cls.from_config(content)
            cls = getattr(transformers, class_name)
            return cls(cls.config_class(**content))
    except Exception as error:  # what a strange value makes a constructor raise is no closed list
        raise ModelError(f"model.config: {config} makes no {class_name}: {reason(error)}") from error


def part_tensors(
    file: Path, directory: Path, name: str, layout: Layout, tensors: Mapping[str, Any], module: Any
) -> tuple[dict[str, Any], list[str]]:
    """The tensors of one part under the names of its module, and notes.

    Args:
        tensors: torch's, with or without contents, by their names in the part.

    Raises:
        ModelError: the module has weights that are not among them, or other shapes, or no place for some.
    """
    from research.models.inspect.original_layout import converted, fitted, surplus_layers, without_scales

    start = f"model.path: {file} and the configs of {directory} do not fit:"
    try:
        found = converted(layout, tensors, dict(module.config if layout.startswith("ldm") else {}), module)
    except KeyError as error:
        raise ModelError(
            f"{start} the file lacks {shown(error.args[0] if error.args else error)} of the {name}."
        ) from error
    except Exception as error:  # the converters of the library go by shapes and numbers in names, and check nothing
        raise ModelError(f"{start} the {name} of the file cannot be converted: {reason(error)}") from error
    wanted, notes = module.state_dict(), []
    if layout in ("clip", "open-clip", "t5"):
        if surplus := surplus_layers(found, module):
            notes.append(f"the last {surplus} layers of its {name} are left out, which the configs do without")
        found = fitted(
            found, module, projected=not (name == "text_encoder" and "projection" in type(module).__name__.lower())
        )
    if wrong := [key for key, value in found.items() if key in wanted and value.shape != wanted[key].shape]:
        raise ModelError(
            f"{start} {shown(wrong[0])} of the {name} has shape {list(found[wrong[0]].shape)} in the file and "
            f"{list(wanted[wrong[0]].shape)} by the configs{_more(wrong)}."
        )
    if lacking := sorted(wanted.keys() - found.keys()):
        raise ModelError(f"{start} the file lacks {shown(lacking[0])} of the {name}{_more(lacking)}.")
    if strange := sorted(found.keys() - wanted.keys()):
        raise ModelError(f"{start} the configs have no place for {shown(strange[0])} of the {name}{_more(strange)}.")
    if layout in ("ldm-unet", "ldm-vae"):  # what these converters do not know they leave out, and say nothing
        given, kept = (sum(each.numel() for each in group.values()) for group in (without_scales(tensors), found))
        if given > kept:
            raise ModelError(f"{start} the {name} of the file has {given} parameters, that of the configs {kept}.")
    return found, notes


def _part_notes(
    file: Path,
    directory: Path,
    name: str,
    layout: Layout,
    infos: Mapping[str, TensorInfo],
    config: Path,
    class_name: str,
) -> list[str]:
    import torch

    tensors = {key: torch.empty(info.shape, device="meta") for key, info in infos.items()}
    return part_tensors(file, directory, name, layout, tensors, make_module(config, class_name))[1]


def _more(found: Sequence[object]) -> str:
    return f" and {len(found) - 1} more" if len(found) > 1 else ""
