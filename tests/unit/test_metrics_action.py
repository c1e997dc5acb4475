"""Errors of actions, against figures worked out by hand."""

from dataclasses import replace

import pytest
import torch

from ai_wam.cameras import Cameras
from ai_wam.types import ActionChunk, Batch
from tasks.metrics.action import ActionAccuracy
from tasks.metrics.averages import Averages

STEPS = 5  # of which the first is the present


def batch_of(rows: int = 2, openness: tuple[float, ...] = (1, 1, 1, 1, 1)) -> Batch:
    """A tool one metre before a camera of focal length 100 pixels, and a second camera that looks away."""
    k = torch.tensor([[100.0, 0, 32], [0, 100.0, 32], [0, 0, 1]]).expand(rows, 2, STEPS, 3, 3)
    poses = torch.eye(4).repeat(rows, 2, STEPS, 1, 1)
    poses[:, 1, :, :3, :3] = torch.diag(torch.tensor([-1.0, 1, -1]))
    actions = torch.tensor([0.0, 0, 1, 0, 0, 0, 1, 0]).repeat(rows, STEPS, 1)
    actions[..., 7] = torch.tensor(openness)
    return Batch(
        video=torch.zeros(rows, 2, 3, STEPS, 64, 64),
        cameras=Cameras(k, poses),
        view_mask=torch.ones(rows, 2, dtype=torch.bool),
        video_valid=torch.ones(rows, STEPS, dtype=torch.bool),
        recorded=torch.ones(rows, STEPS, dtype=torch.bool),
        actions=actions,
        action_valid=torch.ones(rows, STEPS, dtype=torch.bool),
        prompts=("",) * rows,
        keys=tuple(str(row) for row in range(rows)),
    )


def chunk_of(batch: Batch) -> ActionChunk:
    """The truth as a prediction."""
    return chunk_from(batch.actions[:, 1:].clone(), batch.action_valid[:, 1:].clone())


def chunk_from(actions: torch.Tensor, valid: torch.Tensor) -> ActionChunk:
    return ActionChunk(actions, valid, valid.float(), 0.2, {})


def judged(chunk: ActionChunk, batch: Batch, tolerance: int = 1) -> dict[str, float]:
    metric = ActionAccuracy(tolerance)
    metric.update(chunk.actions, chunk.valid, batch)
    return {name: float(value) for name, value in metric.compute().items() if not value.isnan()}


def test_the_truth_has_no_error():
    batch = batch_of()
    found = judged(chunk_of(batch), batch)
    assert {name for name, value in found.items() if value == 0} == {
        *("position_mm", "final_position_mm", "position_px", "rotation_deg"),
        *("position_mm_median", "final_position_mm_median", "position_px_median", "rotation_deg_median"),
    }
    assert found["gripper_accuracy"] == found["valid"] == 1
    assert "gripper_f1" not in found  # the gripper did not move


def test_only_recorded_steps_count():
    batch = batch_of()
    chunk = chunk_of(batch)
    chunk.actions[:, :, 0] += 0.01 * torch.arange(1, STEPS)
    batch.recorded[0, 3:] = False
    found = judged(chunk, batch)
    assert found["position_mm"] == pytest.approx((10 + 20 + 10 + 20 + 30 + 40) / 6, rel=1e-5)
    assert found["final_position_mm"] == pytest.approx((20 + 40) / 2, rel=1e-5)
    assert found["valid"] == 1
    opened = batch_of(openness=(1, 1, 0, 0, 0))
    opened.recorded[:, 3:] = False
    assert judged(chunk_of(opened), opened)["gripper_f1"] == 1  # what fills up is no opening


def test_errors_in_millimetres_pixels_and_degrees():
    batch, angle = batch_of(), torch.tensor(0.2)
    chunk = chunk_of(batch)
    chunk.actions[0, :, 0] += 0.01
    chunk.actions[1, :, 0] += 0.03
    chunk.actions[1, 3, 0] += 0.08
    chunk.actions[..., 5], chunk.actions[..., 6] = (angle / 2).sin(), (angle / 2).cos()
    found = judged(chunk, batch)
    assert found["position_mm"] == pytest.approx((4 * 10 + 3 * 30 + 110) / 8, rel=1e-5)
    assert found["position_mm_median"] == pytest.approx(10, rel=0.005)
    assert found["final_position_mm"] == pytest.approx((10 + 110) / 2, rel=1e-5)
    assert found["position_px"] == pytest.approx((4 * 1 + 3 * 3 + 11) / 8, rel=1e-5)
    assert found["rotation_deg"] == pytest.approx(0.2 * 180 / torch.pi, rel=1e-5)
    assert found["rotation_deg_median"] == pytest.approx(0.2 * 180 / torch.pi, rel=0.005)


