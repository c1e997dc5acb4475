"""Every command of the documentation, run at a tiny size in the order of the pages.

What differs from the page: steps, trials, episodes and the accelerator. Commands that are not run are listed
with the reason; a new command on a page is run, or fails here.
"""

import json
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from documented import ADD_BACKBONE, PAGES, files
from PIL import Image
from plain_recordings import write_plain

from ai_wam.cameras import Cameras
from ai_wam.cli import main
from benchmarks.speed.moving_squares import MovingSquares
from benchmarks.speed.recipes import write_release
from datamodules.shards.convert_source import write_shards
from datamodules.shards.reader import ShardSet

pytestmark = pytest.mark.slow

METAWORLD = find_spec("metaworld") is not None
NOT_RUN = {  # by the beginning of the command
    "pip install": ".ci/run installs, and runs the tests",
    "ai-wam demo": "tests/unit/test_packed_policy.py",
    "ai-wam quickstart": "tests/unit/test_quickstart.py",
    "ai-wam convert-checkpoint": "needs the released file; tests/unit/test_released_checkpoint.py makes one",
    "ai-wam convert --config configs/convert/<name>.yaml": "tests/contract/test_sources.py runs each file",
    "ai-wam view": "needs the extra view, and opens a window; tests/unit/test_view.py",
    "ai-wam completion": "tests/unit/test_completion.py runs the script in bash",
    "ai-wam fit ... --trainer.logger": "needs wandb; tests/integration/test_loggers.py",
    "ai-wam serve": "runs until it is stopped; tests/integration/test_serve.py",
    "ai-wam test --model tasks.fixed_policy.FixedPolicy --model.policy benchmarks.remote_policy": "the same",
    "python -m benchmarks.speed.serve": "many minutes; tests/unit/test_speed_serve.py runs its parts",
    "python -m benchmarks.speed.latency": "minutes; tests/unit/test_speed_latency.py runs its parts",
    "ai-wam rlbench-doctor": "needs CoppeliaSim; tests/integration/test_rlbench_cli.py",
    "python -m benchmarks.transfer": "hours; tests/unit/test_transfer.py runs its parts",
}
PROTOCOL = "--data.benchmark.init_args.protocol"
FIT = "--trainer.max_steps=2 --trainer.val_check_interval=2 --trainer.limit_val_batches=1"
TRIAL = f"{PROTOCOL}.trials_per_task=1 --data.videos=0 --trainer.accelerator=cpu"
INIT = "--model.backbone.init_args"
RELEASE = f"{INIT}.pretrained=wan {INIT}.prompts.init_args.pretrained=wan"
LORA = f"{RELEASE} --model.clip.frames=5 --model.clip.size=[32,32] --data.workers=1"
DOUBLE = f"['{Path(__file__).parents[1] / 'doubles' / 'rlbench_double'}']"  # of RLBench's names
RLBENCH = f'--data.benchmark.init_args.simulator.init_args.paths="{DOUBLE}" {PROTOCOL}.max_seconds=1'
TINY = {  # what is added, by the beginning of the command
    "cache --config configs/recipes/lora": f"{LORA} --data.batch_size=2",
    "collect --config configs/collect/rlbench": f'--source.init_args.simulator.init_args.paths="{DOUBLE}"',
    "test --ckpt_path runs/quickstart/rlbench": RLBENCH,
    "collect --config configs/collect/metaworld": "--source.init_args.tasks=[reach]",
    "collect": "--source.init_args.episodes_per_task=2 --workers=0",
    "fit --config configs/recipes/lora": (
        f"{LORA} --model.sampling.steps=1 --model.lr_scheduler.steps=4 "
        "--trainer.callbacks.every_n_train_steps=2"
    ),
    "fit": f"{FIT} --data.batch_size=2 --model.lr_scheduler.warmup_steps=1 --trainer.accelerator=cpu",
    "test --ckpt_path runs/metaworld": f"{PROTOCOL}.tasks=[reach]",
    "sweep --ckpt_path runs/metaworld": f"{PROTOCOL}.tasks=[reach]",
    "test": TRIAL,
    "sweep": f"--points=configs/sweep/demo.yaml {TRIAL}",
}
UNTRAINED = {"ai-wam predict": "no action of input is valid"}  # how commands end with such a model
RECORDED = "runs/quickstart/data"
BENCHMARK = "configs/benchmark/reach_target.yaml"


def commands(page: Path) -> Iterator[str]:
    """Commands in a page's indented blocks, each as one line; comments and optional words are left out."""
    text = "\n".join(line[4:] for line in page.read_text().splitlines() if line.startswith("    "))
    for line in text.replace("\\\n", " ").splitlines():
        for part in line.split(" && "):
            command = re.sub(r" \[--[^]]*\]", "", part.partition("  #")[0])
            if re.match(r"(ai-wam|python -m|pip) ", command):
                yield " ".join(command.split())


