"""Plans, packing, and what is given."""

from dataclasses import replace

import pytest
import torch

from ai_wam.cameras import Cameras
from ai_wam.canvas import Canvas, Kind, build_canvas, condition_channels, pack, plan
from ai_wam.types import LatentSpec

PLANS = ["joint", "policy", "action_conditioned", "labeling", "annotation", "video_only", "cross_view"]
B, C, TL, H, W = 2, 3, 3, 4, 6


def spec(axis: str = "time") -> LatentSpec:
    return LatentSpec(C, 8, 4, 4, patch=2, pack_axis=axis)


def latents(views: int, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    video, action = torch.randn(2, B, views, C, TL, H, W, generator=g)
    return {
        "first_video": video[:, :, :, :1],
        "first_action": action[:, :, :, :1],
        "video": video,
        "action": action,
    }


def build(name: str, views: int = 2, axis: str = "time", **changes: object) -> Canvas:
    k = torch.tensor([[50.0, 0, 24], [0, 50.0, 16], [0, 0, 1]]).expand(B, views, 9, 3, 3)
    poses = torch.eye(4).repeat(B, views, 9, 1, 1)
    poses[..., 0, 3] = torch.arange(views)[None, :, None] + 0.1 * torch.arange(9)
    arguments = {
        "cameras": Cameras(k, poses),
        "view_mask": torch.ones(B, views, dtype=torch.bool),
        **latents(views),
    }
    return build_canvas(plan(name), size=(32, 48), **{"spec": spec(axis), **arguments, **changes})


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("name", PLANS)
def test_every_position_is_given_or_counted(name: str, views: int):
    canvas = build(name, views)
    assert torch.equal(canvas.given, ~canvas.counted)
    assert canvas.counted.any()
    assert canvas.condition.shape[1] == condition_channels(spec())
    assert torch.equal(canvas.condition[:, 6:7].bool(), canvas.given)


@pytest.mark.parametrize(
    ("name", "wanted"),  # given frames of [video_0, action_0, video_1, action_1], and lengths
    [
        ("joint", ([1, 1, 1, 1], [3, 3, 3, 3])),
        ("policy", ([1, 1, 1, 1], [1, 3, 1, 3])),
        ("action_conditioned", ([1, 3, 1, 3], [3, 3, 3, 3])),
        ("labeling", ([3, 1, 3, 1], [3, 3, 3, 3])),
        ("annotation", ([3, 0, 3, 0], [3, 3, 3, 3])),
        ("video_only", ([1, 1], [3, 3])),
        ("cross_view", ([3, 1, 1, 1], [3, 3, 3, 3])),
    ],
)
def test_plans(name: str, wanted: tuple[list[int], list[int]]):
    segments = plan(name).segments(2, TL)
    assert [s.given for s in segments] == wanted[0]
    assert [s.length for s in segments] == wanted[1]
    assert [s.view for s in segments] == sorted(s.view for s in segments)


@pytest.mark.parametrize("axis", ["time", "width"])
@pytest.mark.parametrize("name", PLANS)
def test_unpack_gives_the_segments_back(name: str, axis: str):
    canvas, known = build(name, axis=axis), latents(2)
    for segment, part in zip(canvas.segments, canvas.unpack(canvas.clean), strict=True):
        truth = known["video" if segment.kind is Kind.VIDEO else "action"][:, segment.view]
        wanted = truth[:, :, :1].expand_as(truth) if segment.still else truth[:, :, : segment.length]
        assert torch.equal(part, wanted)
    assert torch.equal(pack(canvas.unpack(canvas.condition), axis), canvas.condition)


def test_unknown_clips_leave_zeros_to_be_generated():
    canvas = build("joint", video=None, action=None, latent_frames=TL)
    for part, given in zip(canvas.unpack(canvas.clean), canvas.unpack(canvas.given), strict=True):
        assert (part[:, :, 1:] == 0).all()
        assert (given[:, :, 0]).all()
        assert not given[:, :, 1:].any()


def test_pictures_are_shown_once_and_later_frames_are_distinguished():
    known = latents(2)
    stills = tuple(
        torch.cat([known[f"first_{kind}"]] + [torch.zeros(B, 2, C, 2, H, W)] * 1, dim=3)
        for kind in ("video", "action")
    )
    two = replace(spec(), patch_time=2)
    canvas = build("labeling", stills=stills, spec=two)
    assert [segment.pad for segment in canvas.segments] == [1] * 4
    assert canvas.image is not None
    for start, segment in zip(range(0, 16, 4), canvas.segments, strict=True):
        shown, later = (part[:, :, start : start + 4] for part in (canvas.image, canvas.given_later))
        first = known["first_video" if segment.kind is Kind.VIDEO else "first_action"][:, segment.view]
        assert torch.equal(shown, torch.cat([first, torch.zeros(B, C, 3, H, W)], dim=2))
        assert [bool(frame.all()) for frame in later.unbind(2)] == [False] * 2 + [segment.given == TL] * 2
    assert not build("joint").given_later.any()


def test_what_is_given_must_be_known():
    with pytest.raises(ValueError, match="'labeling' gives the whole video segment of view 0"):
        build("labeling", video=None)
    with pytest.raises(ValueError, match="latent_frames is needed"):
        build("joint", video=None, action=None)
    with pytest.raises(ValueError, match="unknown plan 'jont'; choose one of joint, policy"):
        plan("jont")


def test_missing_views_count_nowhere():
    mask = torch.tensor([[True, False], [True, True]])
    canvas = build("joint", view_mask=mask)
    counted = canvas.unpack(canvas.counted)
    assert counted[0][0].any()
    assert not counted[2][0].any()
    assert counted[2][1].any()
    assert (canvas.unpack(canvas.clean)[2][0] == 0).all()
    assert canvas.unpack(canvas.given)[2][0].all()


def test_rays_are_those_of_the_view_relative_to_the_first():
    canvas = build("joint", views=2)
    video_0, _, video_1, _ = canvas.unpack(canvas.condition)
    assert torch.allclose(video_0[:, 3:6, 0], torch.zeros(()))  # view 0 at time 0 is the origin: no moment
    norm = video_1[:, :3].norm(dim=1)
    torch.testing.assert_close(norm, torch.ones_like(norm))
    # View 1 lies 1 m to the right; at latent frame 1 (video frame 4) it has moved 0.4 m on.
    direction = video_1[0, :3, 1, 0, 0]
    wanted = torch.linalg.cross(torch.tensor([1.4, 0, 0]), direction)
    torch.testing.assert_close(video_1[0, 3:6, 1, 0, 0], wanted)


def test_rays_can_be_left_out():
    turned = torch.eye(4).repeat(B, 2, 9, 1, 1)
    turned[:, 1, :, 0, 3] = 5.0
    k = torch.tensor([[50.0, 0, 24], [0, 50.0, 16], [0, 0, 1]]).expand(B, 2, 9, 3, 3)
    blind = replace(spec(), rays=False)
    there, here = (build("joint", spec=blind, **more) for more in ({"cameras": Cameras(k, turned)}, {}))
    assert here.condition.shape[1] == condition_channels(blind) == condition_channels(spec()) - 6
    assert torch.equal(there.condition, here.condition)
    assert torch.equal(here.condition, build("joint").condition[:, 6:])


@pytest.mark.parametrize(
    ("plan", "whole"), [("joint", ()), ("policy", ()), ("labeling", (0, 1)), ("cross_view", (0,))]
)
def test_context_is_the_known_observation_of_the_view(plan: str, whole: tuple[int, ...]):
    canvas, known = build(plan), latents(2)
    for segment, part in zip(canvas.segments, canvas.unpack(canvas.condition), strict=True):
        first, video = (known[name][:, segment.view] for name in ("first_video", "video"))
        expected = first.expand(-1, -1, segment.length, -1, -1)
        if segment.view in whole:
            expected = torch.cat([first, video[:, :, 1:]], dim=2)
        assert torch.equal(part[:, 8:], expected)


@pytest.mark.parametrize(
    ("plan", "frames"),  # of the action latents, at the three times; None: zeros
    [
        ("joint", [0, 0, 0]),
        ("action_conditioned", [0, 1, 2]),
        ("annotation", None),
        ("video_only", None),
    ],
)
@pytest.mark.parametrize("axis", ["time", "width"])
def test_known_actions_are_a_condition_of_every_segment(plan: str, frames: list[int] | None, axis: str):
    known, both = latents(2)["action"], replace(spec(axis), known_action=True)
    canvas = build(plan, axis=axis, spec=both)
    assert canvas.condition.shape[1] == condition_channels(both) == condition_channels(spec()) + C
    for segment, part in zip(canvas.segments, canvas.unpack(canvas.condition), strict=True):
        expected = torch.zeros_like(part[:, 8 + C :])
        if frames is not None:
            expected = known[:, segment.view][:, :, frames[: segment.length]]
        assert torch.equal(part[:, 8 + C :], expected)


def test_committed_actions_are_known_up_to_each_rows_last_one():
    canvas = build("joint", spec=replace(spec(), known_action=True), prefix=torch.tensor([0, 1]))
    known = latents(2)["action"]
    for segment, part in zip(canvas.segments, canvas.unpack(canvas.condition), strict=True):
        for row, frames in enumerate(([0, 0, 0], [0, 1, 1])):
            assert torch.equal(part[row, 8 + C :], known[row, segment.view][:, frames])


def test_frame_counts_and_sizes_are_checked():
    with pytest.raises(ValueError, match=r"12 frames does not fit .* 4k \+ 1 frames, such as 9 or 13"):
        spec().latent_frames(12)
    with pytest.raises(ValueError, match="multiples of 16"):
        spec().grid((64, 72))
    assert spec().latent_frames(41) == 11
