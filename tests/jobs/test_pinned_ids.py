"""Ids of jobs are names on people's disks: those of these configs stay what they are, or the changelog says why they do not."""

from __future__ import annotations

from research.jobs.compose import Composer
from research.jobs.planning import plan

CASES = {
    "defaults": [],
    "steps, scale and seed": ["steps=7", "guidance.scale=2.5", "seed=11"],
    "several images a prompt": ["images_per_prompt=3", 'prompts=[a fox,"pizza, with cheese"]'],
    "DPM++ with Karras levels": ["scheduler=dpmpp_2m_karras", "steps=12"],
    "options of a scheduler": [
        "scheduler=ddim",
        "scheduler.options.eta=0.5",
        "scheduler.options.timestep_spacing=trailing",
    ],
    "a class of diffusers": ["scheduler=custom", "scheduler.class_name=TCDScheduler"],
    "modifiers": [
        "guidance=apg",
        "guidance/modifiers=[interval,rescale]",
        "guidance.modifiers.interval.steps=[0.2,0.8]",
    ],
    "autoguidance": ["guidance=autoguidance", "guidance.scale=2"],
    "prompts with weights": ["guidance=composable"],
    "a loss": ["guidance=loss_clip"],
    "parity": ["runtime=parity", "scheduler=heun"],
    "half precision": ["model.dtype=bf16", "batch_size=2"],
    "hooks": ["hooks=[record,restart]"],
    "feature cache": ["hooks=feature_cache", "hooks.feature_cache.every=3"],
    "metrics": ["metrics=[clip_score,kid,prdc]"],
    "no metrics": ["metrics=none", "tracker=none"],
    "image to image": ["task=image_to_image", "task.image=zoo:sketch_pizza", "task.strength=0.6"],
    "inpainting": [
        "model=emoji_inpaint",
        "task=inpaint",
        "task.image=zoo:pizza",
        "task.mask=zoo:mask_half",
        "metrics=edit",
    ],
    "depth": ["model=emoji_depth", "task=depth_to_image", "task.image=zoo:pizza"],
    "unconditional": [
        "model=emoji_pixel",
        "task=unconditional",
        "guidance=none",
        "metrics=fid_faces",
        "images_per_prompt=4",
    ],
    "interpolation": [
        "task=interpolation",
        "task.frames=5",
        "prompts=[pizza on a blue background,fox on a red background]",
        "metrics=none",
    ],
    "inversion with windows": ["task=inversion", "guidance/modifiers=interval", "metrics=none"],
    "zero-init": ["guidance=cfg_zero"],
    "RePaint": ["hooks=[mask_composite,repaint]"],
    "inversion": ["task=inversion", "task.image=zoo:pizza", "metrics=none"],
    "a model of the hub": ["model=sd15", "prompts=[a fox]"],
    "solver error": ["metrics=solver_error", "scheduler=euler"],
}

# the first sixteen digits of the hash; the id is its first twelve
PINNED = {
    "defaults": "04a6b28479753782",
    "steps, scale and seed": "dcf40d311c657068",
    "several images a prompt": "e108962af240172c",
    "DPM++ with Karras levels": "e714a4cafcedcc11",
    "options of a scheduler": "50f9b6945c8293a9",
    "a class of diffusers": "928053d8b3e24df0",
    "modifiers": "c5c1bf0e115d2ce7",
    "autoguidance": "3b9d776e8c377597",
    "prompts with weights": "f16e1fa9e3bde7eb",
    "a loss": "3adf40352d5372b2",
    "parity": "ebc730960cf6000e",
    "half precision": "2b70a5b8c8c6ac0f",
    "hooks": "7c7cac76429da329",
    "feature cache": "17a9a69cde283f73",
    "metrics": "a86d58afff0c5f50",
    "no metrics": "1140eb2854925ab5",
    "image to image": "85af0c547ae85b96",
    "inpainting": "63e57c86bcd50c95",
    "depth": "2e8a814ee147188a",
    "unconditional": "0df30859709445cf",
    "interpolation": "83467f887cd5677c",
    "inversion with windows": "48a5497b6d68da39",
    "zero-init": "9a5ff32736970e61",
    "RePaint": "74a7711cb9430b3a",
    "inversion": "0a1afb01b57dfa13",
    "a model of the hub": "3257f174cd685de0",
    "solver error": "c20eac6fb1f85bb0",
}


def test_ids_stay_what_they_are() -> None:
    found = {}
    with Composer() as composer:
        master = composer.master([])
        for name, lines in CASES.items():
            [job] = plan(composer, master, [composer.normalise(lines)])
            found[name] = job.digest[:16]
    assert found == PINNED
