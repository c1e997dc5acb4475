"""What is missing, of another family or not whole is refused, and before weights are read where it can be."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, AutoencoderKLWan, WanTransformer3DModel
from jsonargparse import Namespace
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.distributed.device_mesh import DeviceMesh
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

from ai_wam.cli import main
from ai_wam.cli.checkpoint_settings import check_fits, shards_weights
from backbones.base import VideoBackbone
from backbones.cogvideox import CogVideoX
from backbones.conditions.image_encoders import CLIPImages
from backbones.cosmos import Cosmos
from backbones.ltx import LTX
from backbones.mochi import Mochi
from backbones.svd import SVD
from backbones.wan import Wan
from backbones.weights import loading
from backbones.weights.sharded_loading import deferred_weights
from backbones.weights.training_options import Training

FAMILIES: dict[str, tuple[type[VideoBackbone], str, str]] = {
    "Wan": (Wan, "transformer", "WanTransformer3DModel"),
    "CogVideoX": (CogVideoX, "transformer", "CogVideoXTransformer3DModel"),
    "SVD": (SVD, "unet", "UNetSpatioTemporalConditionModel"),
    "LTX": (LTX, "transformer", "LTXVideoTransformer3DModel"),
    "Cosmos": (Cosmos, "transformer", "CosmosTransformer3DModel"),
    "Mochi": (Mochi, "transformer", "MochiTransformer3DModel"),
}
PAIRS = [(asked, found) for asked in FAMILIES for found in FAMILIES if asked != found]


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Wan release."""
    folder = tmp_path_factory.mktemp("wan")
    WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=2,
    ).save_pretrained(folder / "transformer")  # fmt: skip
    AutoencoderKLWan(base_dim=8, z_dim=16, num_res_blocks=1).save_pretrained(folder / "vae")
    text = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 8}
    UMT5EncoderModel(UMT5Config(**text)).save_pretrained(folder / "text_encoder")
    words = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", "reach"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture
