"""The training of the flow transformer: what it does differently from the pipeline must come to the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import JointAttnProcessor2_0
from torch import nn

from research.zoo import ZOO_DIR
from tools.zoo import flow
from tools.zoo.data import COLOURS, SUBJECTS


@pytest.fixture(scope="module")
def network() -> Any:
    """A transformer whose zeros are filled, so that everything reaches the output."""
    torch.manual_seed(0)
    network = flow.build_transformer()
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("rows", [1, 16, 256])
def test_one_row_of_zeros_stands_for_many(network: Any, rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    noisy, words, pooled = (torch.randn(s, generator=generator) for s in ((2, 4, 8, 8), (2, 16, 256), (2, 256)))
    given = {"hidden_states": noisy, "pooled_projections": pooled, "timestep": torch.tensor([30.0, 970.0])}
    network.set_attn_processor(JointAttnProcessor2_0())
    all_rows = network(encoder_hidden_states=nn.functional.pad(words, (0, 0, 0, rows)), **given).sample
    network.set_attn_processor(flow.WeightedLastRow())
    one_row = network(
        encoder_hidden_states=nn.functional.pad(words, (0, 0, 0, 1)),
        joint_attention_kwargs={"rows": torch.full((2, 1, 1, 1), float(rows))},
        **given,
    ).sample
    assert torch.allclose(one_row, all_rows, atol=1e-5)


def test_captions_are_encoded_as_by_the_pipeline(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.zoo.clip.SUBJECTS", SUBJECTS[:1])
    states, pooled, empty, empty_pooled = flow.text_states(ZOO_DIR)
    assert states.shape == (1, len(COLOURS), 4, 16, 128)
    assert pooled.shape == (1, len(COLOURS), 4, 128)
    pipeline = flow.build_pipeline(ZOO_DIR, network)
    prompt = f"a twemoji emoji of {SUBJECTS[0]} on a {COLOURS[2]} background"
    words, nothing, summary, no_summary = pipeline.encode_prompt(prompt, None, None, max_sequence_length=3)
    expected = torch.cat([states[0, 2, 3], states[0, 2, 3]], dim=-1)
    assert torch.allclose(words[0], nn.functional.pad(expected, (0, 0, 0, 3)), atol=1e-5)
    assert torch.allclose(summary[0], torch.cat([pooled[0, 2, 3]] * 2), atol=1e-5)
    assert torch.allclose(nothing[0, :16, :128], empty, atol=1e-5)
    assert torch.allclose(no_summary[0, 128:], empty_pooled, atol=1e-5)
