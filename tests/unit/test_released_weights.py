"""The loading code for released weights, on tiny checkpoints saved in the genuine format."""

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    Cosmos2VideoToWorldPipeline,
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    LTXPipeline,
    MochiPipeline,
    StableVideoDiffusionPipeline,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from released_twins import PROMPT, clip, cogvideox_network, saved, shot, told, wan_network, wan_vae
from text_twins import TEXT, save_text
from transformers import (
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from ai_wam.cameras import Cameras
from ai_wam.canvas import Canvas, build_canvas, plan
from backbones.base import VideoBackbone
from backbones.codecs.patch import PatchCodec
from backbones.cogvideox import CogVideoX
from backbones.conditions.image_encoders import Thumbnails
from backbones.conditions.prompts import Context, HashedWords
from backbones.conditions.t5 import T5Prompts
from backbones.wan import Wan
from backbones.weights.denoiser_folder import check_parts
from backbones.weights.sharded_loading import deferred_weights


@pytest.fixture(scope="module")
def wan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan")
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=2,
    )  # fmt: skip
    transformer.save_pretrained(folder / "transformer", max_shard_size="20KB")
    AutoencoderKLWan(base_dim=8, z_dim=16, num_res_blocks=1).save_pretrained(folder / "vae")
    save_text(folder, UMT5EncoderModel(UMT5Config(**TEXT)))
    return folder


@pytest.fixture(scope="module")
def cogvideox_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cogvideox")
    torch.manual_seed(0)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=16, out_channels=16, time_embed_dim=8,
        text_embed_dim=16, num_layers=2, sample_width=8, sample_height=8,
        use_rotary_positional_embeddings=True,
    )  # fmt: skip
    transformer.save_pretrained(folder / "transformer")
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 16), latent_channels=16, layers_per_block=1, norm_num_groups=4,
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
    )  # fmt: skip
    vae.save_pretrained(folder / "vae")
    save_text(folder, T5EncoderModel(T5Config(**TEXT)))
    return folder


