"""A backbone given by a YAML replaces the one below it wholly; single settings go on top."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ai_wam.cli.shipped_configs import config_path
from ai_wam.cli.training import settings_of_fit

SHIPPED = sorted(config_path("configs/backbone").glob("*.yaml"))
RELEASED = [file for file in SHIPPED if not file.stem.endswith("-tiny")]
TINY = ["--config", "configs/quickstart.yaml"]


@pytest.fixture(autouse=True)
def words_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["ai-wam"])


def backbone(*words: str) -> dict[str, Any]:
    found: dict[str, Any] = settings_of_fit(words)["model"]["init_args"]["backbone"]
    return found


def alone(file: Path, tmp_path: Path) -> dict[str, Any]:
    """What a YAML says where nothing was said before."""
    plain = yaml.safe_load(config_path("configs/quickstart.yaml").read_text())
    plain["model"]["init_args"]["backbone"] = str(file)
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(plain))
    return backbone("--config", str(tmp_path / "plain.yaml"))


@pytest.mark.parametrize("file", RELEASED, ids=lambda file: file.stem)
def test_nothing_of_the_twin_survives_in_a_released_model(file: Path, tmp_path: Path):
    assert backbone(*TINY, "--model.backbone", str(file)) == alone(file, tmp_path)


@pytest.mark.parametrize(
    ("below", "above"),
    [("recipes/lora_24gb", "cogvideox-5b"), ("recipes/full_8x80gb", "wan2.2-5b"), ("quickstart", "wan-tiny")],
)
def test_nothing_of_a_recipe_survives_in_another_backbone(below: str, above: str, tmp_path: Path):
    file = config_path(f"configs/backbone/{above}.yaml")
    swap = f"--model.backbone=configs/backbone/{above}.yaml"
    assert backbone("--config", f"configs/{below}.yaml", swap) == alone(file, tmp_path)


@pytest.mark.parametrize("nested", [False, True])
def test_a_later_configuration_replaces_it_too(tmp_path: Path, nested: bool):
    model: Any = {"class_path": "tasks.policy.PolicyControl", "init_args": {"backbone": str(RELEASED[-1])}}
    if nested:
        (tmp_path / "model.yaml").write_text(yaml.safe_dump(model))
        model = "model.yaml"
    (tmp_path / "later.yaml").write_text(yaml.safe_dump({"model": model}))
    later = backbone(*TINY, "--config", str(tmp_path / "later.yaml"))
    assert later == alone(RELEASED[-1], tmp_path)


def test_single_settings_change_what_is_there(tmp_path: Path):
    (tmp_path / "part.yaml").write_text(
        "model: {init_args: {backbone: {init_args: {training: {lora: {rank: 4}}}}}}"
    )
    on_top = ["--config", str(tmp_path / "part.yaml"), "--model.backbone.prediction=native"]
    swapped = backbone(*TINY, f"--model.backbone={RELEASED[-1]}", *on_top)
    wanted = alone(RELEASED[-1], tmp_path)["init_args"]
    assert swapped["init_args"]["training"]["lora"]["rank"] == 4
    swapped["init_args"]["training"]["lora"] = None
    assert swapped["init_args"] == {**wanted, "prediction": "native"}
    assert backbone(*TINY, *on_top)["init_args"]["architecture"]["num_layers"] == 4
