"""A backbone given by a YAML file replaces the one below it, where jsonargparse would mix the two."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ai_wam.errors import InvalidValue
from ai_wam.files.json_yaml import read_yaml
from backbones.base import VideoBackbone

_FILES = (".yaml", ".yml")
_BACKBONE = ("--model.backbone", "--model.init_args.backbone")


class Blank(VideoBackbone):
    """Stands in the place of a backbone until another is read; it has no arguments, so none survives."""

    def __init__(self) -> None:
        raise TypeError("a blank is replaced before anything is built")


Blank.__abstractmethods__ = frozenset()  # the parser refuses abstract classes


def replacing(words: Sequence[str]) -> list[str]:
    """Command-line words, a blank put before every whole backbone that follows another.

    Arguments of one class are otherwise kept where another of the same name is read: Wan 2.2 would be given
    the tiny twin's codec. Single settings such as `--model.backbone.training.lora.rank=8` change what is
    there.
    """
    found: list[str] = []
    known, rest = False, iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        parts = [word]
        if not equals and option in ("--config", "-c", "--model", *_BACKBONE):
            parts.append(value := next(rest, ""))
        if _is_whole(option, value):
            found += [f"{_BACKBONE[1]}={Blank.__module__}.{Blank.__name__}"] if known else []
            known = True
        found += parts
    return found


def _is_whole(option: str, value: str) -> bool:
    """Whether a word gives a backbone with its class and arguments."""
    if not value.endswith(_FILES):
        return False
    if option in ("--config", "-c"):
        model = _content(Path(value)).get("model")
        if isinstance(model, str) and model.endswith(_FILES):
            model = _content(Path(value).parent / model)
        return _has_backbone(model)
    return option in _BACKBONE or (option == "--model" and _has_backbone(_content(Path(value))))


def _has_backbone(model: Any) -> bool:
    """Whether a model's description names its backbone by a file or by class."""
    backbone = (model.get("init_args") or {}).get("backbone") if isinstance(model, dict) else None
    return isinstance(backbone, str) or (isinstance(backbone, dict) and "class_path" in backbone)


def _content(file: Path) -> dict[str, Any]:
    """A YAML file's mapping; of a file that is none, nothing, since the parser will say what is wrong."""
    try:
        content = read_yaml(file)
    except InvalidValue:
        return {}
    return content if isinstance(content, dict) else {}
