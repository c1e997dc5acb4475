"""The training loop's pieces: plans per row, stable draws, errors that say what to change."""

from dataclasses import replace

import pytest
import torch
from moving_clips import batch_of

from ai_wam.action_images import ActionImageTokenizer
from ai_wam.cameras import Cameras
from ai_wam.canvas import Kind, plan
from ai_wam.cli.shipped_configs import instantiate
from ai_wam.diffusion.solvers import Sampling
from ai_wam.types import Clip
from backbones.base import VideoBackbone
from tasks.joint import JointGeneration
from tasks.policy import PolicyControl
from tasks.training.plan_mixture import check_clip, draw_plans, mixture

CLIP = Clip(frames=9, size=(32, 32), views=("front", "side"))


@pytest.fixture(scope="module")
def backbone() -> VideoBackbone:
    torch.manual_seed(0)
    return instantiate("configs/backbone/wan-tiny.yaml", VideoBackbone)


def test_every_row_gets_a_plan_in_the_shares_asked_for():
    shares = {"joint": 0.5, "policy": 0.3, "labeling": 0.2}
    batch = batch_of(3).rows([0, 1, 2] * 1000)
    drawn = draw_plans(mixture(shares), batch, torch.Generator().manual_seed(0))
    assert sorted(row for _, rows in drawn for row in rows) == list(range(3000))
    for chosen, rows in drawn:
        assert len(rows) / 3000 == pytest.approx(shares[chosen.name], abs=0.03)


def test_rows_without_actions_train_as_video_only():
    batch = batch_of()
    valid = batch.action_valid.clone()
    valid[1] = False
    drawn = dict(draw_plans(mixture({"policy": 1.0}), replace(batch, action_valid=valid), torch.Generator()))
    assert drawn == {plan("policy"): [0, 2], plan("video_only"): [1]}


def test_rows_without_a_calibrated_camera_train_on_their_video_where_it_is_known():
    batch = batch_of()
    lost = batch.cameras.world_from_camera.clone()
    lost[0], lost[1, 0] = torch.nan, torch.nan  # of row 0 every view, of row 1 one
    lost = replace(batch, cameras=Cameras(batch.cameras.intrinsics, lost))
    drawn = draw_plans(mixture({"policy": 1.0}), lost, torch.Generator())
    assert {chosen.name: rows for chosen, rows in drawn} == {"video_only": [0], "policy": [1, 2]}
    seen = replace(lost, video_valid=torch.zeros_like(lost.video_valid))
    assert [rows for _, rows in draw_plans(mixture({"policy": 1.0}), seen, torch.Generator())] == [[0, 1, 2]]


def test_rows_of_a_batch_are_their_own(backbone: VideoBackbone):
    batch = batch_of()
    part = batch.rows([2, 0])
    assert part.keys == ("episode2", "episode0")
    assert torch.equal(part.video[0], batch.video[2])
    assert torch.equal(part.cameras.intrinsics[1], batch.cameras.intrinsics[0])


@pytest.mark.parametrize("kind", [PolicyControl, JointGeneration])
def test_a_prediction_does_not_depend_on_its_batch(backbone: VideoBackbone, kind: type):
    task = kind(backbone, CLIP, sampling=Sampling(steps=2)).eval()
    together = task.predict_action(batch_of().observation)
    alone = task.predict_action(batch_of().rows([1]).observation)
    torch.testing.assert_close(
        alone.generated["action_images"][0], together.generated["action_images"][1], atol=1e-5, rtol=0
    )
    assert together.actions.shape == (3, 8, 8)
    assert together.dt == pytest.approx(0.2)
    assert ("observation" in together.generated) == (kind is JointGeneration)


def test_another_moment_draws_other_noise(backbone: VideoBackbone):
    task, observation = (
        PolicyControl(backbone, CLIP, sampling=Sampling(steps=1)).eval(),
        batch_of(1).observation,
    )
    later = replace(observation, seconds=observation.seconds + 1)
    first, second = (task.predict_action(seen).generated["action_images"] for seen in (observation, later))
    assert not torch.allclose(first, second)