CASES = [(page, command) for page in PAGES for command in commands(page)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what readers have before they follow a page: recordings, pictures and trained models."""
    folder = tmp_path_factory.mktemp("docs")
    write_shards(MovingSquares(2, 30), folder / "recordings", 2, workers=0, progress=False)
    (folder / "points.csv").write_text(f"key,view,frame,x,y\n{marked(folder / 'recordings')}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for split in ("train", "val"):
            words = f"collect --config configs/collect/reach_target.yaml --source.init_args.split {split}"
            ai_wam(patch, f"{words} --out {RECORDED}/{split} {TINY['collect']}")
            write_plain(ShardSet(f"{RECORDED}/{split}"), folder / "my_recordings" / split)
        (folder / "seen.csv").write_text(f"key,view,frame,x,y\n{marked(folder / RECORDED / 'train')}\n")
        picture(folder)
        write_release(folder / "wan", tiny=True)
        for name, text in files(ADD_BACKBONE):
            (folder / name).write_text(text)
        patch.syspath_prepend(folder)
        for name, checkpoint in (("quickstart", "last"), ("quickstart_joint", "joint")):
            ai_wam(patch, f"fit --config configs/{name}.yaml {TINY['fit']}")
            shutil.copy(f"runs/{name}/fit/checkpoints/last.ckpt", f"{checkpoint}.ckpt")
        shutil.move("runs/quickstart/fit", "runs/quickstart/quickstart-seed0/fit")
        for name in ("a", "b"):
            ai_wam(patch, f"test --ckpt_path last.ckpt --data {BENCHMARK} --data.out {name} {TINY['test']}")
        for name in ("one", "other"):
            words = f"sweep --ckpt_path last.ckpt --data {BENCHMARK} --out {name} {TINY['sweep']}"
            ai_wam(patch, f"{words} --points configs/sweep/demo.yaml")
        yield folder


def marked(recordings: Path) -> str:
    """A row of points.csv: where the tool is seen in one frame."""
    shards = ShardSet(str(recordings))
    view = next(iter(shards.episodes[0].views))
    (camera, action), size = first_frame(shards, view), shards.episodes[0].views[view]
    point = torch.from_numpy(action[:3])[None]
    x, y = camera.project(point, size).pixels[0].tolist()
    return f"{shards.episodes[0].key},{view},0,{x},{y}"


def first_frame(shards: ShardSet, view: str) -> tuple[Cameras, np.ndarray]:
    header = shards.header(0)
    matrices = (torch.from_numpy(m[view][0]) for m in (header.intrinsics, header.world_from_camera))
    return Cameras(*matrices), header.actions[0]


def picture(folder: Path) -> None:
    """The pictures and the camera file of docs/predict.md."""
    shards, cameras = ShardSet(str(folder / RECORDED / "val")), {}
    for view, name in (("front", "front"), ("left_shoulder", "left")):
        Image.fromarray(shards.images(0, view, [0])[0]).save(folder / f"{name}.png")
        camera, _ = first_frame(shards, view)
        k, pose = camera.intrinsics.tolist(), camera.world_from_camera.tolist()
        cameras[view] = {"K": k, "size": shards.episodes[0].views[view], "camera_to_world": pose}
    (folder / "cameras.json").write_text(json.dumps(cameras))


def ai_wam(patch: pytest.MonkeyPatch, words: str) -> None:
    patch.setattr(sys, "argv", ["ai-wam", *shlex.split(words)])
    main()


def version() -> str:
    """A folder of its own for a training."""
    count = sum(1 for _ in Path("runs/quickstart").iterdir())
    return f"--trainer.logger.init_args.version run{count}"


def reason(command: str) -> str | None:
    """Why a command is not run here, if it is not."""
    if "metaworld" in command and not METAWORLD:
        return "needs the extra metaworld"
    return next((why for beginning, why in NOT_RUN.items() if command.startswith(beginning)), None)


def tiny(words: str) -> str:
    """What is added to a command so that it takes seconds."""
    if "configs/data/shards.yaml" in words:  # a test on recorded clips, not on trials
        return "--trainer.limit_test_batches=1 --trainer.accelerator=cpu"
    resumed = ["--trainer.max_steps=4"] if words.startswith("fit") and "--ckpt_path" in words else []
    return " ".join([*(more for beginning, more in TINY.items() if words.startswith(beginning)), *resumed])


# configs/quickstart_head.yaml trains a head on weights that have none
@pytest.mark.filterwarnings("ignore:the weights hold no action head:UserWarning")
@pytest.mark.parametrize(
    "command", [c for _, c in CASES], ids=[f"{p.stem}-{i}" for i, (p, _) in enumerate(CASES)]
)
def test_a_command_of_the_documentation_runs(place: Path, command: str, monkeypatch: pytest.MonkeyPatch):
    if (why := reason(command)) is not None:
        pytest.skip(why)
    monkeypatch.chdir(place)
    if command.startswith("python -m "):
        program = shlex.split(command.removeprefix("python -m "))
        monkeypatch.setattr(sys, "argv", program)
        runpy.run_module(program[0], run_name="__main__")
        return
    words = command.removeprefix("ai-wam ").replace(
        "fit ...", f"fit --config configs/quickstart.yaml {version()}"
    )
    end = next((text for beginning, text in UNTRAINED.items() if command.startswith(beginning)), None)
    with nullcontext() if end is None else pytest.raises(SystemExit, match=end):
        ai_wam(monkeypatch, f"{words} {tiny(words)}")


def test_every_reason_belongs_to_a_command():
    assert [b for b in NOT_RUN if not any(command.startswith(b) for _, command in CASES)] == []