def canvas_of(backbone: VideoBackbone, frames: int = 9, name: str = "joint") -> Canvas:
    video = torch.rand(1, 1, 3, frames, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    cameras = Cameras(torch.eye(3)[None, None, None] * 30, torch.eye(4)[None, None, None])
    first, whole = backbone.encode(video[:, :, :, :1]), backbone.encode(video)
    mask = torch.ones(1, 1, dtype=torch.bool)
    still = backbone.encode_still(video[:, :, :, :1], first, frames)
    stills = None if still is None else (still, still)
    known = (first, first, whole, whole)
    return build_canvas(plan(name), backbone.spec, (32, 32), cameras, mask, *known, stills=stills)


def context_of(backbone: VideoBackbone, *prompts: str) -> Context:
    now = torch.zeros(len(prompts), 1, 3, 1, 32, 32)
    return backbone.encode_context(prompts, now, torch.ones(len(prompts), 1, dtype=torch.bool))


def test_wan_is_the_released_model_at_step_0(wan_folder: Path):
    wan = Wan(str(wan_folder))
    canvas = canvas_of(wan)
    context = context_of(wan, "reach the red ball")
    noise = torch.randn(canvas.clean.shape)
    plain = WanTransformer3DModel.from_pretrained(wan_folder, subfolder="transformer")
    time = 1000 * 0.6 * (~canvas.given[:, 0, :, ::2, ::2]).flatten(1)
    with torch.no_grad():
        ours = wan.predict(noise, torch.tensor([0.6]), canvas, context)
        theirs = plain(noise, time, context.tokens, return_dict=False)[0]
    assert torch.equal(ours, theirs)


def test_wan_codec_is_causal_and_normalised(wan_folder: Path):
    wan = Wan(str(wan_folder))
    video = torch.rand(1, 1, 3, 9, 32, 32) * 2 - 1
    latents = wan.encode(video)
    torch.testing.assert_close(latents[:, :, :, :1], wan.encode(video[:, :, :, :1]))
    vae = AutoencoderKLWan.from_pretrained(wan_folder, subfolder="vae")
    raw = vae.encode(video[0]).latent_dist.mode()
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    torch.testing.assert_close(latents[0], (raw - mean) / std)
    theirs = vae.decode(raw, return_dict=False)[0]
    torch.testing.assert_close(wan.decode(latents)[0], theirs, atol=1e-4, rtol=0)


def test_wan_prompts_end_in_zeros(wan_folder: Path):
    context = context_of(Wan(str(wan_folder)), "reach the red ball", "reach", "")
    assert context.tokens.shape == (3, 512, 16)
    assert [int(row.abs().sum(-1).gt(0).sum()) for row in context.tokens] == [5, 2, 1]
    torch.testing.assert_close(context.pooled[1], context.tokens[1, :2].mean(0))


def test_cogvideox_is_the_released_model_at_step_0(cogvideox_folder: Path):
    model = CogVideoX(str(cogvideox_folder))
    canvas = canvas_of(model)
    context = context_of(model, "reach the red ball")
    assert context.tokens.shape == (1, 226, 16)
    assert context.tokens[0, 5:].abs().sum() > 0
    noise = torch.randn(canvas.clean.shape)
    plain = CogVideoXTransformer3DModel.from_pretrained(cogvideox_folder, subfolder="transformer")
    with torch.no_grad():
        ours = model.predict(noise, torch.tensor([0.6]), canvas, context)
        theirs = plain(
            noise.transpose(1, 2),
            context.tokens,
            torch.tensor([599]),
            image_rotary_emb=model._rotary(noise),
            return_dict=False,
        )[0]
    assert torch.equal(ours, theirs.transpose(1, 2))


def test_cogvideox_counts_frames_by_eights(cogvideox_folder: Path):
    model = CogVideoX(str(cogvideox_folder))
    with pytest.raises(ValueError, match=r"8k \+ 1 frames, such as 9 or 17"):
        model.spec.latent_frames(13)
    video = torch.rand(1, 1, 3, 9, 32, 32) * 2 - 1
    assert model.decode(model.encode(video)).shape == video.shape


def test_checkpoints_leave_out_what_never_changes(wan_folder: Path):
    wan, other = Wan(str(wan_folder)), Wan(str(wan_folder))
    state = wan.state_dict()
    assert state
    assert all(name.startswith("denoiser.") for name in state)
    with torch.no_grad():
        other.denoiser.proj_out.weight.zero_()
    assert not other.load_state_dict(state).missing_keys
    assert torch.equal(other.denoiser.proj_out.weight, wan.denoiser.proj_out.weight)
    with pytest.raises(RuntimeError, match=r"denoiser\.proj_out\.weight"):
        other.load_state_dict({name: value for name, value in state.items() if "proj_out.weight" not in name})


@pytest.mark.parametrize("missing", ["vae", "transformer", "text_encoder"])
def test_a_missing_part_is_named(wan_folder: Path, tmp_path: Path, missing: str):
    for part in wan_folder.iterdir():
        if part.name != missing:
            (tmp_path / part.name).symlink_to(part)
    with pytest.raises(FileNotFoundError, match=f"cannot load '{missing}' of the pretrained model"):
        Wan(str(tmp_path))


def test_a_missing_shard_is_named(wan_folder: Path, tmp_path: Path):
    index = wan_folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    gone = sorted(set(json.loads(index.read_text())["weight_map"].values()))[-1]
    (tmp_path / "transformer").mkdir()
    for part in [*wan_folder.iterdir(), *(wan_folder / "transformer").iterdir()]:
        target = tmp_path / part.relative_to(wan_folder)
        if part.name not in (gone, "transformer"):
            target.symlink_to(part)
    with pytest.raises(FileNotFoundError, match=r"cannot load 'transformer'.*Download it again"):
        Wan(str(tmp_path))


def test_weights_of_other_shapes_are_named(wan_folder: Path, tmp_path: Path):
    for part in wan_folder.iterdir():
        if part.name != "transformer":
            (tmp_path / part.name).symlink_to(part)
    shutil.copytree(wan_folder / "transformer", tmp_path / "transformer")
    file = tmp_path / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "ffn_dim": 64}))
    with pytest.raises(ValueError, match=r"weights in 'transformer'.*ffn.* is \(32,\), expected \(64,\)"):
        Wan(str(tmp_path))


def test_long_prompts_are_refused(wan_folder: Path):
    with pytest.raises(ValueError, match=r"'reach reach .* has 513 tokens, limit 512; shorten it"):
        context_of(Wan(str(wan_folder)), "reach " * 512)


def test_hub_ids_say_how_to_fetch():
    parts = " ".join(
        rf"--include '{part}/\*'" for part in ("transformer", "vae", "text_encoder", "tokenizer")
    )
    with pytest.raises(FileNotFoundError, match=f"hf download nobody/nothing {parts}"):
        Wan("nobody/nothing")
    with pytest.raises(FileNotFoundError, match=r"there is no such folder.*correct the path") as error:
        Wan("/nowhere/wan")
    assert "hf download" not in str(error.value)


