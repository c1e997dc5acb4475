"""What a resumed run may not change, and the end of a run that a number spoils."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.training.finite_steps import FiniteSteps, SeenBatch
from tasks.training.optimizer import schedule_end
from tasks.training.resume_checks import check_same_names, check_same_optimizer

BEGUN = {
    "learning_rate": 2e-3,
    "weight_decay": 0.01,
    "warmup_steps": 100,
    "schedule": "cosine",
    "schedule_steps": 2500,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule_steps": 5000}, r"would be 0\.00101 instead of 2e-05.*--model\.schedule_steps 2500"),
        (
            {"schedule": "constant", "schedule_steps": None},
            r"schedule was cosine and is now constant.*0\.002",
        ),
        ({"learning_rate": 1e-3}, r"learning_rate was 0\.002 and is now 0\.001.*--weights in the place"),
        ({"weight_decay": 0.1}, r"weight_decay was 0\.01 and is now 0\.1"),
        ({"warmup_steps": 10}, "warmup_steps was 100 and is now 10"),
    ],
)
def test_another_optimizer_is_refused_with_its_learning_rates(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        check_same_optimizer(BEGUN, {**BEGUN, **change}, 2500, free_end=False)


def test_an_end_set_on_purpose_is_a_warning():
    with pytest.warns(UserWarning, match=r"of step 2500 is 0\.00101 instead of 2e-05"):
        check_same_optimizer(BEGUN, {**BEGUN, "schedule_steps": 5000}, 2500, free_end=True)
    with pytest.raises(ValueError, match="learning_rate"):
        check_same_optimizer(BEGUN, {**BEGUN, "learning_rate": 1e-3}, 2500, free_end=True)
    check_same_optimizer(BEGUN, dict(BEGUN), 2500, free_end=False)


def test_the_schedule_ends_where_it_is_said():
    assert schedule_end("cosine", None, 2500) == 2500
    assert schedule_end("cosine", 4000, 2500) == schedule_end("cosine", 4000, math.inf) == 4000
    assert schedule_end("constant", None, math.inf) is None
    with pytest.raises(ValueError, match="needs an end: set schedule_steps"):
        schedule_end("cosine", None, math.inf)


def test_weights_of_another_model_are_named(tmp_path: Path):
    torch.save({"state_dict": {"a": torch.zeros(1), "b": torch.zeros(1)}}, tmp_path / "x.ckpt")
    check_same_names(tmp_path / "x.ckpt", ["b", "a"])
    with pytest.raises(ValueError, match="it lacks c; it holds unknown a"):
        check_same_names(tmp_path / "x.ckpt", ["b", "c"])


def test_the_batch_at_fault_is_named():
    steps = FiniteSteps()
    good = SeenBatch(torch.tensor(1.0), {"policy": ["one@0"]})
    bad = SeenBatch(torch.tensor(float("nan")), {"joint": ["two@4"], "labeling": ["three@0"]})
    for batch in (good, bad):
        steps.add(batch)
    with pytest.raises(
        ValueError, match=r"loss of optimizer step 8 .* two@4 \(joint\), three@0 \(labeling\)\. "
    ):
        steps.check(torch.tensor(1.0), 7)
    steps.add(good)
    with pytest.raises(ValueError, match=r"gradient of optimizer step 9 .* one@0 \(policy\)"):
        steps.check(torch.tensor(float("inf")), 8)
    steps.add(good)
    steps.check(None, 9)  # a loss scaler skips the step