def test_the_given_action_comes_back_through_the_canvas(backbone: VideoBackbone):
    """Action frame 0 of a sample is the present pose as the codec keeps it."""
    task, batch = PolicyControl(backbone, CLIP, sampling=Sampling(steps=1)).eval(), batch_of(1)
    generated = task.predict_action(batch.observation).generated["action_images"]
    now = 2 * task.tokenizer.encode(batch.actions[:, :1], batch.cameras[:, :, :1], CLIP.size) - 1
    kept = backbone.decode(backbone.encode(now))
    torch.testing.assert_close(generated[:, :, :, 0], kept[:, :, :, 0])


def test_decoded_segments_are_sorted_by_kind(backbone: VideoBackbone):
    task, batch = JointGeneration(backbone, CLIP).eval(), batch_of(2)
    canvas = task.training_canvas(batch, plan("joint"))
    segments = task.decode_segments(canvas, canvas.clean)
    images = 2 * ActionImageTokenizer().encode(batch.actions, batch.cameras, CLIP.size) - 1
    torch.testing.assert_close(segments[Kind.ACTION], backbone.decode(backbone.encode(images)))
    torch.testing.assert_close(segments[Kind.VIDEO], backbone.decode(backbone.encode(batch.video)))


def test_plans_that_need_video_say_so_where_it_was_not_decoded(backbone: VideoBackbone):
    batch = batch_of()
    valid = batch.video_valid.clone()
    valid[2, 1:] = False
    with pytest.raises(ValueError, match=r"'joint' needs all frames.*'episode2' lacks.*decode: all"):
        JointGeneration(backbone, CLIP).training_canvas(replace(batch, video_valid=valid), plan("joint"))


@pytest.mark.parametrize(
    ("name", "known"), [("policy", False), ("joint", False), ("labeling", True), ("annotation", True)]
)
def test_who_acts_does_not_know_where_a_moving_camera_will_be(
    backbone: VideoBackbone, name: str, known: bool
):
    """Neither rays nor action images may tell the wrist's future, which is the action."""
    task, batch = JointGeneration(backbone, CLIP), batch_of(1)
    poses = batch.cameras.world_from_camera.clone()
    poses[:, 1, 1:, 0, 3] += 0.2
    moving = replace(batch, cameras=replace(batch.cameras, world_from_camera=poses))
    one, other = (task.training_canvas(each, plan(name)) for each in (batch, moving))
    assert torch.equal(one.condition, other.condition) != known
    assert torch.equal(one.clean, other.clean) != known


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # float32 norms under autocast
@pytest.mark.parametrize("name", ["policy", "joint"])
def test_half_precision_leaves_geometry_and_codec_alone(backbone: VideoBackbone, name: str):
    task, batch = JointGeneration(backbone, CLIP, plans={name: 1.0}), batch_of(2)
    plain = task.training_canvas(batch, plan(name))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = task.training_canvas(batch, plan(name))
        context = backbone.encode_context(batch.prompts, batch.video[:, :, :, :1], batch.view_mask)
        loss = backbone.loss(mixed, context, torch.tensor([0.5, 1.0]), torch.randn(mixed.clean.shape))
    assert torch.equal(plain.condition, mixed.condition)
    assert torch.equal(plain.clean, mixed.clean)
    assert loss.dtype == torch.float32


def test_a_lost_calibration_costs_its_view_only(backbone: VideoBackbone):
    task, batch = PolicyControl(backbone, CLIP), batch_of(2)
    poses = batch.cameras.world_from_camera.clone()
    poses[0, 1] = torch.nan
    lost = replace(batch, cameras=replace(batch.cameras, world_from_camera=poses))
    canvas = task.training_canvas(lost, plan("policy"))
    assert canvas.condition.isfinite().all()
    assert canvas.clean.isfinite().all()
    counted = canvas.unpack(canvas.counted)
    assert not counted[3][0].any()
    assert counted[3][1].any()
    assert counted[1].any()


