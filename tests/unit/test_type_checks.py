"""The checks of signatures refuse what they should, also where a call of the same shapes has passed."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from jaxtyping import Float, TypeCheckError
from type_checks import checked

ROWS, SIZES = np.zeros((4, 3)), np.zeros(4)


@checked
def scaled(
    rows: Float[np.ndarray, "n 3"], sizes: Float[np.ndarray, "n"], wrong: object | None = None
) -> Float[np.ndarray, "n"]:
    return sizes if wrong is None else wrong


@checked
def fixed(
    rows: Float[np.ndarray, "n 3"], sizes: Float[np.ndarray, "n"], wrong: int = 0
) -> Float[np.ndarray, "n"]:
    return (sizes, np.zeros(len(sizes) + 1), np.zeros(len(sizes), int), 3)[wrong]


@checked
def first(images: Float[torch.Tensor, "*b c"], name: str = "red") -> tuple[Float[torch.Tensor, "*b"], str]:
    return images[..., 0], name


@checked
@dataclass(frozen=True)
class Pair:
    one: Float[np.ndarray, "n"]
    other: Float[np.ndarray, "n"]


def refuses(function, *values, **named):
    with pytest.raises(TypeCheckError):
        function(*values, **named)


@pytest.mark.parametrize("function", [scaled, fixed])
def test_sizes_agree_within_a_call_at_the_first_and_later_calls(function):
    for _ in range(2):
        assert function(ROWS, SIZES) is function(ROWS, sizes=SIZES) is SIZES
        refuses(function, ROWS, np.zeros(3))
        refuses(function, ROWS[:, :2], SIZES)
        refuses(function, ROWS.astype(int), SIZES)
        refuses(function, ROWS, None)
        refuses(function, ROWS, sizes=torch.zeros(4))


def test_a_result_is_checked_also_for_arguments_that_passed_before():
    fixed(ROWS, SIZES, 0)
    for wrong in (1, 2, 3, 1):
        refuses(fixed, ROWS, SIZES, wrong)
    refuses(fixed, ROWS, SIZES, "0")
    for wrong in (SIZES[:1], "text"):
        refuses(scaled, ROWS, SIZES, wrong)


def test_methods_results_in_tuples_and_dataclasses():
    assert first(torch.zeros(2, 3))[0].shape == (2,)
    refuses(first, torch.zeros(2, 3), 5)
    assert Pair(SIZES, SIZES).one is SIZES
    refuses(Pair, SIZES, SIZES[:1])
