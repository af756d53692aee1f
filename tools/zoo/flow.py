"""The flow-matching transformer: Stable Diffusion 3's network in small, on the latents and text of the finished `emoji`.

It is trained on the exported directory, not on the checkpoints of the stages before: a clone without any checkpoint can
train it, and its latents and captions are those of the files that travel with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tools.zoo.clip import WIDTH, caption_ids, random_variant, tokenize
from tools.zoo.data import Emoji, contact_sheet, random_pairs
from tools.zoo.training import Draw, Parts, Recipe, fit, load_ema
from tools.zoo.unet import EMPTY_CAPTIONS, LATENT_SIZE, latent_pool, sample_prompts

BATCH = 32
HIDDEN = 192
LAYERS = 6
HEADS = 6
PATCH = 2
POSITIONS = 8  # patches a side of the largest picture: 64x64 pixels
SHIFT = 1.0  # of sampling; 8x8 latents hide nothing from a little noise
UNIFORM_TIMES = 0.2  # share of training times; the rest is logit-normal and hardly meets the ends
# without T5 the pipeline puts `max_sequence_length` rows of zeros behind the words: what it is called with here
EMPTY_ROWS = 16
MOST_EMPTY_ROWS = 256  # the pipeline's own default, which must do no harm
LEAST_WEIGHT = 0.15  # in the loss, of a latent channel that holds nothing but noise
# a CPU without bfloat16 arithmetic is faster in float32
RECIPE = Recipe(steps=8000, lr=1.5e-3, seed=71, lr_end=0.02, warmup=300, autocast=False)


def build_transformer() -> Any:
    """The network with the initial values of DiT (arXiv:2212.09748, section 3.2): each block starts as the identity."""
    network: Any = SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=PATCH,
        in_channels=4,
        out_channels=4,
        num_layers=LAYERS,
        attention_head_dim=HIDDEN // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=HIDDEN,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=POSITIONS,
        qk_norm="rms_norm",
    )
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            zero = name.endswith(("norm1.linear", "norm1_context.linear", "norm_out.linear", "proj_out"))
            (nn.init.zeros_ if zero else nn.init.xavier_uniform_)(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(network.pos_embed.proj.weight.flatten(1))
    nn.init.normal_(network.time_text_embed.timestep_embedder.linear_1.weight, std=0.02)
    nn.init.normal_(network.time_text_embed.timestep_embedder.linear_2.weight, std=0.02)
    with torch.no_grad():
        network.context_embedder.weight.mul_(0.3)  # the text tower's hidden states have a deviation of 3.4
    # neighbours are 2 apart and not 0.5, which is what the class makes of so few positions; the buffer is saved
    embedding = get_2d_sincos_pos_embed(HIDDEN, POSITIONS, base_size=2 * POSITIONS, output_type="pt")
    network.pos_embed.pos_embed.copy_(embedding.to(torch.float32)[None])
    return network


def build_scheduler() -> Any:
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=SHIFT)


def load_vae(zoo: Path) -> Any:
    return AutoencoderKL.from_pretrained(Path(zoo) / "emoji" / "vae")


def load_text_encoder(zoo: Path) -> Any:
    """The conditioning tower of `emoji` with a projection that changes nothing: that of its training was not kept."""
    folder = Path(zoo) / "emoji" / "text_encoder"
    tower: Any = CLIPTextModel.from_pretrained(folder)
    config: Any = CLIPTextConfig.from_pretrained(folder, architectures=["CLIPTextModelWithProjection"])
    encoder: Any = CLIPTextModelWithProjection(config)
    encoder.text_model.load_state_dict(getattr(tower, "text_model", tower).state_dict())
    with torch.no_grad():
        encoder.text_projection.weight.copy_(torch.eye(config.projection_dim))
    return encoder.eval().requires_grad_(False)


def build_pipeline(zoo: Path, network: Any) -> Any:
    """The pipeline around a transformer, with the VAE, text tower and tokenizer of `emoji`; both text encoders are it."""
    tokenizer = CLIPTokenizer.from_pretrained(Path(zoo) / "emoji" / "tokenizer")
    encoder = load_text_encoder(zoo)
    theirs = load_vae(zoo)
    # Stable Diffusion 3 adds the factor to latents, and None cannot be added
    config = {name: value for name, value in theirs.config.items() if not name.startswith("_")}
    vae: Any = AutoencoderKL(**config | {"shift_factor": theirs.config.shift_factor or 0.0})
    vae.load_state_dict(theirs.state_dict())
    return StableDiffusion3Pipeline(
        transformer=network,
        scheduler=build_scheduler(),
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


class WeightedLastRow:
    """Joint attention in which the last row of the context stands for `rows` [N, 1, 1, 1] equal ones (without: for itself).

    Rows of zeros have no positions and stay equal in all layers, so attending to one with log(rows) added to its logit
    is attending to all of them, for the price of one.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        count = hidden_states.shape[1]

        def heads(of_picture: Any, of_text: Any, norms: tuple[Any, Any] | None = None) -> Tensor:
            parts = [of_picture(hidden_states), of_text(encoder_hidden_states)]
            parts = [part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in parts]
            if norms is not None:
                parts = [norm(part) for norm, part in zip(norms, parts, strict=True)]
            return torch.cat(parts, dim=2)

        query = heads(attn.to_q, attn.add_q_proj, (attn.norm_q, attn.norm_added_q))
        key = heads(attn.to_k, attn.add_k_proj, (attn.norm_k, attn.norm_added_k))
        value = heads(attn.to_v, attn.add_v_proj)
        bias = None if rows is None else F.pad(rows.log(), (key.shape[2] - 1, 0))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        attended = attended.transpose(1, 2).flatten(2)
        picture, text = attended[:, :count], attended[:, count:]
        return attn.to_out[0](picture), text if attn.context_pre_only else attn.to_add_out(text)