def test_fewer_views_than_the_clip_names_are_fine():
    check_clip(batch_of(), replace(CLIP, views=("front", "side", "wrist")))


def test_data_of_another_clip_are_refused(backbone: VideoBackbone):
    task = PolicyControl(backbone, replace(CLIP, views=("front",)))
    with pytest.raises(ValueError, match=r"2 views of \(32, 32\) pixels, the model's clip has 1 views"):
        task.training_step(batch_of(), 0)


def test_clips_the_backbone_cannot_take_are_refused(backbone: VideoBackbone):
    with pytest.raises(ValueError, match=r"10 frames does not fit .* such as 9 or 13"):
        PolicyControl(backbone, replace(CLIP, frames=10))
    with pytest.raises(ValueError, match="multiples of 16"):
        PolicyControl(backbone, replace(CLIP, size=(40, 32)))
    with pytest.raises(ValueError, match="unknown plan 'act'"):
        PolicyControl(backbone, CLIP, plans={"act": 1.0})
    with pytest.raises(ValueError, match="at least one plan with a positive share"):
        JointGeneration(backbone, CLIP, plans={"joint": 0.0})


def test_decoding_a_beginning_gives_the_beginning(backbone: VideoBackbone):
    batch = batch_of(2)
    whole = PolicyControl(backbone, CLIP).predict_action(batch.observation)
    part = PolicyControl(backbone, CLIP, decoded_frames=6).predict_action(batch.observation)
    assert part.actions.shape == (2, 5, 8)
    assert torch.equal(part.generated["action_images"], whole.generated["action_images"][:, :, :, :6])
    with pytest.raises(ValueError, match="between 2 and the clip's 9 frames, got 10"):
        PolicyControl(backbone, CLIP, decoded_frames=10)


def test_image_to_video_backbones_act(backbone: VideoBackbone):
    shown = instantiate("configs/backbone/wan-i2v-tiny.yaml", VideoBackbone)
    chunk = PolicyControl(shown, CLIP).predict_action(batch_of(2).observation)
    assert chunk.actions.shape == (2, 8, 8)


@pytest.mark.parametrize(
    "name", ["joint", "policy", "labeling", "annotation", "action_conditioned", "cross_view"]
)
def test_imagining_recorded_clips_knows_what_is_given_and_no_more(backbone: VideoBackbone, name: str):
    task, batch, other = JointGeneration(backbone, CLIP), batch_of(1), batch_of(1, seed=1)
    one = task.generate_videos(batch, plan(name))
    video, actions = batch.video.clone(), batch.actions.clone()
    unknown = slice(1 if name == "cross_view" else 0, 0 if name in ("labeling", "annotation") else None)
    video[:, unknown, :, 1:] = other.video[:, unknown, :, 1:]
    if name != "action_conditioned":
        first = 0 if name == "annotation" else 1
        actions[:, first:] = other.actions[:, first:]
    changed = task.generate_videos(replace(batch, video=video, actions=actions), plan(name))
    assert one.keys() == changed.keys()
    for kind in one:
        assert torch.equal(one[kind], changed[kind])


def test_what_imagining_is_given_comes_back(backbone: VideoBackbone):
    task, batch = JointGeneration(backbone, CLIP), batch_of(1)
    kept = backbone.decode(backbone.encode(batch.video))
    torch.testing.assert_close(task.generate_videos(batch, plan("labeling"))[Kind.VIDEO], kept)
    drawn = 2 * task.tokenizer.encode(batch.actions, batch.cameras, CLIP.size) - 1
    kept = backbone.decode(backbone.encode(drawn))
    torch.testing.assert_close(task.generate_videos(batch, plan("action_conditioned"))[Kind.ACTION], kept)
