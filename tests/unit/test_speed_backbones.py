"""The figures of `benchmarks.speed.backbones` that need no clock."""

from functools import partial

import pytest
import torch

from backbones.codecs.patch import PatchCodec
from benchmarks.speed.backbones import computed
from benchmarks.speed.computed_work import Work
from benchmarks.speed.measuring import canvas_of, chunk, interleaved
from benchmarks.speed.released_sizes import SIZES, build
from benchmarks.speed.sizes import Card, least_seconds


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("wan2.1-1.3b", 1.419),
        ("wan2.2-5b", 5.000),
        ("wan2.1-14b", 14.289),
        ("cogvideox-5b", 5.571),
        ("mochi-1", 10.023),
    ],
)
def test_released_sizes_have_the_published_number_of_parameters(name: str, parameters: float):
    with torch.device("meta"):
        model = build(name)
    assert sum(p.numel() for p in model.denoiser.parameters()) / 1e9 == pytest.approx(parameters, abs=2e-3)


def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers are as good as all where their number is not asserted."""
    monkeypatch.setattr("benchmarks.speed.computed_work.build", partial(build, layers=2))


def test_computed_figures_follow_from_shapes(monkeypatch: pytest.MonkeyPatch):
    shallow(monkeypatch)
    small = computed("wan2.1-1.3b", (64, 64), 9)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build("wan2.1-1.3b", layers=2).denoiser.parameters())
    assert small[:2] == [f"{parameters / 1e9:.3f} B", "0.05 / 0.15 M"]
    assert small[2:4] == [str(4 * 3 * 4 * 4), str((2 * 1 + 2 * 3) * 4 * 4)]  # 3 latent frames of 4 x 4 tokens
    twice = computed("wan2.1-1.3b", (128, 64), 9)
    assert float(twice[6]) == pytest.approx(2 * float(small[6]), rel=0.1)  # encoding grows with the area


def test_the_least_time_is_that_of_the_work_or_of_the_weights():
    with torch.device("meta"):
        model = build("wan2.1-1.3b", layers=1)
    work = Work(model, 10**9, {"policy": 5}, {"policy": 4e12}, 0.0, 1e12, 3e12)
    slow, narrow = Card("", 1e12, 1e12, ""), Card("", 1e15, 1e9, "")
    assert least_seconds(work, "policy", 3, slow) == pytest.approx(3 * 4 + 2)
    assert least_seconds(work, "policy", 3, narrow) == pytest.approx(3 * 2 + 2e-3)


def test_clips_are_lengthened_to_what_a_model_takes(monkeypatch: pytest.MonkeyPatch):
    shallow(monkeypatch)
    found = computed("mochi-1", (64, 64), 9)  # 6k + 1 frames, text as long as its values say
    assert found == computed("mochi-1", (64, 64), 13)
    assert found[2] == str(4 * 3 * 4 * 4)
    assert found[7] == found[8]  # the beginning is the whole clip


def test_a_chunk_decodes_the_action_segments():
    small = {"num_attention_heads": 1, "attention_head_dim": 24, "ffn_dim": 8, "num_layers": 1, "freq_dim": 8}
    model = build("wan2.1-1.3b", architecture=small, codec=PatchCodec(12))
    canvas, context = canvas_of(model, "policy", (32, 32), 9)
    video = chunk(model, canvas, context, torch.randn_like(canvas.clean), 2, frames=5)
    assert video.shape == (1, 2, 3, 5, 32, 32)


def test_interleaving_measures_every_function():
    calls = []
    found = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3
    assert set(found) == {"a", "b"}


def test_unknown_sizes_are_listed():
    with pytest.raises(ValueError, match=r"unknown model 'wan3'; choose one of wan2\.1-1\.3b"):
        build("wan3")
    assert "wan2.2-5b" in SIZES
