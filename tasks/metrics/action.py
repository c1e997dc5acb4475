"""Errors of predicted actions: position, rotation, pixels and gripper."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ai_wam.poses import geodesic_angle, rotation_from_quaternion
from ai_wam.types import Batch
from tasks.metrics.averages import Averages

_NO_ACTION = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0)
_ERRORS = ("position_mm", "final_position_mm", "position_px", "rotation_deg")


class ActionAccuracy(Averages):
    """Errors of predicted actions, over predictions that are valid and truths that were recorded.

    Metrics:
        valid: share of recorded steps whose prediction was valid; the others are over these steps alone.
        position_mm: distance of the tool centre points; the mean, and as `position_mm_median` the median over
            steps.
        rotation_deg: geodesic angle of the rotations; the same.
        final_position_mm: distance at the last recorded step.
        position_px: distance in pixels of both tool centre points in the recorded cameras' pictures, a value
            per view in which the true one is visible. At most the picture's diagonal, which is also what a
            point behind the camera counts: one stray pose shall not decide a mean.
        gripper_accuracy: share of steps whose gripper state (open above 0.5) is right.
        gripper_f1: of openings and closings, over all of them: a predicted change is right if a true one of
            the same direction lies at most `tolerance` steps away, each being matched once. The states begin
            with the recorded present one; a step that is not valid keeps the state before it. NaN where the
            gripper never moves.

    Args:
        tolerance: in steps of the clip.
    """

    changes: Tensor

    def __init__(self, tolerance: int = 1) -> None:
        super().__init__(("valid", *_ERRORS, "gripper_accuracy"), _ERRORS)
        self.tolerance = tolerance
        self.add_state("changes", torch.zeros(3, dtype=torch.long), "sum")  # matched, predicted, true

    def update(self, actions: Float[Tensor, "b a 8"], valid: Bool[Tensor, "b a"], batch: Batch) -> None:
        """Add predictions.

        Args:
            actions: of the clip's frames from 1 on; there may be fewer than the clip has.
            valid: False for predictions that do not count.
            batch: the truth.
        """
        steps = slice(1, 1 + actions.shape[1])
        known = (batch.action_valid & batch.recorded)[:, steps]
        counted = valid & known
        truth = _filled(batch.actions[:, steps], batch.action_valid[:, steps])
        guess = torch.where(counted[..., None], actions.double(), truth)
        distance = 1000 * (guess[..., :3] - truth[..., :3]).norm(dim=-1)
        angle = geodesic_angle(*(rotation_from_quaternion(each[..., 3:7]) for each in (guess, truth)))
        opened, truly = guess[..., 7] > 0.5, truth[..., 7] > 0.5
        self.add("position_mm", distance, counted)
        last = known & (known.flip(1).cumsum(1).flip(1) == 1)
        self.add("final_position_mm", distance, counted & last)
        self.add("rotation_deg", angle.rad2deg(), counted)
        self.add("position_px", *self._pixels(guess, truth, counted, batch))
        self.add("gripper_accuracy", (opened == truly).double(), counted)
        self.add("valid", valid.double(), known)
        now, rows = batch.actions[:, :1, 7] > 0.5, batch.action_valid.all(1)
        ours, theirs = (torch.cat([now, each], 1)[rows].cpu() for each in (opened, truly))
        found = _matches(ours, theirs, counted[rows].cpu(), self.tolerance)
        self.changes += torch.tensor(found, device=self.changes.device)

    def compute(self) -> dict[str, Tensor]:
        """The metrics so far; NaN where nothing counted."""
        matched, predicted, true = self.changes.double()
        return {**super().compute(), "gripper_f1": 2 * matched / (predicted + true)}

    @staticmethod
    def _pixels(
        guess: Float[Tensor, "b a 8"],
        truth: Float[Tensor, "b a 8"],
        counted: Bool[Tensor, "b a"],
        batch: Batch,
    ) -> tuple[Float[Tensor, "b v a"], Bool[Tensor, "b v a"]]:
        """Distances in every view, and which of them count."""
        h, w = batch.video.shape[-2:]
        cameras = batch.cameras[:, :, 1 : 1 + guess.shape[1]].to(torch.float64)
        points = torch.stack([guess[..., :3], truth[..., :3]], dim=2)[:, None].expand(*cameras.shape, 2, 3)
        shown = cameras.project(points, (h, w))
        diagonal = float(h**2 + w**2) ** 0.5
        distance = (shown.pixels[..., 0, :] - shown.pixels[..., 1, :]).norm(dim=-1).clamp(max=diagonal)
        distance = torch.where(shown.depth[..., 0] > 0, distance, diagonal)
        return distance, shown.visible[..., 1] & counted[:, None] & batch.view_mask[:, :, None]


def _filled(actions: Float[Tensor, "b a 8"], known: Bool[Tensor, "b a"]) -> Float[Tensor, "b a 8"]:
    """In float64, with a harmless pose where nothing was recorded."""
    return torch.where(known[..., None], actions.double(), actions.new_tensor(_NO_ACTION).double())


def _matches(
    opened: Bool[Tensor, "b t"], truly: Bool[Tensor, "b t"], valid: Bool[Tensor, "b a"], tolerance: int
) -> tuple[int, int, int]:
    """How many changes were matched, predicted and true; column 0 of the states is the present."""
    matched = predicted = true = 0
    for guess, truth, kept in zip(opened.tolist(), truly.tolist(), valid.tolist(), strict=True):
        for step, good in enumerate(kept, start=1):
            guess[step] = guess[step] if good else guess[step - 1]
        for state in (True, False):
            ours, theirs = (_changes(each, state) for each in (guess, truth))
            predicted, true = predicted + len(ours), true + len(theirs)
            for change in ours:  # in time order, each with the earliest that is left: the most matches
                near = [other for other in theirs if abs(other - change) <= tolerance]
                if near:
                    theirs.remove(near[0])
                    matched += 1
    return matched, predicted, true


def _changes(states: list[bool], to: bool) -> list[int]:
    """Steps at which a state begins."""
    return [step for step in range(1, len(states)) if states[step] == to != states[step - 1]]
