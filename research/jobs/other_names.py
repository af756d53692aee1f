"""What settings are called elsewhere, in diffusers' pipelines above all, and which key they are here."""

from __future__ import annotations

_NAMES = {
    "steps": "num_inference_steps num_steps n_steps inference_steps sampling_steps ddim_steps",
    "guidance.scale": "guidance_scale cfg_scale cfg",
    "images_per_prompt": "num_images_per_prompt num_images n_samples num_samples n_iter",
    "seed": "generator manual_seed noise_seed",
    "batch_size": "batch bs",
    "prompts": "prompt",
    "prompts_file": "prompt_file from_file prompts_from_file prompts_path",
    "task.negative_prompt": "negative_prompt negative neg_prompt",
    "task.height": "height",
    "task.width": "width",
    "task.strength": "strength denoising_strength",
    "task.image": "image init_image",
    "task.mask": "mask mask_image",
    "task.class_label": "class_label class_labels class_id",
    "scheduler": "sampler_name",
    "scheduler.options.eta": "eta",
    "scheduler.options.use_karras_sigmas": "use_karras_sigmas",
    "guidance/modifiers=rescale guidance.modifiers.rescale.phi": "guidance_rescale",
    "model.path": "checkpoint ckpt ckpt_path model_id model_path model_name pretrained_model_name_or_path",
    "model.dtype": "dtype torch_dtype precision",
    "model.device": "device",
    "model.loras": "lora loras lora_weights",
    "model.max_sequence_length": "max_sequence_length",
    "output_dir": "outdir out_dir output output_path save_dir",
    "sweep_name": "run_name exp_name experiment_name",
    "tracker": "wandb logger",
    "tracker.project": "project",
    "tracker.entity": "entity",
}
OTHER_NAMES = {name: key for key, names in _NAMES.items() for name in names.split()}


def said_otherwise(name: str) -> str:
    """What a message says of a key that is another one here; empty of one that is none."""
    ours = OTHER_NAMES.get(name)
    return "" if ours is None else f" Here it is {ours}: {ours}=VALUE."
