"""Every command with every kind of broken input: one sentence, no traceback, a status that is not 0."""

import json
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from ai_wam.cli import LIGHTNING, OWN, main
from ai_wam.cli.errors import one_sentence
from ai_wam.cli.shipped_configs import instantiate
from ai_wam.cli.training import settings_of_fit
from backbones.base import VideoBackbone
from benchmarks.speed.moving_squares import MovingSquares
from datamodules.shards.convert_source import write_shards
from tasks.base import WorldActionTask

FIT = ["--config=configs/quickstart.yaml", "--data.workers=0", "--trainer.logger=false"]
TRIALS = ["--data=configs/benchmark/reach_target.yaml", "--data.benchmark.protocol.trials_per_task=1"]
HOLD = ["--model=tasks.fixed_policy.FixedPolicy", "--model.policy=benchmarks.policies.HoldStill"]
SQUARES = [
    "--source=benchmarks.speed.moving_squares.MovingSquares",
    "--source.episodes=1",
    "--source.frames=5",
]


def _data(folder: Path) -> list[str]:
    return [f"--data.train={folder}", f"--data.val={folder}"]


class Place:
    """A folder with shards, a checkpoint and its export; runs commands that must be refused."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.shards = folder, folder / "shards"
        write_shards(MovingSquares(2, 9), self.shards, 1, workers=0, progress=False)
        described = settings_of_fit(["--config=configs/quickstart.yaml"])["model"]
        task = instantiate(described, WorldActionTask)
        known = {"_class_path": described["class_path"], **described["init_args"]}
        self.saved: dict[str, Any] = {
            "state_dict": task.state_dict(),
            "hyper_parameters": known,
            "epoch": 0,
            "global_step": 1,
            "loops": {f"{command}_loop": {} for command in LIGHTNING},
            "callbacks": {},
            **{name: [] for name in ("optimizer_states", "lr_schedulers")},
            "pytorch-lightning_version": "2.6.0",
        }
        self.data, self.checkpoint = _data(self.shards), folder / "good.ckpt"
        torch.save(self.saved, self.checkpoint)
        main(["export-checkpoint", f"--ckpt_path={self.checkpoint}", f"--out={folder / 'exported'}"])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ai-wam"])
        return Place(tmp_path_factory.mktemp("bad"))


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    monkeypatch.setattr(sys, "argv", ["ai-wam"])
    monkeypatch.chdir(tmp_path)

    def run(command: str, *words: object) -> str:
        with pytest.raises(SystemExit) as stop:
            main([command, *map(str, words)])
        said = capsys.readouterr().err
        assert stop.value.code in (1, 2)
        assert "Traceback" not in said
        assert str(stop.value).startswith(f"ai-wam {command}: ")
        assert said.endswith(f"{stop.value}\n")
        return str(stop.value)

    return run


# ---------------------------------------------------------------------- checkpoints


class _Code:
    """What a pickle of an attacker holds: it makes a file when it is run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("EXECUTED"),)


def _archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", "b")


def _cut(share: float) -> Callable[[Path, Place], object]:
    def write(path: Path, place: Place) -> object:
        data = place.checkpoint.read_bytes()
        return path.write_bytes(data[: int(share * len(data))])

    return write


def _saved(**changes: Any) -> Callable[[Path, Place], object]:
    return lambda path, place: torch.save({**place.saved, **changes}, path)


def _with_nan(path: Path, place: Place) -> None:
    state = dict(place.saved["state_dict"])
    name = next(name for name, value in state.items() if value.is_floating_point())
    state[name] = torch.full_like(state[name], torch.nan)
    torch.save({**place.saved, "state_dict": state}, path)


