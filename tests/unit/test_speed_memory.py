"""The computed memory budget of a recipe against sums by hand."""

import re

import pytest
import yaml

from ai_wam.cli.shipped_configs import config_path
from benchmarks.speed import memory
from benchmarks.speed.memory import budget, saving, text_encoder


def test_budget_of_adapters_on_24_gigabytes():
    recipe = yaml.safe_load(config_path("configs/recipes/lora_24gb.yaml").read_text())
    rows = budget(recipe)
    tokens, width, blocks, rank = 7 * 4 * 16 * 16, 3072, 30, 32  # 25 frames, two views, two kinds of segment
    adapters = blocks * 2 * 4 * 2 * width * rank  # two attentions, four maps, in and out of the rank
    conditions = (6 + 2 + 48) * 4 * width  # rays, given, is-action and first observation; patches of 2 x 2
    assert rows["trained weights, float32"] == pytest.approx(4e-9 * (adapters + conditions), rel=0.02)
    assert rows["frozen weights"] == pytest.approx(2e-9 * 5.0e9, rel=0.01)
    assert rows["gradients and two moments, float32"] == 3 * rows["trained weights, float32"]
    assert rows["what the forward pass keeps"] > 2e-9 * blocks * tokens * width  # tokens between blocks
    assert 20 > sum(rows.values()) > 12


def test_disk_of_the_full_recipe():
    recipe = yaml.safe_load(config_path("configs/recipes/full_8x80gb.yaml").read_text())
    file, disk, memory_of_host = saving(recipe).values()
    assert file == pytest.approx(4 * 4e-9 * 5.0e9, rel=0.01)  # weights, averages, two moments
    assert disk == pytest.approx(22 * file)
    assert memory_of_host == pytest.approx(1.25 * file)


def test_both_experts_are_twice_the_weights_of_one(monkeypatch: pytest.MonkeyPatch):
    recipe = yaml.safe_load(config_path("configs/recipes/lora_24gb.yaml").read_text())
    options = recipe["model"]["init_args"]["backbone"]["init_args"]
    options["pretrained"] = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
    monkeypatch.setattr(memory, "_activations", lambda *_: (1e9, 1e9))  # of one expert, as only one computes
    both, one = (budget(recipe) for options["expert"] in ("both", "high"))
    weights = ("frozen weights", "trained weights, float32", "gradients and two moments, float32")
    for row, size in both.items():
        assert size == pytest.approx((2 if row in weights or "averages" in row else 1) * one[row])
    assert both["frozen weights"] == pytest.approx(2e-9 * 2 * 14.289e9, rel=0.001)


@pytest.mark.slow  # traces a forward pass that keeps everything
def test_without_checkpointing_the_budget_is_broken():
    recipe = yaml.safe_load(config_path("configs/recipes/lora_24gb.yaml").read_text())
    recipe["model"]["init_args"]["backbone"]["init_args"]["training"]["gradient_checkpointing"] = False
    assert sum(budget(recipe).values()) > 60


def test_a_text_encoder_beside_the_model_is_counted():
    options = {"encoder": "UMT5EncoderModel", "length": 512}
    described = {"class_path": "backbones.conditions.t5.T5Prompts", "init_args": options}
    assert 1e-9 * text_encoder(described) == 1e-9 * text_encoder(None) == pytest.approx(11.4, abs=0.1)
    options["device"] = "cpu"
    assert text_encoder(described) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora_80gb", "full_8x80gb"])
def test_headers_say_what_is_computed(name: str):
    text = config_path(f"configs/recipes/{name}.yaml").read_text()
    said = float(re.search(r"# (\d+) GB per GPU as", text)[1])
    assert said == pytest.approx(sum(budget(yaml.safe_load(text)).values()), abs=0.6)
