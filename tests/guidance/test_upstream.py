"""What upstream gets wrong about guidance, as `experiments/upstream` claims it, on the installed version.

A claim that is no longer reproduced is good news: take it out of the study, and compare with upstream from then on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

STUDY = Path(__file__).parents[2] / "experiments" / "upstream"
sys.path.insert(0, str(STUDY))
try:
    from guiders import CASES, table
finally:
    sys.path.remove(str(STUDY))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.spread(1)
def test_the_claim_is_still_true(case):
    found = case.run()
    assert found.reproduced, f"{case.where}: {case.claim} {found.numbers}"
    assert found.numbers


def test_the_table_has_all_claims():
    written = (STUDY / "guiders.md").read_text(encoding="utf-8")
    for case in CASES:
        assert case.claim.replace("|", "\\|") in written, f"{case.name}: run experiments/upstream/guiders.py"
    assert written.startswith(table([])[0])
