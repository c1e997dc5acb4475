"""The pictures of docs/concepts.md."""

from matplotlib.patches import Rectangle

from ai_wam.canvas import plan
from benchmarks.report.concept_pictures import PLANS, action_images, plans
from benchmarks.report.rollout_picture import demonstration


def test_a_box_per_latent_frame_is_drawn_and_given_ones_are_darker():
    boxes = [patch for patch in plans(["policy"]).axes[0].patches if isinstance(patch, Rectangle)]
    segments = plan("policy").segments(2, 3)
    assert len(boxes) == sum(segment.length for segment in segments) == 8
    assert sum(box.get_alpha() == 1 for box in boxes) == sum(segment.given for segment in segments) == 4


def test_every_plan_is_in_the_picture_and_on_the_page():
    from ai_wam.canvas import _PLANS  # the picture is to have all of them

    assert set(PLANS) == set(_PLANS)


def test_the_demonstration_has_a_row_per_view_and_kind():
    figure = action_images(demonstration("reach_target", ("front", "left_shoulder"), 32), count=3)
    assert len(figure.axes) == 4 * 3
    assert figure.axes[0].get_title() == "0.0 s"
