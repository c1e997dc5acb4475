"""Stable Video Diffusion: step 0, time per frame, text, the width-packed canvas."""

from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from ai_wam.cameras import Cameras
from ai_wam.canvas import Canvas, Kind, build_canvas, plan
from backbones.codecs.patch import PatchCodec
from backbones.conditions.image_encoders import Thumbnails
from backbones.conditions.prompts import HashedWords
from backbones.svd import SVD

SIZE, FRAMES = (64, 64), 3
SMALL = {
    "block_out_channels": (32, 32), "num_attention_heads": (2, 2), "layers_per_block": 1,
    "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 24,
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in the released layout."""
    folder = tmp_path_factory.mktemp("svd")
    torch.manual_seed(0)
    UNetSpatioTemporalConditionModel(cross_attention_dim=16, **SMALL).save_pretrained(folder / "unet")
    AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), layers_per_block=1, down_block_types=("DownEncoderBlock2D",) * 2
    ).save_pretrained(folder / "vae")
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28,
        patch_size=14, projection_dim=16,
    )  # fmt: skip
    CLIPVisionModelWithProjection(vision).save_pretrained(folder / "image_encoder")
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    CLIPImageProcessor(**size).save_pretrained(folder / "feature_extractor")
    return folder


def canvas_of(model: SVD, name: str, views: int = 1) -> tuple[Canvas, torch.Tensor]:
    """A canvas of random clips and the pictures seen."""
    g = torch.Generator().manual_seed(0)
    video, action = torch.rand(2, 1, views, 3, FRAMES, *SIZE, generator=g) * 2 - 1
    cameras = Cameras((torch.eye(3) * 60).expand(1, views, 1, 3, 3), torch.eye(4).expand(1, views, 1, 4, 4))
    first = [model.encode(part[:, :, :, :1]) for part in (video, action)]
    stills = [
        model.encode_still(part[:, :, :, :1], latents, FRAMES)
        for part, latents in zip((video, action), first, strict=True)
    ]
    canvas = build_canvas(
        plan(name), model.spec, SIZE, cameras, torch.ones(1, views, dtype=torch.bool), *first,
        model.encode(video), model.encode(action), stills=(stills[0], stills[1]),
    )  # fmt: skip
    return canvas, video[:, :, :, :1]


def tiny(**options: object) -> SVD:
    torch.manual_seed(0)
    parts = {"codec": PatchCodec(12, frames=1), "images": Thumbnails(), "prompts": HashedWords(16, 8)}
    return SVD(architecture=SMALL, known_observation=False, **{**parts, **options})


def test_image_tokens_are_those_of_the_released_pipeline(folder: Path):
    model = SVD(str(folder), known_observation=False)
    _, now = canvas_of(model, "video_only")
    context = model.encode_context([""], now, torch.ones(1, 1, dtype=torch.bool))
    pipeline = StableVideoDiffusionPipeline(
        model.codec.vae,
        CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder").eval(),
        model.denoiser,
        EulerDiscreteScheduler(),
        CLIPImageProcessor.from_pretrained(folder / "feature_extractor"),
    )
    picture = (now[:, 0, :, 0] + 1) / 2
    small = torch.nn.functional.interpolate(picture, (28, 28), mode="bicubic", antialias=True).clamp(0, 1)
    theirs = pipeline._encode_image(small, "cpu", 1, False)
    assert torch.cosine_similarity(context.images, theirs, dim=2).min() > 0.998


def test_the_codec_is_the_released_one(folder: Path):
    model = SVD(str(folder), known_observation=False)
    video = torch.rand(1, 2, 3, FRAMES, *SIZE) * 2 - 1
    latents = model.encode(video)
    torch.testing.assert_close(latents[:, :, :, 1:2], model.encode(video[:, :, :, 1:2]))
    vae = model.codec.vae
    raw = vae.encode(video[0, 1].transpose(0, 1)).latent_dist.mode()
    torch.testing.assert_close(latents[0, 1].transpose(0, 1), raw * vae.config.scaling_factor)
    theirs = vae.decode(raw, num_frames=FRAMES).sample.clamp(-1, 1)
    torch.testing.assert_close(model.decode(latents)[0, 1].transpose(0, 1), theirs, atol=1e-4, rtol=0)
    # The decoder looks ahead, so a beginning is cut from the whole and not decoded alone.
    assert torch.equal(model.decode(latents, 2), model.decode(latents)[:, :, :, :2])


def test_every_frame_may_have_a_time_of_its_own():
    model = tiny(time="per_frame")
    canvas, now = canvas_of(model, "joint", views=2)
    times = model.network_time(torch.tensor([0.9]), canvas)
    clean = float(model.path.model_time(torch.zeros(1)))
    assert times.shape == (1, FRAMES)
    assert float(times[0, 0]) == pytest.approx(clean)  # the first frame of every segment is given
    assert (times[0, 1:] > clean).all()
    context = model.encode_context(["reach"], now, torch.ones(1, 2, dtype=torch.bool))
    noise, u = torch.randn_like(canvas.clean), torch.tensor([0.9])
    with torch.no_grad():
        told = model.predict(noise, u, canvas, context)
        model.spec = tiny().spec  # one time for all
        assert not torch.allclose(model.predict(noise, u, canvas, context), told)


def test_acting_holds_the_first_frame_side_by_side():
    model = tiny()
    canvas, _ = canvas_of(model, "policy", views=2)
    rows, columns = model.spec.grid(SIZE)
    assert canvas.clean.shape == (1, 12, FRAMES, rows, 4 * columns)
    parts = (canvas.unpack(each) for each in (canvas.clean, canvas.given, canvas.counted))
    for segment, clean, given, counted in zip(canvas.segments, *parts, strict=True):
        if segment.kind is Kind.VIDEO:
            assert segment.still
            assert torch.equal(clean, clean[:, :, :1].expand_as(clean))
            assert given.all()
            assert not counted.any()
        else:
            assert given[:, :, 0].all()
            assert counted[:, :, 1:].all()


def test_text_starts_silent_and_is_refused_without_its_path(folder: Path):
    model = tiny()
    canvas, now = canvas_of(model, "policy")
    mask = torch.ones(1, 1, dtype=torch.bool)
    noise, u = torch.randn_like(canvas.clean), torch.tensor([0.5])
    with torch.no_grad():
        contexts = [model.encode_context([prompt], now, mask) for prompt in ("", "reach")]
        first, second = (model.predict(noise, u, canvas, context) for context in contexts)
        assert torch.equal(first, second)
        model.denoiser.text.weight.normal_()
        assert not torch.allclose(model.predict(noise, u, canvas, contexts[1]), first)
    with pytest.raises(
        ValueError, match=r"has no text condition, but got 'reach the red ball'; set `prompts`"
    ):
        SVD(str(folder), known_observation=False).encode_context(["reach the red ball"], now, mask)


def test_what_does_not_fit_is_refused(folder: Path):
    with pytest.raises(ValueError, match="has the first frame as a condition natively"):
        SVD(str(folder))
    with pytest.raises(ValueError, match=r"UNet takes 8 channels .* needs 24 in and 12 out"):
        SVD(str(folder), codec=PatchCodec(12, frames=1), known_observation=False)
    with pytest.raises(ValueError, match="squeezes 4 frames into one"):
        tiny(codec=PatchCodec(12))
    with pytest.raises(ValueError, match="both must be multiples of 16"):
        tiny().spec.grid((72, 64))
    with pytest.raises(ValueError, match="choose one of shared, per_frame"):
        tiny(time="per_token")