def release(genuine: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(genuine, tmp_path / "wan"))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the parts whose weights were read."""
    found: list[str] = []
    check = loading.check_complete

    def note(*problems: Any) -> None:
        found.append(problems[-1].split("'")[1])
        check(*problems)

    monkeypatch.setattr(loading, "check_complete", note)
    return found


@pytest.mark.parametrize(("asked", "found"), PAIRS)
def test_another_family_is_named_before_anything_is_read(asked: str, found: str, tmp_path: Path):
    _, folder, network = FAMILIES[found]
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "config.json").write_text(json.dumps({"_class_name": network}))
    wanted = FAMILIES[asked][2]
    message = rf"another family \({network}\): use the configuration of {found} \(configs/backbone/.*{wanted}"
    with pytest.raises(ValueError, match=rf"{message}\) for {asked}"):
        FAMILIES[asked][0](str(tmp_path))


def test_a_codec_of_another_family_is_named(release: Path, read: list[str]):
    shutil.rmtree(release / "vae")
    AutoencoderKLLTXVideo(
        latent_channels=16, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
    ).save_pretrained(release / "vae")  # fmt: skip
    with pytest.raises(
        ValueError, match=r"'vae' of .* is a AutoencoderKLLTXVideo, .* needs a AutoencoderKLWan"
    ):
        Wan(str(release))
    assert not read


@pytest.mark.parametrize(("part", "name"), [("transformer", "blocks.1"), ("vae", "decoder.mid_block")])
@pytest.mark.parametrize("change", ["lacks", "holds unknown"])
def test_weights_that_are_not_whole_are_refused(release: Path, part: str, name: str, change: str):
    _edit(release / part, name, change)
    with pytest.raises(ValueError, match=rf"weights in '{part}' .*: it {change} {name}.*download it again"):
        Wan(str(release))


@pytest.mark.parametrize("change", ["lacks", "holds unknown"])
def test_weights_to_be_read_later_are_checked_now(release: Path, change: str):
    _edit(release / "transformer", "blocks.1", change)
    with deferred_weights(), pytest.raises(ValueError, match=rf"'transformer' .*: it {change} blocks\.1"):
        Wan(str(release))


@pytest.mark.parametrize(
    ("strategy", "weights", "waits"),
    [
        ("ModelParallelStrategy", None, True),
        ("ModelParallelStrategy", "a.ckpt", False),
        ("DDPStrategy", None, False),
    ],
)
def test_weights_wait_for_a_strategy_that_shards(strategy: str, weights: str | None, waits: bool):
    chosen = Namespace(class_path=f"lightning.pytorch.strategies.{strategy}", init_args=Namespace())
    assert shards_weights(Namespace(trainer=Namespace(strategy=chosen), weights=weights)) is waits
    assert not shards_weights(Namespace(trainer=Namespace(strategy="auto"), weights=None))


@pytest.mark.parametrize("change", ["lacks", "holds unknown"])
def test_encoders_that_are_not_whole_are_refused(release: Path, change: str):
    _edit(release / "text_encoder", "encoder.block.0.layer.1", change)
    with pytest.raises(ValueError, match=f"weights in 'text_encoder' .*: it {change} encoder"):
        Wan(str(release)).prompts.encode(["reach"], torch.device("cpu"))
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28,
        patch_size=14,
    )  # fmt: skip
    CLIPVisionModel(vision).save_pretrained(release / "image_encoder")
    (release / "image_processor").mkdir()
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (release / "image_processor" / "preprocessor_config.json").write_text(json.dumps(processor))
    _edit(release / "image_encoder", "layers.1.mlp", change)
    images = CLIPImages(str(release), features="penultimate", processor="image_processor")
    with pytest.raises(ValueError, match=f"weights in 'image_encoder' .*: it {change} .*layers"):
        images.encode(torch.zeros(1, 3, 32, 32))


def _edit(folder: Path, name: str, change: str) -> None:
    file = next(folder.glob("*.safetensors"))
    tensors = load_file(file)
    chosen = next(key for key in sorted(tensors) if name in key)
    if change == "lacks":
        del tensors[chosen]
    else:
        tensors[f"{chosen}_more"] = torch.zeros(1)
    save_file(tensors, file, {"format": "pt"})


def _cut(release: Path) -> None:
    file = next((release / "transformer").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])


def _without(*parts: str) -> Callable[[Path], None]:
    return lambda release: [shutil.rmtree(release / part) for part in parts] and None


def _without_file(name: str) -> Callable[[Path], None]:
    return lambda release: (release / name).unlink()


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_without("transformer", "vae", "tokenizer"), "'transformer', 'vae', 'tokenizer'"),
        (_without("vae", "text_encoder"), "'vae', 'text_encoder'"),
        (_without_file("text_encoder/model.safetensors"), "'text_encoder'"),
        (_without_file("vae/diffusion_pytorch_model.safetensors"), "'vae'"),
        (_without_file("tokenizer/tokenizer_config.json"), "'tokenizer'"),
    ],
)
def test_all_that_is_missing_is_named_at_once(
    release: Path, read: list[str], damage: Callable[[Path], None], named: str
):
    damage(release)
    with pytest.raises(FileNotFoundError, match=f"cannot load {named} of .*hf download HUB_ID --local-dir"):
        Wan(str(release))
    assert not read


def test_a_cut_file_is_named(release: Path):
    _cut(release)
    with pytest.raises(FileNotFoundError, match=r"cannot load 'transformer' .*Download it again"):
        Wan(str(release))


def test_other_shapes_are_refused_before_anything_is_read(release: Path, read: list[str]):
    file = release / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "ffn_dim": 64}))
    with pytest.raises(ValueError, match=r"ffn.* is \(32,\), expected \(64,\)"):
        Wan(str(release))
    assert not read


def test_long_prompts_are_counted_without_the_encoder(release: Path, read: list[str]):
    prompts = Wan(str(release)).prompts
    read.clear()
    with pytest.raises(ValueError, match="has 513 tokens, limit 512; shorten it"):
        prompts.check(["reach", "reach " * 513])
    prompts.check(["reach " * 512])
    with pytest.raises(ValueError, match="limit 512"):
        prompts.encode(["reach " * 513], torch.device("cpu"))
    assert not read


def test_captions_are_refused_before_anything_is_read(
    release: Path, read: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    words = ["--source.init_args.episodes_per_task=1", "--workers=0", f"--out={tmp_path / 'data'}"]
    command = ["ai-wam", "collect", "--config=configs/collect/reach_target.yaml", *words]
    monkeypatch.setattr(sys, "argv", command)
    main()
    prompts = {
        "class_path": "backbones.conditions.prompts.HashedWords",
        "init_args": {"width": 16, "length": 1},
    }
    backbone = {
        "class_path": "backbones.wan.Wan",
        "init_args": {"pretrained": str(release), "prompts": prompts},
    }
    clip = {
        "frames": 9,
        "stride": 4,
        "control_hz": 20.0,
        "size": [64, 64],
        "views": ["front", "left_shoulder"],
    }
    arguments = {"train": str(tmp_path / "data"), "clip": clip}
    data = {"class_path": "datamodules.shard_datamodule.ShardDataModule", "init_args": arguments}
    check_fits({"backbone": backbone, "clip": clip})
    with pytest.raises(ValueError, match="words, limit 1; raise `length`"):
        check_fits({"backbone": backbone, "clip": clip}, data)
    prompts["init_args"]["length"] = 16
    check_fits({"backbone": backbone, "clip": clip}, data)
    assert not read


@pytest.mark.parametrize(("name", "text"), [("hashed", "one two three"), ("none", "one")])
def test_prompts_can_be_checked_alone(name: str, text: str):
    from backbones.conditions.prompts import HashedWords
    from backbones.svd import NoPrompts

    encoder = HashedWords(length=2) if name == "hashed" else NoPrompts()
    encoder.check([""])
    with pytest.raises(ValueError, match="one"):
        encoder.check(["", text])


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        ({"frames": 10, "size": [64, 64]}, r"a clip of 10 frames .*such as 9 or 13"),
        ({"frames": 9, "size": [60, 64]}, r"images of 60 x 64 pixels .*multiples of 16"),
    ],
)
def test_a_clip_that_does_not_fit_is_refused_before_anything_is_read(
    release: Path, read: list[str], clip: dict[str, Any], message: str
):
    options = {"pretrained": str(release), "training": {"lora": {"rank": 2}, "dtype": "bfloat16"}}
    backbone = {"class_path": "backbones.wan.Wan", "init_args": options}
    with pytest.raises(ValueError, match=message):
        check_fits({"backbone": backbone, "clip": clip})
    check_fits({"backbone": backbone, "clip": {"frames": 9, "size": [64, 64]}})
    assert not read


def test_weights_of_two_precisions_are_not_sharded(release: Path):
    with deferred_weights():
        backbone = Wan(str(release), training=Training(dtype="bfloat16"))
    with pytest.raises(ValueError, match="dtype: float32, or train with lora"):
        backbone.shard(Mock(spec=DeviceMesh))
