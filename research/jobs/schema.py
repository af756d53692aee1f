"""The keys of a job's configuration: the one place where the command line and the checks look them up."""

from __future__ import annotations

# config groups with a default in conf/config.yaml; group=choice replaces it
GROUPS = (
    "model",
    "scheduler",
    "sigmas",
    "guidance",
    "guidance/modifiers",
    "sampler",
    "task",
    "hooks",
    "metrics",
    "tracker",
    "runtime",
    "prompt_set",
    "experiment",
)

# groups of which several choices go together: hooks=[a,b]
SEVERAL = ("hooks", "metrics", "guidance/modifiers")

# top-level keys of a composed job (prompt_set and experiment set other keys and leave none of their own)
KEYS = (
    "model",
    "scheduler",
    "sigmas",
    "guidance",
    "sampler",
    "task",
    "hooks",
    "metrics",
    "tracker",
    "runtime",
    "prompts",
    "prompts_file",
    "wildcards",
    "steps",
    "seed",
    "seeds",
    "images_per_prompt",
    "batch_size",
    "output_dir",
    "sweep_name",
    "on_failure",
    "resume",
    "retry",
    "sweep",
    "report",
    "budget",
)

# sections with fixed keys; the others hold the arguments of the class that their _target_ names
SECTIONS = {
    "model": (
        "path",
        "config",
        "dtype",
        "device",
        "allow_pickle",
        "offline",
        "revision",
        "variant",
        "subfolder",
        "attention_slicing",
        "compile",
        "channels_last",
        "loras",
        "quantize",
        "offload",
        "drop_text_encoders",
        "vae_tiling",
        "vae_slicing",
        "distilled_guidance",
        "max_sequence_length",
        "size_conditioning",
    ),
    "scheduler": ("name", "class_name", "options"),
    "runtime": (
        "threads",
        "progress",
        "parity",
        "claim_timeout",
        "grace",
        "vectorise",
        "workers",
        "repeats",
        "latency",
        "max_pixels",
    ),
}

# keys that say where, how fast or how visibly a job runs, and never what its images or scores are
NOT_IDENTITY = (
    "output_dir",
    "sweep_name",
    "tracker",
    "batch_size",
    "on_failure",
    "resume",
    "retry",
    "sweep",
    "report",
    "budget",
)

# keys of a model that change its images, besides its files and dtype
MODEL_IDENTITY = ("distilled_guidance", "max_sequence_length", "size_conditioning")

# sections of a sweep as a whole, which no job keeps: which points it has, how its report judges them, and what a setting may cost
OF_SWEEPS = ("sweep", "report", "budget")

# the choice of the group sigmas that leaves the levels to the model and its scheduler: what there was before there was a group
MODEL_LEVELS = {"name": "model"}

# the choice of the group sampler that makes each image once: what there was before there was a group
LOOP = {"name": "loop"}

QUANTIZE = ("none", "fp8", "int8", "nf4")
OFFLOAD = ("none", "model", "sequential")
DTYPES = ("auto", "float32", "float16", "bfloat16", "fp32", "fp16", "bf16")
PROGRESS = ("auto", "bars", "lines", "none")
ON_FAILURE = ("continue", "stop")
RETRY = ("none", "failed")
VECTORISE = ("auto", "off")
