"""What a resumed run may not change, and the end of a run that a number spoils."""

import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning import LightningModule
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ai_wam.cli.shipped_configs import config_path, instantiate
from tasks.training.finite_steps import FiniteSteps, SeenBatch
from tasks.training.muon import Muon
from tasks.training.optimized_task import OptimizedTask
from tasks.training.optimizer import (
    AdamW,
    ConstantWithWarmup,
    CosineWithWarmup,
    check_optimizer,
    learning_rate,
    optimizer_settings,
)
from tasks.training.resume_checks import check_same_names, check_same_optimizer

COSINE, CONSTANT = (f"tasks.training.optimizer.{name}WithWarmup" for name in ("Cosine", "Constant"))
BEGUN = {
    "optimizer": "tasks.training.optimizer.AdamW",
    "optimizer.lr": 2e-3,
    "optimizer.weight_decay": 0.01,
    "lr_scheduler": COSINE,
    "lr_scheduler.warmup_steps": 100,
    "lr_scheduler.steps": 2500,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"lr_scheduler.steps": 5000},
            r"would be 0\.00101 instead of 2e-05.*--model\.lr_scheduler\.steps 2500",
        ),
        (
            {"lr_scheduler": CONSTANT, "lr_scheduler.steps": None},
            rf"lr_scheduler was {COSINE} and is now {CONSTANT}.*0\.002",
        ),
        ({"optimizer.lr": 1e-3}, r"optimizer\.lr was 0\.002 and is now 0\.001.*--weights in the place"),
        ({"optimizer.weight_decay": 0.1}, r"weight_decay was 0\.01 and is now 0\.1\. Keep"),
        ({"lr_scheduler.warmup_steps": 10}, "warmup_steps was 100 and is now 10"),
        ({"optimizer": "torch.optim.sgd.SGD"}, r"--model\.optimizer tasks\.training\.optimizer\.AdamW"),
    ],
)
def test_another_optimizer_is_refused_with_its_learning_rates(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        check_same_optimizer(BEGUN, {**BEGUN, **change}, 2500, free_end=False)


def test_an_end_set_on_purpose_is_a_warning():
    with pytest.warns(UserWarning, match=r"of step 2500 is 0\.00101 instead of 2e-05"):
        check_same_optimizer(BEGUN, {**BEGUN, "lr_scheduler.steps": 5000}, 2500, free_end=True)
    with pytest.raises(ValueError, match=r"optimizer\.lr"):
        check_same_optimizer(BEGUN, {**BEGUN, "optimizer.lr": 1e-3}, 2500, free_end=True)
    check_same_optimizer(BEGUN, dict(BEGUN), 2500, free_end=False)


def rates(scheduler: LRScheduler, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def one(optimizer: type[Optimizer] = AdamW, **options: Any) -> Optimizer:
    return optimizer([torch.nn.Parameter(torch.zeros(1))], **options)


def test_the_schedule_ends_where_it_is_said():
    scheduler, given = CosineWithWarmup(one(), 2), CosineWithWarmup(one(), 2, 4000)
    scheduler.end_at(2500)
    given.end_at(math.inf)
    assert (scheduler.settings["steps"], given.settings["steps"]) == (2500, 4000)
    with pytest.raises(ValueError, match=r"needs an end: set model\.lr_scheduler\.steps"):
        CosineWithWarmup(one(), 2).end_at(math.inf)


def test_the_default_warms_up_and_falls_to_a_hundredth():
    scheduler = CosineWithWarmup(one(lr=1.0), 4)
    scheduler.end_at(10)
    found = rates(scheduler, 13)
    cosine = [0.01 + 0.99 * (1 + math.cos(math.pi * min(step / 10, 1))) / 2 for step in range(13)]
    assert found == pytest.approx([share * min(1, (k + 1) / 4) for k, share in enumerate(cosine)])
    assert found[10:] == pytest.approx([0.01] * 3)
    assert rates(ConstantWithWarmup(one(lr=1.0), 4), 6) == [0.25, 0.5, 0.75, 1, 1, 1]


def test_a_resumed_schedule_follows_the_settings_it_was_given():
    scheduler = CosineWithWarmup(one(), 2, 10)
    rates(scheduler, 5)
    longer = CosineWithWarmup(one(), 2, 20)
    longer.load_state_dict(scheduler.state_dict())
    assert longer.last_epoch == 5
    assert longer.settings == {"warmup_steps": 2, "steps": 20}


@pytest.mark.parametrize(
    ("optimizer", "schedule", "message"),
    [
        (lambda p: AdamW(p, lr=math.nan), CosineWithWarmup, "AdamW: lr must be finite"),
        (lambda p: Adam(p, betas=(2.0, 0.9)), CosineWithWarmup, r"Invalid beta parameter.*init_args"),
        (AdamW, lambda o: CosineWithWarmup(o, -1), "warmup_steps must be finite and at least 0"),
        (AdamW, lambda o: CosineWithWarmup(o, 1, 0), "steps must be finite and at least 1"),
        (AdamW, torch.optim.lr_scheduler.ReduceLROnPlateau, "follows a metric"),
    ],
)
def test_settings_that_no_optimizer_takes_are_refused_at_once(optimizer, schedule, message):
    with pytest.raises(ValueError, match=message):
        check_optimizer(optimizer, schedule)


def test_another_optimizer_is_one_setting_and_takes_nothing_from_the_default():
    backbone = yaml.safe_load(config_path("configs/backbone/wan-tiny.yaml").read_text())
    model = {"class_path": "tasks.policy.PolicyControl", "init_args": {"backbone": backbone}}
    words = ["optimizer=timm.optim.Lion", "optimizer.lr=0.3", "lr_scheduler=torch.optim.lr_scheduler.StepLR"]
    task = instantiate(model, LightningModule, *words, "lr_scheduler.step_size=7")
    optimizer = task.optimizer(task.parameter_groups())
    assert type(optimizer).__name__ == "Lion"
    assert optimizer.defaults["betas"] == (0.9, 0.99)  # Lion's own
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.3]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0, 0.01]
    assert task.lr_scheduler(optimizer).step_size == 7


