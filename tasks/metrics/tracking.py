"""Point-tracking metrics of TAP-Vid (arXiv 2211.03726)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tasks.metrics.averages import Averages

THRESHOLDS = (1, 2, 4, 8, 16)
_SIDE = 256  # pixels of the picture that the thresholds are meant for


class Tracking(Averages):
    """TAP-Vid's metrics of predicted tracks, each a mean over videos; one view of one clip is a video.

    A point is queried at the first frame in which it is visible and evaluated in all later ones. Distances
    are those in a picture of 256 x 256 pixels. The metrics are over the points of a video.

    Metrics:
        trajectory_error: mean distance where the point is visible.
        within_K: share of visible places that the prediction misses by less than K pixels; delta_average is
            the mean over K = 1, 2, 4, 8, 16.
        occlusion_accuracy: share of places where prediction and truth agree whether the point is visible.
        jaccard_K: true positives / (true positives + false negatives + false positives). A true positive is
            said to be visible, is so, and lies within K; a visible place without one is a false negative; one
            said to be visible that is not, or lies farther off, is a false positive. average_jaccard is the
            mean over K.

    A point that is not found counts as said to be occluded, and its place is where it was seen last: leaving
    hard places out must not pay.
    """

    def __init__(self) -> None:
        each = [f"{name}_{k}" for name in ("jaccard", "within") for k in THRESHOLDS]
        super().__init__(
            ("trajectory_error", "average_jaccard", "delta_average", "occlusion_accuracy", *each)
        )

    def update(
        self,
        tracks: Float[Tensor, "b v t p 2"],
        truth: Float[Tensor, "b v t p 2"],
        visible: Bool[Tensor, "b v t p"],
        size: tuple[int, int],
        counted: Bool[Tensor, "b v t"],
    ) -> None:
        """Add tracks.

        Args:
            tracks: predicted pixels, x right and y down; NaN where a point was not found.
            truth: true pixels; those of invisible places do not matter.
            visible: whether the point is truly to be seen.
            size: height and width of the pictures in pixels.
            counted: False for frames, or whole videos, that are left out.
        """
        limit = tracks.new_tensor([size[1], size[0]])
        found = ((tracks >= 0) & (tracks < limit)).all(-1)  # NaN is not
        evaluated = visible.cumsum(2).roll(1, 2).bool() & counted[..., None]
        evaluated[:, :, 0] = False
        distance = ((_held(tracks, found, truth, visible) - truth) * (_SIDE / limit)).norm(dim=-1)
        shown, said = visible & evaluated, found & evaluated
        shown_places = _total(shown)
        error = _total(torch.where(shown, distance, 0)) / shown_places
        agreement = _total((found == visible) & evaluated) / _total(evaluated)
        within, jaccard = [], []
        for k in THRESHOLDS:
            near = shown & (distance < k)
            hits = _total(near & said)
            within.append(_total(near) / shown_places)
            jaccard.append(hits / (shown_places + _total(said) - hits))
        figures = {
            "trajectory_error": error,
            "occlusion_accuracy": agreement,
            "delta_average": torch.stack(within).mean(0),
            "average_jaccard": torch.stack(jaccard).mean(0),
            **{f"within_{k}": share for k, share in zip(THRESHOLDS, within, strict=True)},
            **{f"jaccard_{k}": share for k, share in zip(THRESHOLDS, jaccard, strict=True)},
        }
        for name, values in figures.items():  # 0 / 0 where a video has nothing to evaluate
            self.add(name, values, values.isfinite())


def _total(places: Tensor) -> Float[Tensor, "b v"]:
    return places.double().sum((2, 3))


def _held(
    tracks: Float[Tensor, "b v t p 2"],
    found: Bool[Tensor, "b v t p"],
    truth: Float[Tensor, "b v t p 2"],
    visible: Bool[Tensor, "b v t p"],
) -> Float[Tensor, "b v t p 2"]:
    """Where a point was seen last; before it is ever found, where it was asked for."""
    steps = torch.arange(tracks.shape[2], device=tracks.device)[:, None]
    last = torch.where(found, steps, -1).cummax(2).values
    asked = visible.int().argmax(2, keepdim=True)
    start = truth.gather(2, asked[..., None].expand(-1, -1, -1, -1, 2))
    seen = tracks.gather(2, last.clamp(min=0)[..., None].expand(-1, -1, -1, -1, 2))
    return torch.where((last < 0)[..., None], start, seen)
