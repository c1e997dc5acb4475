"""The checkpoint from which a run is resumed, and whether it can be."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from ai_wam.cli.run_folder import saved_folders
from ai_wam.errors import InvalidValue
from ai_wam.files.weights import read_torch, tensors_by_name

_KINDS: dict[str, type] = {  # what Lightning reads of a checkpoint
    "state_dict": Mapping,
    "loops": Mapping,
    "epoch": int,
    "global_step": int,
    "callbacks": Mapping,
    "optimizer_states": list,
    "lr_schedulers": list,
}
_READ = {"fit": tuple(_KINDS)}  # by command; the others read less
_WHY = {  # Lightning's keywords that name no file
    "best": "is known only inside the process that trained",
    "hpc": "stands for what Lightning's own requeueing on SLURM saved",
    "registry": "stands for a model of a registry that is not part of this project",
}


def named_file(asked: Namespace) -> str | None:
    """The checkpoint that a command names; `last` is looked up where its logger and callbacks save.

    Args:
        asked: settings of the command.

    Raises:
        ValueError: `last` where nothing was saved, another keyword of Lightning's.
    """
    path = asked.get("ckpt_path")
    if path is None or Path(path).is_file():
        return path
    word = str(path).partition(":")[0]
    if word in _WHY:
        raise InvalidValue(
            f"--ckpt_path {path} {_WHY[word]}; name a .ckpt file of the folder `checkpoints` of a run"
        )
    return _last(asked) if path == "last" else path


def check_resumable(command: str, path: str) -> None:
    """Refuse a file without the entries that Lightning reads.

    Raises:
        ValueError: with the names of what it lacks.
    """
    saved, wanted = read_torch(path), _READ.get(command, ("state_dict",))
    lacking = [name for name in wanted if not isinstance(saved.get(name), _KINDS[name])]
    if saved.get("loops") is not None and not isinstance(_loop(saved["loops"], command), Mapping):
        lacking.append(f"loops.{command}_loop")
    if lacking:
        raise InvalidValue(
            f"{path!r} lacks {', '.join(lacking)}; give a checkpoint as `ai-wam fit` wrote it"
            + ("; its weights alone begin a new run: --weights" if command == "fit" else "")
        )
    tensors_by_name(saved["state_dict"], f"the state_dict of {path!r}")


def _loop(loops: Any, command: str) -> Any:
    return loops.get(f"{command}_loop") if isinstance(loops, Mapping) else None


def _last(asked: Namespace) -> str:
    folders = saved_folders(asked.trainer.as_dict())
    found = [file for folder in folders for file in folder.glob("last*.ckpt")]
    if not found:
        raise InvalidValue(
            f"--ckpt_path last: there is no last*.ckpt in {', '.join(map(str, folders))}; name the file, or "
            "leave --ckpt_path out to begin a new run"
        )
    return str(max(found, key=lambda file: file.stat().st_mtime))