def test_either_weights_or_a_configuration(wan_folder: Path):
    codec, prompts = PatchCodec(), HashedWords()
    with pytest.raises(ValueError, match="either `pretrained`"):
        Wan(codec=codec, prompts=prompts)
    with pytest.raises(ValueError, match="either `pretrained`"):
        Wan(str(wan_folder), architecture={"num_layers": 1})
    with pytest.raises(ValueError, match="needs its `codec`"):
        CogVideoX(architecture={"num_layers": 1})
    with pytest.raises(ValueError, match=r"\['text_dim'\] follow from codec, prompts and images"):
        Wan(architecture={"text_dim": 7}, codec=codec, prompts=prompts)


def test_weights_of_another_codec_are_refused(wan_folder: Path):
    with pytest.raises(ValueError, match=r"takes 16 channels .* makes 48"):
        Wan(str(wan_folder), codec=PatchCodec(48))


def test_wan_is_conditioned_on_a_picture_as_the_released_model(tmp_path: Path):
    encoder, processor = clip()
    pipeline = WanImageToVideoPipeline(
        tokenizer=None, text_encoder=None, image_processor=processor, image_encoder=encoder, vae=wan_vae(),
        transformer=wan_network(in_channels=36, image_dim=32, added_kv_proj_dim=24),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip
    folder, parts = saved(pipeline, tmp_path), {"prompts": HashedWords(16, 512)}
    with pytest.raises(
        ValueError, match=r"has the first frame as a condition natively.*known_observation: false"
    ):
        Wan(folder, **parts)
    context = told(Wan(folder, known_observation=False, **parts), PROMPT)
    # Theirs goes through 8-bit pictures and Pillow's resampling, ours through tensors in half precision.
    theirs = pipeline.encode_image(shot(), torch.device("cpu"))
    assert torch.cosine_similarity(context.images, theirs, dim=2).min() > 0.998


def test_learned_positions_are_for_one_size(cogvideox_folder: Path, tmp_path: Path):
    for part in ("text_encoder", "tokenizer", "vae"):
        (tmp_path / part).symlink_to(cogvideox_folder / part)
    network = cogvideox_network(in_channels=32, use_learned_positional_embeddings=True)
    network.save_pretrained(tmp_path / "transformer")
    model = CogVideoX(str(tmp_path), known_observation=False)
    with deferred_weights():
        waiting = CogVideoX(str(tmp_path), known_observation=False)
    waiting.materialize()
    for name, value in model.denoiser.state_dict().items():
        assert torch.equal(waiting.denoiser.state_dict()[name], value), name
    with pytest.raises(ValueError, match="learned positions are for 32 x 32"):
        model.spec.grid((48, 48))


@pytest.mark.parametrize("name", ["policy", "video_only", "labeling"])
def test_a_picture_is_shown_once_where_segments_are_padded(cogvideox_folder: Path, tmp_path: Path, name: str):
    """In the first latent frame, as the model was trained; later frames as they are, if they are given."""
    for part in ("text_encoder", "tokenizer", "vae"):
        (tmp_path / part).symlink_to(cogvideox_folder / part)
    cogvideox_network(in_channels=32, patch_size_t=2).save_pretrained(tmp_path / "transformer")
    model = CogVideoX(str(tmp_path), known_observation=False)
    canvas = canvas_of(model, name=name)
    seen: list[torch.Tensor] = []
    model.denoiser.patch_embed.proj.base.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.predict(canvas.clean, torch.tensor([0.6]), canvas, context_of(model, "reach"))
    # Tokens of 2 x 2 x 2 positions, channel by channel; the picture's channels are the latter 16.
    tokens = seen[0].unflatten(2, (32, 2, 2, 2))[:, :, 16:].unflatten(1, (-1, 2, 2))
    shown = tokens.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(2, 3).flatten(3, 4).flatten(4, 5)
    start = 0
    for segment, clean in zip(canvas.segments, canvas.unpack(canvas.clean), strict=True):
        assert segment.pad == 1
        end = start + 1 + segment.length
        own, start = shown[:, :, start:end], end
        assert torch.equal(own[:, :, 0], clean[:, :, 0])
        assert not own[:, :, 1].any()
        later = clean[:, :, 1 : segment.given]
        assert torch.equal(own[:, :, 2 : 1 + segment.given], later)
        assert not own[:, :, 1 + segment.given :].any()


@pytest.mark.parametrize(("padding", "kind"), [("zeros", "UMT5EncoderModel"), ("states", "T5EncoderModel")])
def test_embeddings_are_kept_on_disk_and_the_encoder_can_be_dropped(
    wan_folder: Path, cogvideox_folder: Path, tmp_path: Path, padding: str, kind: str
):
    folder = wan_folder if kind == "UMT5EncoderModel" else cogvideox_folder
    words = {"encoder": kind, "length": 12, "padding": padding, "device": "cpu", "cache": str(tmp_path)}
    cpu, said = torch.device("cpu"), ["reach the red ball", "ball", ""]
    first = T5Prompts(str(folder), **words)
    told = first.encode(said, cpu)
    first.drop()
    assert torch.equal(first.encode(said, cpu).tokens, told.tokens)
    assert first._loaded is None  # what is known needs no encoder
    assert len(list(tmp_path.iterdir())) == 3

    again = T5Prompts(str(folder), **words)
    recalled = again.encode(said, cpu)
    assert again._loaded is None
    assert torch.equal(recalled.tokens, told.tokens)
    assert torch.equal(recalled.pooled, told.pooled)
    again.encode(["the"], cpu)
    assert again._loaded is not None
    aside = T5Prompts(str(folder), **{**words, "cache": None})
    assert aside.keep(tmp_path / "beside", said)
    found = T5Prompts(str(folder), **{**words, "cache": None})
    assert found.keep(tmp_path / "beside")
    assert torch.equal(found.encode(said, cpu).tokens, told.tokens)
    assert found._loaded is None
    longer = T5Prompts(str(folder), **{**words, "length": 13}).encode(said, cpu)  # another key, another file
    assert longer.tokens.shape[1] == 13


def test_a_first_frame_of_cogvideox_is_decoded_with_its_block(cogvideox_folder: Path):
    model = CogVideoX(str(cogvideox_folder))
    latents = torch.randn(1, 1, 16, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    whole = model.decode(latents)
    for frames in (1, 2, 9):
        torch.testing.assert_close(model.decode(latents, frames), whole[:, :, :, :frames])


def test_prompts_of_another_length_are_refused():
    architecture = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1, "time_embed_dim": 8}
    with pytest.raises(ValueError, match=r"prompts of 8 tokens.*set `length: 226`"):
        CogVideoX(architecture=architecture, codec=PatchCodec(12), prompts=HashedWords(16, 8))
    shown = {
        "in_channels": 28, "patch_size": [1, 2, 2], "num_attention_heads": 2, "attention_head_dim": 24,
        "ffn_dim": 64, "freq_dim": 16, "num_layers": 1, "added_kv_proj_dim": 48,
    }  # fmt: skip
    parts = {"codec": PatchCodec(12), "images": Thumbnails(), "known_observation": False, "time": "shared"}
    with pytest.raises(ValueError, match="prompts of 600 tokens, limit 512"):
        Wan(architecture=shown, prompts=HashedWords(16, 600), **parts)
    Wan(architecture=shown, prompts=HashedWords(16, 512), **parts)


def test_cogvideox_draws_noise_levels_uniformly(cogvideox_folder: Path):
    u = CogVideoX(str(cogvideox_folder)).path.draw(100_000, torch.Generator().manual_seed(0))
    shares = torch.histc(u, bins=10, min=0, max=1) / len(u)
    assert (shares.cumsum(0) - torch.linspace(0.1, 1, 10)).abs().max() < 0.012


@pytest.mark.parametrize(
    ("pipeline", "used"),
    [
        (WanPipeline, {"transformer", "transformer_2"}),
        (WanImageToVideoPipeline, {"transformer", "transformer_2", "image_encoder"}),
        (CogVideoXPipeline, {"transformer"}),
        (CogVideoXImageToVideoPipeline, {"transformer"}),
        (StableVideoDiffusionPipeline, {"unet", "image_encoder"}),
        (LTXPipeline, {"transformer"}),
        (LTXConditionPipeline, {"transformer"}),
        (Cosmos2VideoToWorldPipeline, {"transformer"}),
        (MochiPipeline, {"transformer"}),
    ],
)
def test_whole_releases_of_every_family_are_taken(pipeline: Any, used: set[str], tmp_path: Path):
    """The parts that the genuine pipelines have, all of them there; one more is refused."""
    settings = {"boundary_ratio", "expand_timesteps", "force_zeros_for_empty_prompt"}
    parts = [
        name for name in inspect.signature(pipeline.__init__).parameters if name not in {"self", *settings}
    ]
    index: dict[str, Any] = {
        "_class_name": pipeline.__name__,
        **{name: ["library", "Kind"] for name in parts},
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    check_parts(str(tmp_path), {*used, "vae", "text_encoder"}, "Any")
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "upsampler": ["diffusers", "Upsampler"]}))
    with pytest.raises(ValueError, match=r"parts that Any does not use.*: upsampler \(Upsampler\)"):
        check_parts(str(tmp_path), {*used, "vae", "text_encoder"}, "Any")