@torch.no_grad()
def text_states(zoo: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the pipeline makes of every caption and of the empty one: rows and pooled vectors of one encoder.

    Shapes [subjects, backgrounds, 2 + sets, 16, dim], [subjects, backgrounds, 2 + sets, dim], [16, dim] and [dim].
    """
    encoder = load_text_encoder(zoo)
    tokenizer = CLIPTokenizer.from_pretrained(Path(zoo) / "emoji" / "tokenizer")
    ids = caption_ids(tokenizer)
    flat = torch.cat([ids.view(-1, ids.shape[-1]), tokenize(tokenizer, [""])])
    outputs = [encoder(part, output_hidden_states=True) for part in flat.split(512)]
    rows = torch.cat([output.hidden_states[-2] for output in outputs])
    pooled = torch.cat([output.text_embeds for output in outputs])
    return rows[:-1].view(*ids.shape, -1), pooled[:-1].view(*ids.shape[:-1], -1), rows[-1], pooled[-1]


def flow_loss(
    latents: Tensor,
    where: Tensor,
    styles: Tensor,
    text: tuple[Tensor, Tensor, Tensor, Tensor],
    weights: Tensor,
    parts: int,
) -> Callable[[Any, torch.Generator], Parts]:
    """Rectified flow (arXiv:2209.03003) with logit-normal times, one in five uniform (arXiv:2403.03206, section 3.1).

    Channels count by their `weights` [4].  A batch is computed in so many `parts`, side by side.
    """
    states, pooled, empty, empty_pooled = text

    def loss(network: Any, generator: torch.Generator) -> Parts:
        index = torch.randint(len(latents), (BATCH,), generator=generator)
        clean, pair, style = latents[index].float(), where[index], styles[index]
        variant = random_variant(style, generator)
        dropped = torch.rand(BATCH, generator=generator) < EMPTY_CAPTIONS
        words = torch.where(dropped[:, None, None], empty, states[pair[:, 0], pair[:, 1], variant])
        summary = torch.where(dropped[:, None], empty_pooled, pooled[pair[:, 0], pair[:, 1], variant])
        # both text encoders are the same; one row of zeros stands for many, see WeightedLastRow
        context, summary = F.pad(torch.cat([words, words], dim=-1), (0, 0, 0, 1)), torch.cat([summary, summary], dim=-1)
        rows = torch.exp(torch.rand(BATCH, generator=generator) * math.log(MOST_EMPTY_ROWS)).round().view(-1, 1, 1, 1)
        uniform = torch.rand(BATCH, generator=generator)
        time = torch.sigmoid(torch.randn(BATCH, generator=generator))
        time = torch.where(torch.rand(BATCH, generator=generator) < UNIFORM_TIMES, uniform, time)
        noise = torch.randn(clean.shape, generator=generator)
        level = time.view(-1, 1, 1, 1)
        noisy, velocity = (1 - level) * clean + level * noise, noise - clean

        def of_part(chosen: slice) -> Tensor:
            predicted = network(
                hidden_states=noisy[chosen],
                encoder_hidden_states=context[chosen],
                pooled_projections=summary[chosen],
                timestep=time[chosen] * 1000,
                joint_attention_kwargs={"rows": rows[chosen]},
                return_dict=False,
            )[0]
            error = (predicted.float() - velocity[chosen]).square().sum(dim=(0, 2, 3))
            return (weights * error).sum() / velocity[:, 0].numel()

        size = -(-BATCH // parts)
        return [partial(of_part, slice(start, start + size)) for start in range(0, BATCH, size)]

    return loss


@torch.no_grad()
def channel_weights(emoji: Emoji, vae: Any) -> Tensor:
    """Shares [4] of the loss: how much of a channel is picture and not the posterior's noise, summing to 1.

    The best network is the same for all weights above 0; a channel of noise would only make the gradients noisy.
    """
    generator = torch.Generator().manual_seed(RECIPE.seed)
    posterior = vae.encode(emoji.batch(random_pairs(256, generator), generator)[0]).latent_dist
    signal, noise = posterior.mean.var(dim=(0, 2, 3)), posterior.var.mean(dim=(0, 2, 3))
    share = (signal / (signal + noise)).clamp(min=LEAST_WEIGHT)
    return share / share.sum()


def _draw(zoo: Path) -> Draw:
    def draw(network: Any, path: Path) -> None:
        pipeline = build_pipeline(zoo, network)
        pipeline.set_progress_bar_config(disable=True)
        prompts = [prompt for prompt in sample_prompts() for _ in range(4)]
        images = pipeline(
            prompts,
            generator=[torch.Generator().manual_seed(seed) for seed in range(len(prompts))],
            num_inference_steps=15,
            guidance_scale=3.0,
            max_sequence_length=EMPTY_ROWS,
            output_type="pt",
        ).images
        contact_sheet(torch.as_tensor(images) * 2 - 1, columns=8, scale=4).save(path)

    return draw


def train_flow(emoji: Emoji, work: Path, zoo: Path, recipe: Recipe = RECIPE) -> None:
    """Trains on the `emoji` of the folder `zoo`; the threads that torch has become parts of the batch."""
    parts = torch.get_num_threads()
    torch.set_num_threads(1)
    vae = load_vae(zoo)
    pool, where, styles, factor = latent_pool(emoji, vae)
    latents = pool * (vae.config.scaling_factor / factor)
    torch.manual_seed(recipe.seed)
    network = build_transformer()
    network.set_attn_processor(WeightedLastRow())
    loss = flow_loss(latents, where, styles, text_states(zoo), channel_weights(emoji, vae), parts)
    fit("flow", network, loss, recipe, work, on_picture=_draw(zoo))
    torch.set_num_threads(parts)


def load_flow(work: Path) -> Any:
    return load_ema(build_transformer(), work, "flow")