def test_a_point_behind_the_camera_counts_as_the_diagonal():
    batch = batch_of(1)
    chunk = chunk_of(batch)
    chunk.actions[..., 2] = -1
    assert judged(chunk, batch)["position_px"] == pytest.approx(64 * 2**0.5)


def test_only_valid_and_known_steps_count():
    batch = batch_of()
    chunk = chunk_of(batch)
    chunk.actions[0, :, 1] += 0.02
    chunk.valid[0, :2] = False
    chunk.actions[0, :2] = torch.nan
    known = batch.action_valid.clone()
    known[1] = False
    batch = replace(batch, action_valid=known, actions=batch.actions * known[..., None])
    found = judged(chunk, batch)
    assert found["position_mm"] == pytest.approx(20, rel=1e-5)
    assert found["position_px"] == pytest.approx(2, rel=1e-5)
    assert found["valid"] == 0.5


def test_missing_views_do_not_count():
    batch = batch_of()
    batch.view_mask[:, 0] = False
    assert "position_px" not in judged(chunk_of(batch), batch)


@pytest.mark.parametrize(
    ("truth", "guess", "tolerance", "f1"),
    [
        ((1, 1, 0, 0, 0), (1, 0, 0, 0), 0, 1),
        ((1, 1, 0, 0, 0), (1, 1, 0, 0), 1, 1),  # closed a step late
        ((1, 1, 0, 0, 0), (1, 1, 0, 0), 0, 0),
        ((1, 1, 0, 0, 0), (1, 1, 1, 1), 1, 0),  # never closed
        ((1, 1, 1, 1, 1), (1, 0, 1, 1), 1, 0),  # closed and opened for nothing
        ((0, 1, 0, 1, 1), (1, 0, 0, 0), 0, 0.8),  # two of three changes: 2 * 2 / (2 + 3)
        ((1, 0, 0, 0, 0), (1, 1, 1, 1), 4, 0),
        ((1, 0, 0, 0, 1), (1, 0, 1, 1), 1, 1),  # both changes a step off
        ((1, 0, 0, 0, 0), (0, 0, 0, 0), 0, 1),  # the first step changes what is seen now
    ],
)
def test_changes_of_the_gripper(truth: tuple, guess: tuple, tolerance: int, f1: float):
    batch = batch_of(1, truth)
    chunk = chunk_of(batch)
    chunk.actions[0, :, 7] = torch.tensor(guess).float()
    found = judged(chunk, batch, tolerance)
    assert found["gripper_f1"] == pytest.approx(f1)
    assert found["gripper_accuracy"] == sum(a == b for a, b in zip(truth[1:], guess, strict=True)) / 4


def test_a_step_that_is_not_valid_keeps_the_gripper():
    batch = batch_of(1, (1, 1, 1, 0, 0))
    chunk = chunk_of(batch)
    chunk.actions[0, :, 7] = torch.tensor([1, torch.nan, 0, 0])
    chunk.valid[0, 1] = False
    assert judged(chunk, batch, 0)["gripper_f1"] == 1


def test_a_chunk_may_end_before_the_clip():
    batch = batch_of()
    whole = chunk_of(batch)
    short = chunk_from(whole.actions[:, :2] + 0.01, whole.valid[:, :2])
    assert judged(short, batch)["final_position_mm"] == pytest.approx(10 * 3**0.5, rel=1e-4)


def test_ranks_add_up():
    torch.manual_seed(0)
    batch = batch_of(6, (1, 0, 0, 1, 1))
    chunk = chunk_of(batch)
    chunk = chunk_from(chunk.actions + 0.3 * torch.randn(chunk.actions.shape), chunk.valid)
    whole, parts = ActionAccuracy(), [ActionAccuracy(), ActionAccuracy()]
    whole.update(chunk.actions, chunk.valid, batch)
    for part, rows in zip(parts, (slice(0, 4), slice(4, 6)), strict=True):
        part.update(chunk.actions[rows], chunk.valid[rows], batch.rows(range(*rows.indices(6))))
    parts[0].merge_state(parts[1])
    assert set(whole.compute()) == set(parts[0].compute())
    for name, value in whole.compute().items():
        assert float(parts[0].compute()[name]) == pytest.approx(float(value), rel=1e-9), name


class Values(Averages):
    def update(self, values: torch.Tensor) -> None:
        self.add("x", values, torch.ones_like(values, dtype=torch.bool))


def test_medians_are_good_to_half_a_percent_at_any_scale():
    values = 10 ** torch.linspace(-3.9, 5.9, 1001)
    metric = Values(["x"], ["x"])
    metric.update(values)
    assert float(metric.compute()["x_median"]) == pytest.approx(float(values.median()), rel=0.005)
    metric.reset()
    metric.update(torch.tensor([0.0, 0.0, 0.0, 7.0]))
    assert float(metric.compute()["x_median"]) == 0
    metric.update(torch.tensor([1e9] * 7))
    assert float(metric.compute()["x_median"]) == pytest.approx(1e6, rel=0.005)