CHECKPOINTS: dict[str, Callable[[Path, Place], object]] = {
    "code": lambda path, place: path.write_bytes(pickle.dumps(_Code())),
    "code inside": lambda path, place: torch.save({**place.saved, "hyper_parameters": _Code()}, path),
    "empty": lambda path, place: path.write_bytes(b""),
    "cut at 0.001": _cut(0.001),
    "cut in the middle": _cut(0.5),
    "cut at the end": _cut(0.999),
    "text": lambda path, place: path.write_text("hello"),
    "another archive": lambda path, place: _archive(path),
    "a list": lambda path, place: torch.save([1, 2], path),
    "a folder": lambda path, place: path.mkdir(),
    "not there": lambda path, place: None,
    "no hyper_parameters": _saved(hyper_parameters=None),
    "hyper_parameters that are text": _saved(hyper_parameters="x"),
    "hyper_parameters without a class": _saved(hyper_parameters={"a": 1}),
    "a number as class": _saved(hyper_parameters={"_class_path": 3}),
    "a class that is not there": _saved(hyper_parameters={"_class_path": "nowhere.Task"}),
    "a class that is no model": _saved(hyper_parameters={"_class_path": "pathlib.Path"}),
    "no state_dict": _saved(state_dict=None),
    "a state_dict of numbers": _saved(state_dict={"a": 1}),
    "weights of another network": _saved(state_dict={"a": torch.zeros(2)}),
    "not a number": _with_nan,
}
TAKE_CHECKPOINTS: dict[str, Callable[[Path, Place], list[object]]] = {
    "fit": lambda file, place: [*FIT, *place.data, f"--ckpt_path={file}"],
    "fit --weights": lambda file, place: [*FIT, *place.data, f"--weights={file}"],
    "validate": lambda file, place: [
        "--data=configs/data/shards.yaml", *place.data,
        "--data.workers=0", "--trainer.logger=false", f"--ckpt_path={file}",
    ],
    "predict": lambda file, place: [
        "--data=configs/data/shards.yaml", *place.data, "--data.workers=0", "--trainer.logger=false",
        f"--ckpt_path={file}",
    ],
    "test": lambda file, place: [*TRIALS, "--trainer.logger=false", "--data.out=out", f"--ckpt_path={file}"],
    "export-checkpoint": lambda file, place: [f"--ckpt_path={file}", "--out=out"],
    "convert-checkpoint": lambda file, place: [f"--source={file}", "--out=out"],
    "label": lambda file, place: [f"--ckpt_path={file}", f"--shards={place.shards}", "--out=out"],
}  # fmt: skip


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints(place: Place, refused: Callable[..., str], tmp_path: Path, kind: str):
    file = tmp_path / "bad.ckpt"
    CHECKPOINTS[kind](file, place)
    for name, words in TAKE_CHECKPOINTS.items():
        refused(name.split()[0], *words(file, place))
        assert not Path("out").exists()
    assert not Path("EXECUTED").exists()


@pytest.mark.parametrize(
    ("name", "value", "lacking"),
    [("optimizer_states", None, "optimizer_states"), ("loops", {}, "loops.fit_loop")],
)
def test_a_checkpoint_that_no_run_is_resumed_from(
    place: Place, refused: Callable[..., str], tmp_path: Path, name: str, value: Any, lacking: str
):
    torch.save({**place.saved, name: value}, tmp_path / "bad.ckpt")
    words = TAKE_CHECKPOINTS["fit"](tmp_path / "bad.ckpt", place)
    assert f"lacks {lacking}" in refused("fit", *words)


@pytest.mark.parametrize("word", ["best", "hpc", "registry:model", "last"])
def test_keywords_of_lightning(place: Place, refused: Callable[..., str], word: str):
    said = refused("fit", FIT[0], f"--data.train={place.shards}", f"--ckpt_path={word}")
    assert ("runs/quickstart/fit/checkpoints" if word == "last" else "name a .ckpt file") in said


# ---------------------------------------------------------------------- YAML files

