"""The parts of a released checkpoint: found, or one error for all that are missing."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from huggingface_hub import constants, try_to_load_from_cache

from ai_wam.errors import InvalidValue, MissingFile
from ai_wam.files.json_yaml import read_json

_DRY: ContextVar[bool] = ContextVar("without_weights", default=False)
_STEMS = ("diffusion_pytorch_model", "model")  # of weight files: diffusers' and transformers'


class MissingPart(MissingFile):
    """Parts of a released checkpoint that are not there.

    Args:
        places: by local folder or hub id, each missing part with the reason.
    """

    def __init__(self, places: Mapping[str, Mapping[str, str]]) -> None:
        self.places = places
        super().__init__(" ".join(_missing_sentence(place, parts) for place, parts in places.items()))

    def __reduce__(self) -> tuple[type["MissingPart"], tuple[Any]]:
        """As a worker process sends it."""
        return type(self), (self.places,)


@contextmanager
def without_weights() -> Iterator[None]:
    """Context in which released networks are built on the meta device: all is checked, no weight is read."""
    token = _DRY.set(True)
    try:
        yield
    finally:
        _DRY.reset(token)


def weights_are_wanted() -> bool:
    """False inside `without_weights`."""
    return not _DRY.get()


def together(*loads: Callable[[], Any]) -> list[Any]:
    """Results of all calls.

    Raises:
        MissingPart: everything that any of them missed.
    """
    found, places = [], dict[str, dict[str, str]]()
    for load in loads:
        try:
            found.append(load())
        except MissingPart as error:
            for place, parts in error.places.items():
                places.setdefault(place, {}).update(parts)
    if places:
        raise MissingPart(places)
    return found


def require(pretrained: str, subfolder: str, weights: bool, file: str | None = None) -> None:
    """Raise where a part is known not to be there; what a hub may still deliver is not known.

    Args:
        pretrained: a local folder or hub id.
        subfolder: name of the part.
        weights: whether it must have weights.
        file: another file that it must have.

    Raises:
        MissingPart: the part, or one of its files, is not there.
    """
    local = Path(pretrained).is_dir()
    if not local and _looks_like_a_path(pretrained):
        raise MissingPart({pretrained: {subfolder: "there is no such folder"}})
    if local and not (Path(pretrained) / subfolder).is_dir():
        raise MissingPart({pretrained: {subfolder: f"there is no folder {subfolder!r} in it"}})
    if not local and not constants.HF_HUB_OFFLINE:
        return
    lacking = [] if file is None or find(pretrained, subfolder, file) else [file]
    if weights:
        lacking += weight_files(pretrained, subfolder)[1]
    if lacking:
        raise MissingPart({pretrained: {subfolder: f"{subfolder!r} lacks {', '.join(lacking)}"}})


def weight_files(pretrained: str, subfolder: str) -> tuple[list[Path], list[str]]:
    """The safetensors files of a part that are on this machine, and the names of those that are not."""
    for stem in _STEMS:
        if (single := find(pretrained, subfolder, f"{stem}.safetensors")) is not None:
            return [single], []
        if (index := find(pretrained, subfolder, f"{stem}.safetensors.index.json")) is not None:
            names = _weight_files_of(index)
            files = {name: find(pretrained, subfolder, name) for name in names}
            there = [file for file in files.values() if file is not None]
            return there, [name for name, file in files.items() if file is None]
    return [], ["its weights (*.safetensors)"]


def _weight_files_of(index: Path) -> list[str]:
    weights = read_json(index).get("weight_map")
    if not isinstance(weights, dict) or not all(isinstance(file, str) for file in weights.values()):
        raise InvalidValue(f"{index} has no weight_map of files by tensor; download it again")
    return sorted(set(weights.values()))


def find(pretrained: str, subfolder: str, file: str) -> Path | None:
    """A file of a part, if it is on this machine."""
    if Path(pretrained).is_dir():
        path = Path(pretrained) / subfolder / file
        return path if path.is_file() else None
    if _looks_like_a_path(pretrained):
        return None
    found = try_to_load_from_cache(pretrained, f"{subfolder}/{file}")
    return Path(found) if isinstance(found, str) else None


def _looks_like_a_path(pretrained: str) -> bool:
    return pretrained.startswith(("/", ".", "~")) or pretrained.count("/") > 1 or "\\" in pretrained


def _missing_sentence(place: str, parts: Mapping[str, str]) -> str:
    """One sentence: what is missing, and how to get it."""
    names = ", ".join(repr(part) for part in parts)
    problem = (
        f"cannot load {names} of the pretrained model {place!r}: {'; '.join(dict.fromkeys(parts.values()))}."
    )
    wanted = " ".join([*(f"--include '{part}/*'" for part in parts), "--include model_index.json"])
    if Path(place).is_dir():
        again = f"hf download HUB_ID --local-dir {place} {wanted}"
        return f"{problem} Download it again: {again}; or pass the hub id."
    if _looks_like_a_path(place):
        return (
            f"{problem} `pretrained` takes an existing folder in diffusers' layout, or a hub id of the form "
            "owner/name; correct the path."
        )
    return f"{problem} Fetch it with: hf download {place} {wanted} (or pass a local folder as `pretrained`)."
