"""TAP-Vid's figures, against cases counted by hand."""

import pytest
import torch

from tasks.metrics.tracking import Tracking


def judged(tracks, truth, visible, size=(256, 256), counted=None) -> dict[str, float]:
    """Tracks "b v t p 2" or, of one video, "t p 2"."""
    tracks, truth = (torch.tensor(each, dtype=torch.float64) for each in (tracks, truth))
    visible = torch.tensor(visible)
    if tracks.ndim == 3:
        tracks, truth, visible = tracks[None, None], truth[None, None], visible[None, None]
    metric = Tracking()
    counted = torch.ones(tracks.shape[:2], dtype=torch.bool) if counted is None else torch.tensor(counted)
    counted = counted[:, :, None].expand(tracks.shape[:3]) if counted.ndim == 2 else counted
    metric.update(tracks, truth, visible, size, counted)
    return {name: float(value) for name, value in metric.compute().items() if not value.isnan()}


NONE = [float("nan")] * 2


def test_a_case_counted_by_hand():
    """Four places are judged: a hit at 0.5, a miss by 3, one wrongly occluded, one wrongly visible.

    Frame 0 asks and is not judged, though the prediction is wrong there. The lost point stays at (63, 50).
    """
    truth = [[[50, 50]], [[50, 50]], [[60, 50]], [[70, 50]], [[90, 90]]]
    visible = [[True], [True], [True], [True], [False]]
    tracks = [[[0, 0]], [[50, 50.5]], [[63, 50]], [NONE], [[70, 50]]]
    found = judged(tracks, truth, visible)
    assert found["trajectory_error"] == pytest.approx((0.5 + 3 + 7) / 3)
    assert found["occlusion_accuracy"] == 2 / 4
    assert [found[f"within_{k}"] for k in (1, 2, 4, 8, 16)] == pytest.approx([1 / 3, 1 / 3, 2 / 3, 1, 1])
    assert found["delta_average"] == pytest.approx((1 / 3 + 1 / 3 + 2 / 3 + 1 + 1) / 5)
    # Three visible places. Below 4 px: one true positive, two false ones at frames 2 and 4; then two and one.
    jaccard = [1 / 5, 1 / 5, 2 / 4, 2 / 4, 2 / 4]
    assert [found[f"jaccard_{k}"] for k in (1, 2, 4, 8, 16)] == pytest.approx(jaccard)
    assert found["average_jaccard"] == pytest.approx(sum(jaccard) / 5)


def test_perfect_tracks_are_perfect():
    truth = [[[10, 20], [30, 40]], [[11, 20], [30, 44]], [[300, 20], [30, 48]]]
    visible = [[True, True], [True, True], [False, True]]
    found = judged(truth, truth, visible)  # a place outside the picture is not found
    assert found.pop("trajectory_error") == 0
    assert set(found.values()) == {1.0}


def test_a_distance_of_k_is_not_within_k():
    found = judged([[[5, 5]], [[7, 5]]], [[[5, 5]], [[5, 5]]], [[True], [True]])
    assert (found["within_2"], found["within_4"]) == (0, 1)


def test_distances_are_those_of_256_pixels():
    """In 64 x 128 pixels a step of one pixel down is four, one to the right is two."""
    truth = [[[5, 5]], [[5, 5]], [[5, 5]]]
    found = judged([[[5, 5]], [[5, 6]], [[6, 5]]], truth, [[True]] * 3, (64, 128))
    assert found["trajectory_error"] == pytest.approx(3)
    assert (found["within_2"], found["within_4"], found["within_8"]) == (0, 0.5, 1)


def test_points_are_evaluated_after_their_first_visible_frame():
    """The second point appears at frame 1: frame 2 alone counts for it. It is never found."""
    truth = [[[5, 5], [0, 0]], [[5, 5], [9, 9]], [[5, 5], [9, 12]]]
    visible = [[True, False], [True, True], [True, True]]
    tracks = [[[5, 5], [1, 1]], [[5, 5], NONE], [[5, 5], NONE]]
    tracks[0][1] = NONE
    found = judged(tracks, truth, visible)
    assert found["trajectory_error"] == pytest.approx((0 + 0 + 3) / 3)
    assert found["occlusion_accuracy"] == pytest.approx(2 / 3)
    assert found["jaccard_16"] == pytest.approx(2 / 3)


def test_figures_are_means_over_videos_and_some_are_left_out():
    """View 0 is perfect over one place, view 1 misses both of its two; view 2 is not counted."""
    truth = [[[[[5.0, 5]], [[5, 5]], [[5, 5]]]] * 3]
    tracks = [[truth[0][0], [[[5, 5]], [[55, 5]], [[55, 5]]], [[[5, 5]], [[99, 5]], [[99, 5]]]]]
    visible = [[[[True], [True], [False]], [[True]] * 3, [[True]] * 3]]
    found = judged(tracks, truth, visible, counted=[[True, True, False]])
    assert found["trajectory_error"] == pytest.approx(25)
    assert found["within_16"] == 0.5
    # In view 0 the point is said to be visible at frame 2, where it is not: 1 / (1 + 1).
    assert found["jaccard_16"] == pytest.approx((1 / 2 + 0) / 2)


def test_frames_that_are_left_out_change_nothing():
    truth = [[[5, 5]], [[5, 5]], [[5, 5]]]
    tracks = [[[5, 5]], [[8, 5]], [[5, 5]]]
    every, first = (
        judged(tracks, truth, [[True]] * 3, counted=[[[True, True, last]]]) for last in (True, False)
    )
    assert every["trajectory_error"] == pytest.approx(1.5)
    assert first["trajectory_error"] == pytest.approx(3)
    assert (every["jaccard_2"], first["jaccard_2"]) == (pytest.approx(1 / 3), 0)


def test_nothing_is_said_of_points_never_seen():
    assert judged([[NONE], [NONE]], [[[5, 5]], [[5, 5]]], [[False], [False]]) == {}


def test_ranks_add_up():
    g = torch.Generator().manual_seed(0)
    truth = 256 * torch.rand(5, 2, 9, 3, 2, generator=g)
    tracks = truth + 8 * torch.randn(truth.shape, generator=g)
    visible = torch.rand(truth.shape[:-1], generator=g) < 0.8
    counted = torch.rand(5, 2, 9, generator=g) < 0.9
    whole, parts = Tracking(), (Tracking(), Tracking())
    whole.update(tracks, truth, visible, (256, 256), counted)
    for part, rows in zip(parts, (slice(2), slice(2, 5)), strict=True):
        part.update(tracks[rows], truth[rows], visible[rows], (256, 256), counted[rows])
    parts[0].merge_state(parts[1])
    found = parts[0].compute()
    assert len(found) == 14
    for name, value in whole.compute().items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-12), name