_LAUGHS = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"] + [
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)
]
YAMLS: dict[str, bytes] = {
    "bytes": b"\xff\xfe\x00\x01",
    "another encoding": "caf\xe9: 1".encode("latin-1"),
    "a list": b"- 1\n- 2\n",
    "a number": b"3",
    "not closed": b"a: [1, 2\nb: {",
    "a tab": b"a:\n\t- b",
    "aliases of aliases": "\n".join(_LAUGHS).encode(),
    "an alias to itself": b"a: &a [1, *a]",
    "too deep": b"a: " + b"[" * 5000 + b"]" * 5000,
    "an object of Python": b"a: !!python/object/apply:os.system ['touch EXECUTED']",
    "an unknown key": b"no_such_key: 1",
}
# "quickstart" only passes a file's name on, as "sweep" does to each of its tests.
COMMANDS = [name for name in (*OWN, *LIGHTNING) if name not in ("quickstart", "sweep")]


@pytest.mark.parametrize("kind", YAMLS)
def test_yaml_files(place: Place, refused: Callable[..., str], tmp_path: Path, kind: str):
    (tmp_path / "bad.yaml").write_bytes(YAMLS[kind])
    for command in COMMANDS:
        assert (
            "bad.yaml" in refused(command, "--config=bad.yaml")
            or command == "compare"
            or kind == "an unknown key"
        )
    refused("fit", *FIT, "--model.backbone=bad.yaml")
    sweep = ["--out=out", f"--ckpt_path={place.checkpoint}", *TRIALS]
    assert "bad.yaml" in refused("sweep", "--points=bad.yaml", *sweep)
    assert not Path("out").exists()
    assert not Path("EXECUTED").exists()


# ---------------------------------------------------------------------- folders of shards


def _index(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "index.json").write_text(text)


