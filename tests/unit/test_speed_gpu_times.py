"""The code of the GPU's half runs on the CPU, at a tiny size."""

import pytest
import torch

from backbones.base import VideoBackbone
from backbones.codecs.patch import PatchCodec
from backbones.conditions.prompts import HashedWords
from backbones.wan import Wan
from benchmarks.speed import gpu_times
from benchmarks.speed.released_sizes import SIZES

SMALL = {"num_attention_heads": 2, "attention_head_dim": 24, "ffn_dim": 32, "num_layers": 2, "freq_dim": 16}


def small(**options: object) -> VideoBackbone:
    return Wan(architecture=SMALL, codec=PatchCodec(12), prompts=HashedWords(16, 8), **options)


@pytest.mark.parametrize(
    ("what", "told"), [("acting", "% of the matrix rate"), ("training", "with eight encodes")]
)
def test_a_row_is_made(what: str, told: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(SIZES, "small", small)
    cpu = torch.device("cpu")
    rate = gpu_times.matrix_rate(cpu, 64)
    assert told in getattr(gpu_times, what)("small", (32, 32), 9, 2, rate, cpu)


def test_islands_of_float32_stay():
    model = gpu_times.half(small())
    kinds = {name: p.dtype for name, p in model.denoiser.named_parameters()}
    assert kinds["condition_embedder.time_embedder.linear_1.weight"] == torch.float32
    assert kinds["blocks.0.norm2.weight"] == torch.float32
    assert kinds["blocks.0.attn1.to_q.weight"] == torch.bfloat16


def test_a_model_that_does_not_fit_does_not_end_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def full(*_: object) -> str:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(gpu_times, "SIZES", {"one": small, "two": small})
    monkeypatch.setattr(gpu_times, "matrix_rate", lambda _: 1e12)
    for name in ("get_device_name", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1e9)
    monkeypatch.setattr(gpu_times, "acting", full)
    monkeypatch.setattr(gpu_times, "training", lambda *_: "trained")
    full.__name__ = "acting"
    gpu_times.print_measured(2)
    lines = capsys.readouterr().out
    assert lines.count("acting does not fit") == lines.count("trained; 1.0 GB at most") == 2
