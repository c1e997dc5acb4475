"""Actions read off latents: as precise as off decoded images, calibrated, and without the video decoder."""

import math
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from torch import nn

from ai_wam.action_images import ActionImageTokenizer
from ai_wam.cameras import Cameras
from ai_wam.canvas import Kind
from ai_wam.cli.shipped_configs import instantiate
from ai_wam.diffusion.solvers import Sampling
from ai_wam.types import Clip, LatentSpec, Observation
from backbones.base import VideoBackbone
from backbones.codecs.patch import PatchCodec
from benchmarks.speed.codec_rig import EYES, Errors, rig, trajectory
from tasks.decoding import latent_reading
from tasks.decoding.drawn_clips import drawn_clips
from tasks.decoding.latent_reading import Codec, LatentReader, fit_reader
from tasks.policy import PolicyControl
from tasks.training.cache_encoding import encode_pictures

SIZE, FRAMES, CLIPS = (64, 64), 9, 12
TOKENIZER = ActionImageTokenizer()


@pytest.fixture(autouse=True)
def _few_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_reading, "_CELLS_PER_UNKNOWN", 25)
    monkeypatch.setattr(latent_reading, "_HELD_OUT", 16)


class Nonlinear(nn.Module):
    """A codec whose latents are a bent mixture of the patch codec's, as an autoencoder's are."""

    def __init__(self, bend: float) -> None:
        super().__init__()
        self.linear, self.bend = PatchCodec(channels=48), bend
        turn = torch.randn(48, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.turn = torch.linalg.qr(turn).Q.float()

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        mixed = torch.einsum("ij,nj...->ni...", self.turn, self.linear.encode(video))
        return torch.asinh(self.bend * mixed) / self.bend

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        mixed = torch.sinh(self.bend * latents) / self.bend
        return self.linear.decode(torch.einsum("ji,nj...->ni...", self.turn, mixed))


def codec_of(module: PatchCodec | Nonlinear) -> Codec:
    def by_view(call):
        return lambda x: call(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    spec = LatentSpec(48, 8, 4, 4)
    return Codec(by_view(module.encode), by_view(module.decode), spec, torch.device("cpu"))


@lru_cache
def plain() -> tuple[Codec, LatentReader]:
    codec = codec_of(PatchCodec(channels=48))
    return codec, fit_reader(codec, TOKENIZER, SIZE)


def others() -> tuple[torch.Tensor, Cameras]:
    """Motions and cameras that are not drawn as those of the fit are."""
    actions = torch.cat([trajectory(FRAMES, 100 + seed) for seed in range(CLIPS)])
    return actions, rig(EYES[:2], FRAMES, SIZE[0]).map(lambda m: m.expand(CLIPS, *m.shape[1:]))


def p95(values: torch.Tensor) -> float:
    return float(values.quantile(0.95))


def test_poses_are_as_precise_as_those_of_decoded_images():
    codec, reader = plain()
    actions, cameras = others()
    latents = codec.encode(TOKENIZER.encode(actions, cameras, SIZE) * 2 - 1)
    own = Errors.of(reader.read(reader.images(latents), cameras), actions)
    decoded = Errors.of(TOKENIZER.decode((codec.decode(latents) + 1) / 2, cameras), actions)
    assert not own.flagged.any()
    assert own.gripper.all()
    assert p95(own.position) < p95(decoded.position)
    assert p95(own.rotation) < p95(decoded.rotation)
    assert reader.position_ratio < 1
    assert reader.rotation_ratio < 1


@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_standard_deviations_say_how_large_the_errors_of_noisy_latents_are(noise: float):
    codec, reader = plain()
    actions, cameras = others()
    latents = codec.encode(TOKENIZER.encode(actions, cameras, SIZE) * 2 - 1)
    drawn = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    errors = Errors.of(reader.read(reader.images(latents + noise * latents.std() * drawn), cameras), actions)
    for score in (errors.position_score, errors.rotation_score):
        assert 0.6 < float(errors.kept(score).mean()) < 1.5


def test_a_bent_mixture_of_channels_is_read_too():
    codec = codec_of(Nonlinear(bend=0.3))
    reader = fit_reader(codec, TOKENIZER, SIZE)
    assert max(reader.position_ratio, reader.rotation_ratio) < 1.5


def test_large_pictures_are_read_from_small_ones():
    codec = codec_of(PatchCodec(channels=48))
    reader = fit_reader(codec, TOKENIZER, (128, 128))
    assert reader.cell == 4
    actions, cameras = others()
    cameras = rig(EYES[:2], FRAMES, 128).map(lambda m: m.expand(CLIPS, *m.shape[1:]))
    latents = codec.encode(TOKENIZER.encode(actions, cameras, (128, 128)) * 2 - 1)
    images = reader.images(latents)
    assert images.shape == (CLIPS, 2, 3, FRAMES, 64, 64)
    errors = Errors.of(reader.read(reader.images(latents), cameras), actions)
    assert p95(errors.position) < 1.5
    assert p95(errors.rotation) < 1.5


def test_images_of_another_shape_than_the_cameras_are_refused():
    actions, cameras = others()
    images = TOKENIZER.encode(actions, cameras, SIZE)
    with pytest.raises(
        ValueError, match=r"images of 64 x 64 pixels have another shape than size \(64, 128\)"
    ):
        TOKENIZER.decode(images, cameras, size=(64, 128))


def test_views_that_are_missing_are_left_out():
    codec, reader = plain()
    actions, cameras = others()
    latents = codec.encode(TOKENIZER.encode(actions, cameras, SIZE) * 2 - 1)
    mask = torch.ones(CLIPS, 2, dtype=torch.bool)
    mask[0, 1] = False
    valid = reader.read(reader.images(latents), cameras, mask).valid
    assert not valid[0].any()
    assert valid[1:].all()


def test_drawn_clips_show_most_of_their_blobs():
    actions, cameras = drawn_clips(40, 2, FRAMES, (48, 64), torch.Generator().manual_seed(0))
    pixels = TOKENIZER.project(actions, cameras, (48, 64))
    inside = (pixels > 0).all(-1) & (pixels[..., 0] < 64) & (pixels[..., 1] < 48)
    assert 0.6 < float(inside.double().mean()) < 0.98
    norms = actions[..., 3:7].norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def task_of(decoder: str | None) -> PolicyControl:
    torch.manual_seed(0)
    backbone = instantiate("configs/backbone/wan2.2-tiny.yaml", VideoBackbone)
    clip = Clip(frames=FRAMES, size=SIZE, views=("front", "side"))
    return PolicyControl(backbone, clip, decoder=decoder, sampling=Sampling(steps=1)).eval()


def observation() -> Observation:
    actions, cameras = others()
    return Observation(
        video=torch.zeros(1, 2, 3, 1, *SIZE), cameras=cameras[:1, :, :1],
        view_mask=torch.ones(1, 2, dtype=torch.bool), action=actions[:1, 0], seconds=torch.zeros(1),
        prompts=("reach",), episodes=("one",),
    )  # fmt: skip


def test_a_policy_acts_without_the_video_decoder(monkeypatch: pytest.MonkeyPatch):
    task, other = task_of("latent"), task_of("geometric")
    actions, cameras = others()
    drawn = task.encode_actions(actions[:1], cameras[:1])

    def generate(self, chosen, seen, cameras, *given):
        canvas = self._canvas(
            chosen, seen, cameras, encode_pictures(self.backbone, seen.video, FRAMES), drawn
        )
        return canvas, canvas.clean

    monkeypatch.setattr(PolicyControl, "generate", generate)
    expected = other.predict_action(observation())
    assert task.decoders["latent"].kinds == ()  # fits the map, which compares with decoded images
    monkeypatch.setattr(PatchCodec, "decode", None)
    chunk = task.predict_action(observation())
    assert chunk.valid.all()
    torch.testing.assert_close(chunk.actions[..., :3], expected.actions[..., :3], atol=0.01, rtol=0)
    torch.testing.assert_close(chunk.actions[..., :3], actions[:1, 1:, :3], atol=0.005, rtol=0)
    assert chunk.position_std.isfinite().all()
    assert chunk.generated["action_images"].shape == (1, 2, 3, FRAMES, *SIZE)


def test_a_codec_that_is_read_less_precisely_has_its_images_decoded(monkeypatch: pytest.MonkeyPatch):
    task = task_of("latent")
    reader = replace(plain()[1], position_ratio=1.2, rotation_ratio=math.inf)
    monkeypatch.setattr("tasks.world_action_model.fit_reader", lambda *_: reader)
    with pytest.warns(
        UserWarning, match="'latent': errors .* are inf times .* where 1.5 is allowed; .* 'geom"
    ):
        assert task.decoders["latent"].kinds == (Kind.ACTION,)
    chunk, expected = task.predict_action(observation()), task_of("geometric").predict_action(observation())
    torch.testing.assert_close(chunk.actions, expected.actions, equal_nan=True)


def test_the_other_decoder_of_such_a_model_is_the_geometric_one():
    assert set(task_of("latent").by_decoder()) == {"geometric"}
    assert "latent" not in task_of(None).decoders
