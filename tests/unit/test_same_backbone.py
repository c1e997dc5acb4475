"""Which settings of a backbone may differ from its checkpoint's."""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from jsonargparse import Namespace

from ai_wam.cli.checkpoint_settings import check_backbone, warn_of_rounding
from backbones.codecs.patch import PatchCodec
from backbones.conditions.prompts import HashedWords
from backbones.wan import Wan
from backbones.weights.lora import LoRA

T5 = {"pretrained": "/old/wan2.2", "encoder": "UMT5EncoderModel", "length": 512, "padding": "zeros"}
SAVED: dict[str, Any] = {
    "class_path": "backbones.wan.Wan",
    "init_args": {
        "pretrained": "/old/wan2.2",
        "prompts": {"class_path": "backbones.conditions.t5.T5Prompts", "init_args": T5},
        "codec": {"class_path": "backbones.wan.WanVAE", "init_args": {"pretrained": "/old/wan2.2"}},
    },
}


def check(changes: dict[str, Any]) -> None:
    asked = copy.deepcopy(SAVED)
    for name, value in changes.items():
        *parents, last = name.split(".")
        place = asked["init_args"]
        for parent in parents:
            place = place[parent]["init_args"]
        place[last] = value
    check_backbone("x.ckpt", {"init_args": {"backbone": SAVED}}, Namespace(init_args={"backbone": asked}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pretrained", "/new/wan2.2"),
        ("prompts.pretrained", "/new/wan2.2"),
        ("prompts.device", "cpu"),
        ("prompts.cache", "prompts"),
        ("prompts.dtype", "float32"),
        ("codec.dtype", "bfloat16"),
        ("codec.pretrained", "/new/wan2.2"),
        ("training", {"dtype": "bfloat16", "compile_blocks": True, "gradient_checkpointing": True}),
    ],
)
def test_where_and_how_parts_run_is_free(name: str, value: str, capsys: pytest.CaptureFixture[str]):
    check({name: value})
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompts.length", 226),
        ("prompts.padding", "states"),
        ("prediction", "clean"),
        ("codec", None),
        ("training", {"lora": {"rank": 2}}),
    ],
)
def test_what_they_compute_is_not(name: str, value: Any):
    with pytest.raises(ValueError, match=rf"another backbone:\n  {name.split('.')[0]}: checkpoint"):
        check({name: value})


def test_a_release_of_another_name_is_pointed_out(capsys: pytest.CaptureFixture[str]):
    check({"pretrained": "/old/wan2.1"})
    assert "both must be copies of one release" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dtype", "lora", "warned"),
    [("bfloat16", None, True), ("bfloat16", LoRA(), False), ("float32", None, False)],
)
def test_training_rounded_weights_is_warned_of(dtype: str, lora: Any, warned: bool):
    small = {"num_attention_heads": 1, "attention_head_dim": 24, "ffn_dim": 8, "num_layers": 1, "freq_dim": 8}
    backbone = Wan(architecture=small, codec=PatchCodec(12), prompts=HashedWords(16, 8))
    backbone.weights_dtype, backbone.lora = getattr(torch, dtype), lora
    with pytest.warns(UserWarning, match="rounds small steps away") if warned else nullcontext():
        warn_of_rounding(backbone)
