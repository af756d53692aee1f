"""What a guidance asks for is computed as asked, or refused."""

from __future__ import annotations

import pytest

from research.errors import SamplingError
from research.guidance import Guidance
from research.sampling import Branch, LoopSampler
from research.tasks import TextToImage


class Asks(Guidance):
    def __init__(self, **settings):
        self.settings = settings

    def branches(self, state):
        condition = state.run.conditions["cond"]
        return [
            Branch("cond", condition),
            Branch(**{"name": "other", "condition": condition, **self.settings}),
        ]


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"model": "weak"}, "other"), ({"patches": ("identity",)}, "other"), ({"name": "cond"}, "cond")],
)
def test_a_branch_that_cannot_be_computed_is_refused(sd, settings, named) -> None:
    with pytest.raises(SamplingError, match=f"guidance: .*{named}"):
        LoopSampler(sd, guidance=Asks(**settings)).sample(TextToImage("cat"), seeds=[0], steps=2)
