"""One wording of argument checks, and what counts as a number."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from research.checks import check_choice, check_fractions, check_number, check_whole_number
from research.errors import ConfigError


@pytest.mark.parametrize("value", [3, np.int64(3), torch.tensor(3)])
def test_whole_numbers_of_any_library_become_ints(value):
    assert type(check_whole_number("steps", value, least=1)) is int
    assert check_whole_number("steps", value, least=1) == 3


@pytest.mark.parametrize(
    ("value", "limits", "accepted"),
    [
        (True, {"least": 1}, "a whole number from 1"),
        (2.0, {"least": 1}, "a whole number from 1"),
        ("2", {"least": 1}, "a whole number from 1"),
        (0, {"least": 1, "most": 9}, "a whole number from 1 to 9"),
        (2**63, {}, "a whole number from 0, below 2**63"),
        (None, {"least": 1, "otherwise": "auto"}, "a whole number from 1 or auto"),
        (0.5, {"least": None}, "a whole number"),
        (10**400, {"integral_float": True}, "a whole number from 0, below 2**63"),
    ],
)
def test_what_is_no_whole_number_is_named(value, limits, accepted):
    with pytest.raises(ConfigError) as caught:
        check_whole_number("steps", value, **limits)
    assert str(caught.value) == f"steps: found {value!r}; accepted is {accepted}."


def test_a_float_without_fraction_is_whole_where_files_may_write_it_so():
    assert check_whole_number("steps", 2.0, integral_float=True) == 2
    with pytest.raises(ConfigError):
        check_whole_number("steps", math.inf, integral_float=True)


@pytest.mark.parametrize("value", [0.5, 1, np.float32(0.5), np.float64(0.5), np.int64(1)])
def test_numbers_of_any_library_become_floats(value):
    assert type(check_number("scale", value)) is float


@pytest.mark.parametrize(
    ("value", "limits", "accepted"),
    [
        (math.nan, {}, "a finite number"),
        (math.inf, {}, "a finite number"),
        (10**400, {}, "a finite number"),
        (True, {}, "a finite number"),
        ("7", {}, "a finite number"),
        (2, {"least": 0, "most": 1}, "a number from 0 to 1"),
        (-1, {"least": 0}, "a number from 0"),
        (0, {"above": 0}, "a number above 0"),
        (0, {"above": 0, "most": 1}, "a number above 0, to 1"),
        (1, {"above": -1, "below": 1}, "a number between -1 and 1"),
        (-1, {"least": 0, "noun": "a number of seconds"}, "a number of seconds from 0"),
        (math.nan, {"above": 0, "infinite": True}, "a number above 0"),
    ],
)
def test_what_is_no_such_number_is_named(value, limits, accepted):
    with pytest.raises(ConfigError) as caught:
        check_number("scale", value, **limits)
    assert str(caught.value) == f"scale: found {value!r}; accepted is {accepted}."


def test_infinity_counts_where_it_is_asked_for():
    assert check_number("sigma", math.inf, above=0, infinite=True) == math.inf


def test_choices_are_told_as_in_yaml_and_the_nearest_is_proposed():
    assert check_choice("mode", "static", ("dynamic", "static")) == "static"
    assert check_choice("keep", None, (None, "inside")) is None
    with pytest.raises(ConfigError, match=r"^keep: found 1; accepted: null, true, inside\.$"):
        check_choice("keep", 1, (None, True, "inside"))
    with pytest.raises(ConfigError, match=r"accepted: dynamic, static\. Did you mean 'static'\?$"):
        check_choice("mode", "statik", ("dynamic", "static"))


@pytest.mark.parametrize("value", [None, 0.5, (0.5,), (0.8, 0.2), (0, 1.5), ("a", "b"), (math.nan, 1)])
def test_parts_of_the_steps_are_two_fractions_in_order(value):
    assert check_fractions("steps", [0, 0.5]) == (0.0, 0.5)
    with pytest.raises(ConfigError, match="accepted are 0 <= lo <= hi <= 1"):
        check_fractions("steps", value)


def test_checking_needs_no_torch():
    code = "import sys, research.checks; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