FOLDERS: dict[str, Callable[[Path], object]] = {
    "not there": lambda path: None,
    "a file": lambda path: path.write_text("x"),
    "empty": lambda path: path.mkdir(),
    **{
        f"an index of {text[:12]!r}": lambda path, text=text: _index(path, text)
        for text in ("", "[]", "[" * 100_000, '{"schema": 99}', '{"schema": 1, "shards": 3}')
    },
}  # fmt: skip
TAKE_SHARDS: dict[str, Callable[[Path, Place], list[object]]] = {
    "fit": lambda path, place: [*FIT, *_data(path)],
    "cache": lambda path, place: [*FIT, *_data(path)],
    "inspect": lambda path, place: [path, "--out=out"],
    "export": lambda path, place: [f"--shards={path}", "--out=out", "--to=lerobot"],
    "label": lambda path, place: [f"--ckpt_path={place.checkpoint}", f"--shards={path}", "--out=out"],
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_folders_of_shards(place: Place, refused: Callable[..., str], tmp_path: Path, kind: str):
    FOLDERS[kind](tmp_path / "bad")
    for command, words in TAKE_SHARDS.items():
        assert "bad" in refused(command, *words(tmp_path / "bad", place))


def test_a_misspelt_view_is_named_with_the_recorded_ones(place: Place, refused: Callable[..., str]):
    said = refused(
        "fit",
        *FIT,
        f"--data.train={place.shards}",
        f"--data.val={place.shards}",
        "--model.clip.views=[front, lefd_shoulder]",
    )
    assert "'lefd_shoulder'" in said
    assert "['front', 'left_shoulder']" in said


# ---------------------------------------------------------------------- places to write to

WRITE: dict[str, Callable[[str, Place], list[object]]] = {
    "collect": lambda out, place: [*SQUARES, f"--out={out}", "--workers=0"],
    "convert": lambda out, place: [*SQUARES, f"--out={out}", "--workers=0"],
    "label": lambda out, place: [
        f"--ckpt_path={place.checkpoint}", f"--shards={place.shards}", f"--out={out}",
    ],
    "inspect": lambda out, place: [place.shards, f"--out={out}"],
    "export": lambda out, place: [f"--shards={place.shards}", f"--out={out}", "--to=lerobot"],
    "export-checkpoint": lambda out, place: [f"--ckpt_path={place.checkpoint}", f"--out={out}"],
    "convert-checkpoint": lambda out, place: [f"--source={place.folder / 'exported'}", f"--out={out}.ckpt"],
    "test": lambda out, place: [*TRIALS, "--trainer.logger=false", f"--data.out={out}", *HOLD],
    "fit": lambda out, place: [
        FIT[0], *place.data, "--data.workers=0", "--trainer.max_steps=1",
        f"--trainer.logger.init_args.save_dir={out}",
    ],
}  # fmt: skip


@pytest.mark.parametrize("command", WRITE)
def test_a_file_stands_where_a_folder_is_to_be_made(
    place: Place, refused: Callable[..., str], tmp_path: Path, command: str
):
    (tmp_path / "file").write_text("x")
    refused(command, *WRITE[command](str(tmp_path / "file" / "out"), place))
    assert (tmp_path / "file").read_text() == "x"


# ---------------------------------------------------------------------- exported backbones


def _change(place: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    save_file(change(load_file(place)), place, {"trained_as": "{}"})


def _first(tensors: dict[str, torch.Tensor], value: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel() > 1)
    return {**tensors, name: value(tensors[name])}


TENSORS: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_bytes(b""),
    "cut in its header": lambda file: file.write_bytes(file.read_bytes()[:20]),
    "cut in its data": lambda file: file.write_bytes(file.read_bytes()[:-9]),
    "text": lambda file: file.write_text("hello, this is a text"),
    "a huge header": lambda file: file.write_bytes(b"\xff" * 64),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "not there": lambda file: file.unlink(),
    "an unknown name": lambda file: _change(file, lambda tensors: {**tensors, "more": torch.zeros(1)}),
    "a name missing": lambda file: _change(file, lambda tensors: dict(list(tensors.items())[1:])),
    "another shape": lambda file: _change(
        file, lambda tensors: _first(tensors, lambda t: t.flatten()[:-1].clone())
    ),
    "not a number": lambda file: _change(file, lambda tensors: _first(tensors, lambda t: t * torch.nan)),
    "infinity": lambda file: _change(file, lambda tensors: _first(tensors, lambda t: t + torch.inf)),
}
JSONS = ["", "[]", "3", "null", "{", "\xff", "[" * 100_000, '{"a": ' * 5000 + "1" + "}" * 5000]
JSONS += ['{"_class_name": 3}', '{"num_layers": "x"}', '{"_class_name": "UNet2DModel"}']


def _broken(place: Place, tmp_path: Path, file: str, damage: Callable[[Path], object]) -> Path:
    """A copy of the exported backbone, damaged; the file that describes it."""
    shutil.copytree(place.folder / "exported", tmp_path / "copy")
    damage(tmp_path / "copy" / "transformer" / file)
    described = yaml.safe_load((tmp_path / "copy" / "backbone.yaml").read_text())
    described["init_args"]["pretrained"] = str(tmp_path / "copy")
    (tmp_path / "copy.yaml").write_text(yaml.safe_dump(described))
    return tmp_path / "copy.yaml"


def _loaded(file: Path) -> str:
    """What a command says that loads this backbone, without the parser of all its other settings."""
    with pytest.raises(SystemExit) as stop, one_sentence("fit"):
        instantiate(str(file), VideoBackbone)
    assert stop.value.code == 1
    return str(stop.value)


@pytest.mark.parametrize("file", ["adapter.safetensors", "diffusion_pytorch_model.safetensors"])
@pytest.mark.parametrize("kind", TENSORS)
def test_tensors(place: Place, tmp_path: Path, kind: str, file: str):
    said = _loaded(_broken(place, tmp_path, file, TENSORS[kind]))
    assert str(tmp_path / "copy") in said
    assert ("NaN or infinity" in said) == (kind in ("not a number", "infinity"))


@pytest.mark.parametrize("text", JSONS, ids=lambda text: text[:12])
def test_config_json(place: Place, tmp_path: Path, text: str):
    damage = lambda file: file.write_bytes(text.encode("latin-1"))  # noqa: E731
    assert str(tmp_path / "copy") in _loaded(_broken(place, tmp_path, "config.json", damage))


def test_a_fit_with_a_broken_backbone(place: Place, refused: Callable[..., str], tmp_path: Path):
    file = _broken(place, tmp_path, "adapter.safetensors", TENSORS["cut in its data"])
    assert "is damaged" in refused("fit", *FIT, *place.data, f"--model.backbone={file}")


# ---------------------------------------------------------------------- numbers, words, results

WORDS = [
    ("fit", ["--model.optimizer.lr=.nan"], "Muon: lr must be finite"),
    ("fit", ["--model.optimizer.lr=-1"], "Muon: lr must be finite and at least 0"),
    ("fit", ["--model.clip.control_hz=.inf"], "control_hz > 0 and finite"),
    ("fit", ["--model.clip.control_hz=.nan"], "control_hz > 0 and finite"),
    ("fit", ["--model.clip.frames=1000000001"], "at most 174762 frames"),
    ("fit", ["--model.clip.size=[-64, 64]"], "size positive"),
    ("fit", ["--model.plans={policy: .nan}"], "policy must be finite"),
    ("fit", ["--model.prompt_dropout=2"], "at most 1"),
    ("fit", ["--data.batch_size=1000000000"], "this machine has"),
    ("fit", ["--model.learning_rat=1"], "Option 'learning_rat' is not accepted"),
    ("fit", ["--model.backbone.architecture={layers: 3}"], "knows no 'layers'"),
    ("fit", ["--model.backbone.architecture={num_layers: x}"], "cannot be used"),
    ("fit", ["--model.backbone.codec.init_args.gian=3"], "'gian' is not accepted"),
    ("fit", ["--trainer.max_stepz=1"], "unrecognized arguments: --trainer.max_stepz"),
    ("fit", ["--trainer.accelerator=tpu"], ""),
    ("fit", ["--trainer.devices=-3"], ""),
    ("fit", ["--seed_everything=-1"], ""),
]


@pytest.mark.parametrize(("command", "words", "message"), WORDS, ids=lambda value: str(value)[:40])
def test_words(place: Place, refused: Callable[..., str], command: str, words: list[str], message: str):
    said = refused(command, *FIT, *place.data, *words)
    assert message in said
    assert "\n" not in said
    assert len(said) < 500


def test_a_test_that_leaves_trials_out(place: Place, refused: Callable[..., str]):
    words = WRITE["test"]("out", place)
    assert "would leave trials out" in refused("test", *words, "--trainer.limit_test_batches=1")


@pytest.mark.parametrize("command", [*OWN, *LIGHTNING])
def test_unknown_options(refused: Callable[..., str], command: str):
    assert f"`ai-wam {command} --help` lists the options" in refused(command, "--no_such_option=1")


RESULTS = ["", "[]", "{}", "\xff", "[" * 100_000, '{"schema": 1}']


@pytest.mark.parametrize("text", RESULTS, ids=lambda text: text[:12])
def test_results(place: Place, refused: Callable[..., str], tmp_path: Path, text: str):
    (tmp_path / "results.json").write_bytes(text.encode("latin-1"))
    refused("compare", "results.json", "results.json")
    refused("export-checkpoint", f"--ckpt_path={place.checkpoint}", "--out=out", "--metrics=results.json")


INDEX = [
    ("index.json", "shards", 3),
    ("index.json", "settings", None),
    ("index.json", "shards", [{"file": 3}]),
    ("shard-000000.json", "episodes", None),
    ("shard-000000.json", "episodes", [{"key": "a", "frames": -1, "hz": 1, "views": {}, "members": {}}]),
    ("shard-000000.json", "file", None),
    ("shard-000000.json", "sha256", None),
]


@pytest.mark.parametrize(("file", "name", "value"), INDEX)
def test_values_of_an_index(
    place: Place, refused: Callable[..., str], tmp_path: Path, file: str, name: str, value: object
):
    shutil.copytree(place.shards, tmp_path / "bad")
    content = json.loads((tmp_path / "bad" / file).read_text())
    (tmp_path / "bad" / file).write_text(json.dumps({**content, name: value}))
    assert str(tmp_path / "bad") in refused("inspect", tmp_path / "bad", "--out=out")


def test_an_unknown_command(refused: Callable[..., str]):
    assert "unknown command" in refused("trian")