def test_settings_of_any_optimizer_are_plain_and_only_ours_say_a_rate():
    optimizer = one(torch.optim.SGD, lr=0.1)
    settings = optimizer_settings(optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 3))
    assert settings["optimizer.lr"] == 0.1
    assert settings["lr_scheduler"] == "torch.optim.lr_scheduler.StepLR"
    assert learning_rate(5, settings) is None
    with pytest.raises(ValueError, match=r"optimizer\.lr was 0\.1 and is now 0\.2\. Keep"):
        check_same_optimizer(settings, settings | {"optimizer.lr": 0.2}, 5, free_end=False)
    assert learning_rate(5, BEGUN) == pytest.approx(2e-3 * 6 / 100, rel=1e-3)


class Task(OptimizedTask):
    def __init__(self, momentum: float):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2, 2))
        self.set_optimizer(
            partial(Muon, lr=0.1, momentum=momentum), partial(CosineWithWarmup, warmup_steps=1)
        )
        trainer: Any = SimpleNamespace(ckpt_path="last.ckpt", estimated_stepping_batches=9)
        self.trainer = trainer

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.weight]}]


def test_an_option_that_a_checkpoint_lacks_had_its_default():
    saved: dict[str, Any] = {"global_step": 5}
    begun = Task(0.95)
    begun.configure_optimizers()
    begun.on_save_checkpoint(saved)
    del saved["optimizer_settings"]["optimizer.momentum"]
    same, other = Task(0.95), Task(0.9)
    same.on_load_checkpoint(saved)
    same.configure_optimizers()
    other.on_load_checkpoint(saved)
    with pytest.raises(ValueError, match=r"optimizer\.momentum was 0\.95 and is now 0\.9\. Keep"):
        other.configure_optimizers()


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
