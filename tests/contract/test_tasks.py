"""Every task keeps the contract; a new one is found in the package by its class."""

import pkgutil
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from moving_clips import batch_of

import tasks
from ai_wam.canvas import Kind, plan
from ai_wam.cli.shipped_configs import instantiate
from ai_wam.diffusion.solvers import Sampling
from ai_wam.types import Batch, Clip, Policy
from backbones.base import VideoBackbone
from tasks.base import WorldActionTask
from tasks.training.optimized_task import OptimizedTask

CLIP = Clip(frames=9, size=(32, 32), views=("front", "side"))


def found(base: type[OptimizedTask] = WorldActionTask) -> list[type[OptimizedTask]]:
    for module in pkgutil.iter_modules(tasks.__path__):
        import_module(f"tasks.{module.name}")
    # Other tests define tasks of their own.
    kinds = [kind for kind in base.__subclasses__() if kind.__module__.startswith("tasks.")]
    return sorted(kinds, key=lambda kind: kind.__name__)


def others() -> list[type[OptimizedTask]]:
    """Tasks without a backbone."""
    return [kind for kind in found(OptimizedTask) if kind is not WorldActionTask]


@pytest.fixture(scope="module")
def backbone() -> VideoBackbone:
    torch.manual_seed(0)
    return instantiate("configs/backbone/wan-tiny.yaml", VideoBackbone)


@pytest.fixture(params=found(), ids=lambda kind: kind.__name__)
def task(request: pytest.FixtureRequest, backbone: VideoBackbone) -> WorldActionTask:
    return request.param(backbone, CLIP, sampling=Sampling(steps=1))


@pytest.fixture(params=[*found(), *others()], ids=lambda kind: kind.__name__)
def trained(request: pytest.FixtureRequest, backbone: VideoBackbone) -> OptimizedTask:
    of_videos = issubclass(request.param, WorldActionTask)
    return request.param(*([backbone] if of_videos else []), clip=CLIP, sampling=Sampling(steps=1))


@pytest.fixture(scope="module")
def clips() -> Batch:
    return batch_of(2)


@pytest.fixture(autouse=True)
def without_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OptimizedTask, "log", lambda *_, **__: None)


def test_the_tasks_of_the_method_are_found():
    assert {"PolicyControl", "JointGeneration", "ActionLabeling"} <= {kind.__name__ for kind in found()}
    assert [kind.__name__ for kind in others()] == ["DiffusionPolicy"]


def test_acts_within_the_policy_protocol(trained: OptimizedTask, clips: Batch):
    assert isinstance(trained, Policy)
    chunk = trained.eval().predict_action(clips.observation)
    again = trained.predict_action(clips.observation)
    alone = trained.predict_action(clips.rows([1]).observation)
    assert chunk.actions.shape == (len(clips.keys), CLIP.frames - 1, 8)
    assert chunk.valid.shape == chunk.confidence.shape == chunk.actions.shape[:2]
    assert chunk.dt == pytest.approx(CLIP.seconds_per_frame)
    assert torch.equal(chunk.actions.nan_to_num(), again.actions.nan_to_num())
    torch.testing.assert_close(chunk.actions[1:], alone.actions, rtol=0, atol=1e-4, equal_nan=True)


def test_one_set_of_weights_serves_every_task(task: WorldActionTask, backbone: VideoBackbone):
    for kind in found():
        told = kind(backbone, CLIP).load_state_dict(task.state_dict(), strict=True)
        assert (told.missing_keys, told.unexpected_keys) == ([], [])


def test_trains_by_its_own_plans_and_without_recorded_actions(trained: OptimizedTask, clips: Batch):
    lost = torch.zeros_like(clips.action_valid)
    for batch in (clips, replace(clips, actions=torch.zeros_like(clips.actions), action_valid=lost)):
        loss = trained.training_step(batch, 0)
        assert loss.isfinite()
        loss.backward()
        assert all(p.grad is not None for p in trained.parameters() if p.requires_grad)


def test_imagines_by_every_plan_it_is_trained_on(task: WorldActionTask, clips: Batch):
    for name in task.default_plans:
        videos = task.generate_videos(clips, plan(name))
        kinds = {segment.kind for segment in plan(name).segments(2, 3)}
        assert set(videos) == kinds
        for kind in kinds - {Kind.VIDEO}:
            assert videos[kind].shape == clips.video.shape
