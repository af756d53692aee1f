"""Whether a pipeline can be loaded: its parts whole, each fitting its config and one another, tried without reading a weight.

`examine` is asked by `load_model` and by plans, which raise the first problem, and by ``research-inspect``, which tells them all.

The libraries themselves are asked: each module is made on torch's meta device, where tensors have shapes and no contents.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from research.errors import ModelError, nearest
from research.hub_cache import commit_of, hub_name
from research.models.inspect.families import PIPELINES, class_in
from research.models.inspect.find_model import index_notes, pipeline_class, read_index
from research.models.inspect.parts import Component, components_of, is_whole, repaired_config
from research.models.inspect.safe_files import read_json, shown, unreadable
from research.models.inspect.view import shown_directory, shown_folder
from research.models.inspect.weights import first_not_finite, misfit, surplus_layers

MOST_TIMESTEPS = 100_000
READ_UNASKED = 256 << 20  # bytes of weights that are looked through for NaN without being asked to
_PIECES = ("spiece.model", "tokenizer.model")  # of SentencePiece
_OF_ANGLES = "SCMScheduler"  # of trigonometric flow, which has angles in place of timesteps
_CHOICES = {
    "prediction_type": ("epsilon", "v_prediction", "sample", "flow_prediction"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
}


@dataclass(frozen=True)
class Examined:
    """What is known of a pipeline's directory before a weight is loaded.

    Attributes:
        index: ``model_index.json``, of the family's pipeline.
        parts: the parts that it names.
        problems: what keeps it from being loaded, whether pickles are allowed or not.
        refusals: what keeps it from being loaded as long as pickles are not allowed.
        notes: what is read otherwise than it stands there.
    """

    directory: Path
    index: dict[str, Any]
    parts: list[Component]
    problems: list[str]
    refusals: list[str]
    notes: list[str]

    @contextlib.contextmanager
    def shown(self) -> Iterator[Path]:
        """The directory as the libraries are to read it, see `research.models.inspect.view`."""
        with shown_directory(self.directory, self.index, [part.view for part in self.parts if part.used]) as view:
            yield view


def examine(directory: Path, *, allow_pickle: bool = False, variant: str | None = None, deep: bool = False) -> Examined:
    """All that decides whether a pipeline can be loaded. `load_model`, the plan of a job and ``research-inspect`` ask it, and
    nothing else; what they found is kept until a file is another.

    Args:
        variant: the variant of weights to read where a part has it.
        deep: look through all weights for values that are not finite, however large they are.

    Raises:
        ModelError: the directory has no index that can be read.
    """
    found = _examined(directory, allow_pickle, variant, deep, _stamp(directory))
    if found.problems and commit_of(directory) and not is_whole(directory, variant):
        more = f"{found.problems[0].rstrip('.')}; the hub's cache holds no more of {hub_name(directory)}."
        return replace(found, problems=[more, *found.problems[1:]])
    return found


def _stamp(directory: Path) -> tuple[object, ...]:
    """Names, sizes and times of the files of a model's directory and of its folders, of those behind links too."""
    found: list[object] = []
    with contextlib.suppress(OSError):
        for entry in sorted(directory.iterdir()):
            for file in sorted(entry.iterdir()) if entry.is_dir() else [entry]:
                with contextlib.suppress(OSError):
                    status = file.stat()
                    found.append((entry.name, file.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return tuple(found)


@lru_cache(maxsize=16)
def _examined(directory: Path, allow_pickle: bool, variant: str | None, deep: bool, _: object) -> Examined:
    index = read_index(directory)
    parts = components_of(directory, index, allow_pickle=allow_pickle, variant=variant)
    problems = []
    try:
        pipeline_class(directory)
    except ModelError as error:
        problems.append(str(error))
    problems += [problem for part in parts for problem in part.problems] or fit_problems(directory, parts)
    refusals = [part.pickle_refusal for part in parts if part.pickle_refusal]
    if not problems:
        problems += _not_finite([file for part in parts if part.used and part.safe for file in part.files], deep)
    notes = [*index_notes(directory), *(note for part in parts if part.used for note in part.notes)]
    if any(part.variant for part in parts):
        notes.append(_variant_note([part for part in parts if part.used and part.files]))
    return Examined(directory, index, parts, problems, refusals, notes)


def checked(directory: Path, *, allow_pickle: bool, variant: str | None = None) -> Examined:
    """A pipeline that can be loaded.

    Raises:
        ModelError: the first thing that is wrong.
    """
    found = examine(directory, allow_pickle=allow_pickle, variant=variant)
    if wrong := [*([] if allow_pickle else found.refusals), *found.problems]:
        raise ModelError(wrong[0])
    return found


def checked_parts(directory: Path, *, allow_pickle: bool) -> list[Component]:
    """The parts of a pipeline that can be loaded, see `checked`."""
    return checked(directory, allow_pickle=allow_pickle).parts


def _not_finite(files: Sequence[Path], deep: bool) -> list[str]:
    """Weights with values that are not finite; large ones are looked through only if asked for."""
    if not deep and sum(file.stat().st_size for file in files) > READ_UNASKED:
        return []
    for file in files:
        if name := first_not_finite(file):
            return [
                f"model.path: {file}: {shown(name)} has values that are not finite (NaN or infinite), so no picture can come "
                "of it."
            ]
    return []


def _variant_note(parts: Sequence[Component]) -> str:
    found = {part.variant for part in parts}
    if len(found) == 1:
        return f"the weights are of one variant ({found.pop()}), and that is what is loaded, converted to the dtype asked for"
    told = ", ".join(f"{part.name} {part.variant or 'plain'}" for part in parts)
    return f"the weights are of several variants ({told}), converted to the dtype asked for"


def fit_problems(directory: Path, parts: Sequence[Component]) -> list[str]:
    """What keeps parts, each whole by itself, from working: shapes, names, classes, and one part with another."""
    by_name = {part.name: part for part in parts if part.used}
    problems = []
    for part in by_name.values():
        if part.problems:
            continue
        if part.tensors:
            found = _module_problem(part)
        elif part.name == "scheduler":
            found = scheduler_problem(part.folder, part.accepted, part.config)
        elif part.name.startswith("tokenizer"):
            encoder = by_name.get(part.name.replace("tokenizer", "text_encoder"))
            rows = encoder.config.get("vocab_size") if encoder else None
            found = tokenizer_problem(part.folder, rows, str(part.class_name), part.notes)
        elif part.name == "feature_extractor":
            found = _processor_problem(part.folder)
        else:
            continue
        if found:
            part.problems.append(found)
            problems.append(found)
    if by_name and not any(part.problems for part in by_name.values()):
        problems += channel_problems({name: part.config for name, part in by_name.items()}, directory)
    return problems


def channel_problems(configs: Mapping[str, Mapping[str, Any]], directory: Path) -> list[str]:
    """Where network, VAE and text encoders were not made for one another."""
    if "transformer" in configs:
        return _transformer_problems(configs, directory)
    unet, vae = (configs.get(name, {}) for name in ("unet", "vae"))
    if not vae or "unet" not in configs:
        return []
    latent, entry, out = vae.get("latent_channels"), unet.get("in_channels"), unet.get("out_channels")
    accepted = {latent: "text", 2 * latent + 1: "inpaint", latent + 1: "depth"} if isinstance(latent, int) else {}
    if entry not in accepted or out != latent:
        wanted = ", ".join(f"{channels} ({role})" for channels, role in accepted.items())
        return [
            f"model.path: the UNet of {directory} takes {entry} input channels and makes {out}, and its VAE has "
            f"{latent}; accepted are {wanted} in and {latent} out."
        ]
    scale = vae.get("scaling_factor", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale) or not scale:
        return [
            f"model.path: {directory / 'vae' / 'config.json'}: scaling_factor is {shown(scale)}; accepted is a number."
        ]
    size = unet.get("sample_size")
    sides = size if isinstance(size, list | tuple) and len(size) == 2 else [size]
    if size is not None and not all(type(side) is int and side > 0 for side in sides):
        return [
            f"model.path: {directory / 'unet' / 'config.json'}: sample_size is {shown(size)}; accepted is a whole number or two, "
            "or none where the task says height and width."
        ]
    width = unet.get("cross_attention_dim")
    # two encoders stand side by side
    hidden = [config.get("hidden_size") for name, config in configs.items() if name.startswith("text_encoder")]
    widths = set(width) if isinstance(width, list | tuple) else {width}
    known = [each for each in hidden if isinstance(each, int)]
    if unet.get("encoder_hid_dim_type") is None and known == hidden and hidden and widths != {sum(known)}:
        made = " and ".join(map(str, known))
        return [
            f"model.path: the UNet of {directory} takes texts of {width} numbers a token and its text encoder makes {made}."
        ]
    return _more_told(unet, directory) or _told_problems(unet, configs.get("text_encoder_2", {}), directory)


def _more_told(unet: Mapping[str, Any], directory: Path) -> list[str]:
    """Where a UNet asks for more than texts, and the sizes of Stable Diffusion XL."""
    known = {
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "addition_embed_type": (None, "text", "text_time"),
        "encoder_hid_dim_type": (None, "text_proj"),
    }
    for key, accepted in known.items():
        if unet.get(key) not in accepted:
            return [
                f"model.path: the UNet of {directory} is told more than a text, by {key} {shown(unet[key])}; accepted: "
                f"{', '.join('none' if each is None else each for each in accepted)}."
            ]
    return []


_PACKED = ("flux", "chroma", "qwen-image")  # whose networks take 2 x 2 latents as one token
# by family: how wide a transformer says its texts are, and the text encoder that makes them, with the key in its config
_WIDTHS: dict[str, Sequence[tuple[str, str, str]]] = {
    "sd3": [("joint_attention_dim", "text_encoder_3", "d_model")],
    "flux": [
        ("joint_attention_dim", "text_encoder_2", "d_model"), ("pooled_projection_dim", "text_encoder", "hidden_size")
    ],
    "chroma": [("joint_attention_dim", "text_encoder", "d_model")],
    "pixart-alpha": [("caption_channels", "text_encoder", "d_model")],
    "pixart-sigma": [("caption_channels", "text_encoder", "d_model")],
    "auraflow": [("joint_attention_dim", "text_encoder", "d_model")],
    "lumina2": [("cap_feat_dim", "text_encoder", "hidden_size")],
    "sana": [("caption_channels", "text_encoder", "hidden_size")],
    "sana-sprint": [("caption_channels", "text_encoder", "hidden_size")],
    "qwen-image": [("joint_attention_dim", "text_encoder", "hidden_size")],
}  # fmt: skip


def _transformer_problems(configs: Mapping[str, Mapping[str, Any]], directory: Path) -> list[str]:
    """Where a transformer, its VAE and its text encoders were not made for one another."""
    network, vae = configs["transformer"], configs.get("vae", {})
    family = PIPELINES.get(str(read_index(directory).get("_class_name")), "")
    latent = vae.get("latent_channels", vae.get("z_dim"))
    tokens = 4 if family in _PACKED else 1
    entry, out = network.get("in_channels"), network.get("out_channels")
    # learned variances are as many channels more; packed networks say what a latent has
    known = isinstance(latent, int) and isinstance(entry, int)
    if known and (entry != tokens * latent or out not in (None, latent, 2 * latent, tokens * latent)):
        each = f" ({latent} in each of {tokens} latents)" if tokens > 1 else ""
        return [
            f"model.path: the transformer of {directory} takes {entry} input channels and makes "
            f"{entry if out is None else out}, and its VAE has {latent}; accepted are {tokens * latent}{each} in."
        ]
    if family == "qwen-image" and network.get("guidance_embeds"):
        return [
            f"model.path: {directory / 'transformer' / 'config.json'}: guidance_embeds is true, with which QwenImagePipeline "
            "calls its network wrongly; accepted is false."
        ]
    for key, part, name in _WIDTHS.get(family, ()):
        config = configs.get(part, {})
        made = config.get(name, (config.get("text_config") or {}).get(name))
        if isinstance(made, int) and isinstance(network.get(key), int) and made != network[key]:
            return [
                f"model.path: the transformer of {directory} takes texts of {network[key]} numbers ({key}), and its {part} makes "
                f"{made}."
            ]
    return []


def _told_problems(unet: Mapping[str, Any], text: Mapping[str, Any], directory: Path) -> list[str]:
    """Where a UNet of the layout of Stable Diffusion XL takes other numbers about the picture than its pipeline tells it."""
    names = ("projection_class_embeddings_input_dim", "addition_time_embed_dim")
    taken, each = (unet.get(name) for name in names)
    pooled = text.get("projection_dim")
    if unet.get("addition_embed_type") != "text_time" or not (taken and each and pooled):
        return []
    scored = bool(read_index(directory).get("requires_aesthetics_score"))
    if taken == pooled + (5 if scored else 6) * each:
        return []
    told = "sizes and a score of looks (5 numbers)" if scored else "two sizes and a corner (6 numbers)"
    return [
        f"model.path: the UNet of {directory} takes {taken} numbers besides the text's tokens; {told} of {each} each and a "
        f"pooled text of {pooled} are {pooled + (5 if scored else 6) * each}, see requires_aesthetics_score in model_index.json."
    ]


def scheduler_problem(folder: Path, accepted: Sequence[str] = (), given: Mapping[str, Any] | None = None) -> str | None:
    """Why no scheduler can be made of a folder's config (or the one given), or none for a family that accepts these classes; with
    none, all that know timesteps."""
    file = folder / "scheduler_config.json"
    try:
        config = given or read_json(file)
        make_scheduler(config, file)
        name = config.get("_class_name")
        if name not in accepted if accepted else name == _OF_ANGLES:
            wanted = ", ".join(accepted) or "a scheduler over timesteps"
            raise ModelError(f"model.path: {file} names {shown(name)} for this pipeline; accepted: {wanted}.")
    except ModelError as error:
        return str(error)
    return None


def make_scheduler(config: Mapping[str, Any], file: Path) -> Any:
    """The diffusers scheduler that a config describes.

    Raises:
        ModelError: its class is unknown, or does not take what the config says.
    """
    import diffusers

    name = config.get("_class_name")
    names = [n for n in dir(diffusers) if n.endswith("Scheduler")]
    cls = getattr(diffusers, name, None) if isinstance(name, str) and name in names else None
    if cls is None or not hasattr(cls, "set_timesteps"):
        raise ModelError(
            f"model.path: {file} names the scheduler class {shown(name)}, which diffusers {diffusers.__version__} does not "
            f"have.{nearest(str(name), names)}"
        )
    steps = config.get("num_train_timesteps", 1000)
    if type(steps) is not int or not 1 <= steps <= MOST_TIMESTEPS:
        raise ModelError(
            f"model.path: {file}: num_train_timesteps is {shown(steps)}; accepted is a whole number from 1 to {MOST_TIMESTEPS}."
        )
    for key, accepted in _CHOICES.items():
        if key == "prediction_type" and name == _OF_ANGLES:
            accepted = ("trigflow",)
        if config.get(key, accepted[0]) not in accepted:
            raise ModelError(f"model.path: {file}: {key} is {shown(config[key])}; accepted: {', '.join(accepted)}.")
    try:
        with quietly():
            return cls.from_config(dict(config))
    except Exception as error:  # what a strange value makes a constructor raise is no closed list
        raise ModelError(f"model.path: {file} makes no {shown(name)}: {reason(error)}") from error


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep the libraries' logs and bars off the terminal."""
    from transformers.utils import logging as bars

    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers", "accelerate", "torch")]
    levels = [logger.level for logger in loggers]
    shown_before = bars.is_progress_bar_enabled()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        bars.disable_progress_bar()
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if shown_before:
            bars.enable_progress_bar()


def reason(error: BaseException) -> str:
    """The first sentence of a library's error, on one line."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = lines[0].strip() if lines else type(error).__name__
    return shown(re.split(r"\. (?=If you want|For more)", text)[0], 300)


def _module_problem(part: Component) -> str | None:
    if not any("F" in dtype for dtype in part.dtypes):
        found = ", ".join(part.dtypes)
        return f"model.path: the weights in {part.folder} are whole numbers ({found}), as if quantised; accepted are floats."
    kind = part.config.get("model_type")
    of_clip = any(name.startswith("CLIP") for name in part.accepted)
    if of_clip and kind is not None and not str(kind).startswith("clip"):
        return (
            f"model.path: {part.folder / 'config.json'} is of a {shown(kind)} model; accepted is a CLIP text encoder."
        )
    try:
        with quietly(), shown_folder(part.view) as folder:
            module, info = _loader(part).from_pretrained(
                folder,
                device_map="meta",
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **({"ignore_mismatched_sizes": True} if part.library == "transformers" else {}),
            )
    except Exception as error:  # what a broken file makes libraries raise is no closed list
        return f"model.path: {part.folder} cannot be loaded: {reason(error).replace(str(folder), str(part.folder))}"
    if surplus := surplus_layers(info, module) if part.name.startswith("text_encoder") else set():
        layers = {name.rpartition("layers.")[2].partition(".")[0] for name in surplus}
        part.notes.append(
            f"{part.name}: its config has {module.config.num_hidden_layers} layers, its weights {len(layers)} more, which are "
            "left out"
        )
    part.config = {**_plain(module.config), **part.config}
    return misfit(info, part.folder, module) or _cannot_run(part, module)


def _plain(config: Any) -> dict[str, Any]:
    """A module's config, with what its file leaves out at the defaults of the class."""
    return dict(config.to_dict() if hasattr(config, "to_dict") else config)


def completed_config(name: str, stored: dict[str, Any], index: Mapping[str, Any]) -> dict[str, Any]:
    """A part's config as `repaired_config` gives it, with what it leaves out at the defaults of its class."""
    import inspect as python

    import diffusers

    config, _ = repaired_config(name, stored, index)
    cls = getattr(diffusers, str(class_in(index, name)), None)
    parameters = {} if cls is None else python.signature(cls.__init__).parameters
    defaults = {key: each.default for key, each in parameters.items() if each.default is not each.empty}
    return {**defaults, **config}


def _cannot_run(part: Component, module: Any) -> str | None:
    """Why a network on pixels does not run: it is asked once without contents."""
    if type(module).__name__ != "UNet2DModel":
        return None
    import torch

    config, file = module.config, part.folder / "config.json"
    size = config.sample_size
    sides = [size, size] if type(size) is int else list(size or ())
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        return (
            f"model.path: {file}: sample_size is {shown(size)}; accepted is a whole number or two, as a model on pixels makes "
            "one size."
        )
    labels = {"class_labels": torch.zeros(1, dtype=torch.long, device="meta")} if config.num_class_embeds else {}
    try:
        with torch.no_grad(), quietly():
            pixels = torch.zeros(1, config.in_channels, *sides, device="meta")
            made = module(pixels, torch.zeros(1, device="meta"), **labels).sample
    except Exception as error:  # what a strange config makes a network raise is no closed list
        return f"model.path: {part.folder} makes a network that does not run on {sides[0]} x {sides[1]} pixels: {reason(error)}."
    if made.shape[1] == 2 * config.in_channels:
        part.notes.append(f"{part.name}: its last {config.in_channels} channels are learned sigmas, which are left out")
    elif made.shape[1] != config.in_channels:
        return (
            f"model.path: {file}: out_channels is {made.shape[1]} with in_channels {config.in_channels}; accepted are as many, "
            "or twice as many, of which the second half is learned sigmas."
        )
    return None


def _loader(part: Component) -> Any:
    import diffusers
    import transformers

    name = "CLIPTextModel" if "CLIPTextModel" in part.accepted else str(part.class_name)
    return getattr(transformers if part.library == "transformers" else diffusers, name)


def tokenizer_problem(
    folder: Path, rows: object, class_name: str = "CLIPTokenizer", notes: list[str] | None = None
) -> str | None:
    """Why a folder has no tokenizer for a text encoder of so many rows (of any number if that is no int). Words that were added
    behind the encoder's rows keep no other sentence from being told: that is noted."""
    file = folder / "tokenizer.json"
    has_words = unreadable(folder / "vocab.json") is None
    has_pieces = any(unreadable(folder / name) is None for name in _PIECES)
    if unreadable(file) is not None and not has_words and not has_pieces:
        return f"model.path: {folder} has no tokenizer; accepted is a tokenizer.json, or a vocab.json with merges.txt."
    try:
        for each in sorted(folder.glob("*.json")):
            read_json(each)
        if unreadable(file) is not None and not has_pieces and (why := unreadable(folder / "merges.txt")):
            return f"model.path: {folder / 'merges.txt'} {why}."
        import transformers

        with quietly():
            loader = getattr(transformers, class_name)
            tokenizer = loader.from_pretrained(str(folder), local_files_only=True)
            vocabulary = tokenizer.get_vocab()
            added = {word for word in tokenizer.get_added_vocab() if word not in tokenizer.all_special_tokens}
            largest = max((number for word, number in vocabulary.items() if word not in added), default=-1)
    except ModelError as error:
        return str(error)
    except Exception as error:
        return f"model.path: {folder} makes no tokenizer: {reason(error)}"
    if largest < 0 or (isinstance(rows, int) and largest >= rows):
        return f"model.path: {folder} has tokens up to number {largest}, and its text encoder knows {rows}."
    beyond = sorted(word for word in added if isinstance(rows, int) and vocabulary[word] >= rows)
    if beyond and notes is not None:
        notes.append(
            f"{folder.name}: its text encoder knows no {shown(', '.join(beyond), 60)}, which no prompt may hold"
        )
    return None


def _processor_problem(folder: Path) -> str | None:
    try:
        read_json(folder / "preprocessor_config.json")
    except ModelError as error:
        return str(error)
    return None
