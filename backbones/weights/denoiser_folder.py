"""Folders of trained denoisers: the network in diffusers' format, and our added weights in a second file.

    transformer/ (or unet/)
        config.json, diffusion_pytorch_model*.safetensors    loadable by diffusers alone
        adapter.safetensors                                  what ours adds, how it was trained, from what

Its config.json names the adapter, so that one which was not downloaded is missed.

Codec, prompt and image encoder stay where they were: in the model it was trained from.
"""

import json
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ai_wam.errors import ExistingFile, InvalidValue
from ai_wam.files.json_yaml import read_json
from ai_wam.files.weights import check_weights, naming_damaged_file, read_safetensors
from backbones.weights.checkpoint_parts import MissingPart, find

ADAPTER = "adapter.safetensors"
# Entries of model_index.json that are no networks of the model itself.
_NO_NETWORKS = ("scheduler", "tokenizer", "feature_extractor", "image_processor", "safety_checker")
_NAMED = "_adapter"  # in config.json; diffusers passes over names that begin so


def split_weights(
    denoiser: nn.Module, projection: str, released: Collection[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of the released network by its own names, and the added ones.

    Args:
        denoiser: an adapted network.
        projection: dotted name of its input projection.
        released: names of the weights before it was adapted.
    """
    weights, adapter = {}, {}
    for name, value in denoiser.state_dict().items():
        plain = released_name(name, projection)
        if plain in released:
            weights[plain] = value
        else:
            adapter[name] = value
    return weights, adapter


def released_name(name: str, projection: str) -> str:
    """The name of a weight before its network was adapted, by conditions or by low-rank adapters."""
    if name.startswith(f"{projection}.base."):
        name = projection + name.removeprefix(f"{projection}.base")
    return name.replace(".base_layer.", ".")


def write_denoiser(
    folder: Path,
    kind: Any,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    adapter: Mapping[str, Tensor],
    base_model: str | None,
    trained_as: Mapping[str, Any] | None = None,
    shard: str = "5GB",
) -> None:
    """Write a denoiser as diffusers does, and the adapter beside it.

    Args:
        folder: of the denoiser alone, such as "mine/transformer".
        kind: the class in diffusers.
        config: its constructor arguments; names that begin with "_" are left out.
        weights: all of its weights.
        adapter: what our backbone adds.
        base_model: where codec, prompt and image encoder come from; None for a model from scratch.
        trained_as: `VideoBackbone.trained_as`, where it is known.
        shard: largest size of one file.
    """
    with torch.device("meta"):
        network = kind(**{key: value for key, value in config.items() if not key.startswith("_")})
    network.load_state_dict(dict(weights), strict=True, assign=True)
    network.save_pretrained(folder, max_shard_size=shard)
    tensors = {name: value.detach().contiguous() for name, value in adapter.items()}
    known = {} if base_model is None else {"base_model": base_model}
    if trained_as is not None:
        known["trained_as"] = json.dumps(trained_as)
    save_file(tensors, folder / ADAPTER, known or None)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), _NAMED: ADAPTER}, indent=2))


def adapter_file(pretrained: str, folder: str) -> Path | None:
    """The adapter beside a denoiser in a local folder or a hub repository; None if there is none.

    Raises:
        MissingPart: the denoiser's config.json names one that is not there.
    """
    reason = "there is no such file"
    if Path(pretrained).is_dir():
        file = find(pretrained, folder, ADAPTER)
    else:
        try:
            file = Path(hf_hub_download(pretrained, f"{folder}/{ADAPTER}"))
        except (EntryNotFoundError, RepositoryNotFoundError, HFValidationError) as error:
            file, reason = None, str(error).split("\n")[0].rstrip(".")
    config = find(pretrained, folder, "config.json")
    if file is None and config is not None and _NAMED in read_json(config):
        lacking = f"{folder}/{ADAPTER}, which its config.json names: {reason}"
        raise MissingPart({pretrained: {folder: lacking}})
    return file


def model_index(pretrained: str) -> Mapping[str, Any]:
    """A release's model_index.json, which names its parts; empty where there is none, as in our folders."""
    if Path(pretrained).is_dir():
        file = Path(pretrained) / "model_index.json"
        return dict(json.loads(file.read_text())) if file.is_file() else {}
    try:
        return dict(json.loads(Path(hf_hub_download(pretrained, "model_index.json")).read_text()))
    except (EntryNotFoundError, RepositoryNotFoundError, HFValidationError):
        return {}


def check_parts(pretrained: str, used: Collection[str], backbone: str) -> None:
    """Refuse a release with parts that a backbone would ignore.

    Args:
        pretrained: a local folder or hub id.
        used: names of the parts that the backbone knows.
        backbone: its name.

    Raises:
        ValueError: further networks in its model_index.json.
    """
    parts = {name: part for name, part in model_index(pretrained).items() if isinstance(part, list)}
    known = {*used, *_NO_NETWORKS}
    unused = [
        f"{name} ({part[1]})" for name, part in parts.items() if part[0] is not None and name not in known
    ]
    if unused:
        raise InvalidValue(
            f"{pretrained!r} has parts that {backbone} does not use, so it would not compute what was "
            f"released: {_listed(unused)}; its parts here are {', '.join(sorted(used))}. Use a release "
            "without them, or remove the entries from its model_index.json if it works without"
        )


def base_model(pretrained: str | None, folder: str) -> str | None:
    """Where the other parts of a pretrained denoiser are: in what it was trained from, or beside it."""
    file = None if pretrained is None else adapter_file(pretrained, folder)
    if file is None:
        return pretrained
    return _metadata(file).get("base_model", pretrained)


def trained_as(pretrained: str, folder: str) -> Mapping[str, Any]:
    """Options that `write_denoiser` noted; empty for released networks."""
    file = adapter_file(pretrained, folder)
    return {} if file is None else _trained_as(file)


def check_trained_as(pretrained: str, folder: str, asked: Mapping[str, Any]) -> None:
    """Refuse to use a trained denoiser in another way than it was trained.

    Raises:
        ValueError: options that differ, with the values of both.
    """
    trained = trained_as(pretrained, folder)
    clash = [
        f"{name}: {value!r}, not {asked[name]!r}"
        for name, value in trained.items()
        if name in asked and asked[name] != value
    ]
    if clash:
        raise InvalidValue(
            f"{pretrained!r} was trained with {'; '.join(clash)}. Give the backbone these options, such as "
            "the folder's backbone.yaml has them, or fine-tune from a released checkpoint"
        )


def _trained_as(file: Path) -> dict[str, Any]:
    text = _metadata(file).get("trained_as", "{}")
    try:
        trained = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidValue(f"{file}: its metadata trained_as is no JSON ({error})") from error
    if not isinstance(trained, dict):
        raise InvalidValue(f"{file}: its metadata trained_as is {text[:80]!r}, expected options by name")
    return trained


def _metadata(file: Path) -> Mapping[str, str]:
    with naming_damaged_file(file), safe_open(file, "pt") as content:
        return content.metadata() or {}


def load_adapter(
    pretrained: str, folder: str, denoiser: nn.Module, projection: str, released: Collection[str]
) -> None:
    """Load the added weights that `write_denoiser` wrote, if there are any.

    A module of which the file holds nothing keeps its silent start: a network may be given more than it had.

    Args:
        pretrained: a local folder or hub id.
        folder: of the denoiser in it.
        denoiser: an adapted network.
        projection: dotted name of its input projection.
        released: names of the weights before it was adapted.

    Raises:
        ValueError: weights that the backbone lacks, or has in other shapes, or modules of which only a part
            is there.
    """
    file = adapter_file(pretrained, folder)
    if file is None:
        return
    found, own = read_safetensors(file), split_weights(denoiser, projection, released)[1]
    touched = {name.partition(".")[0] for name in found}
    problems = [f"it holds {name}, which the backbone lacks" for name in sorted(found.keys() - own.keys())]
    for name in sorted(own):
        if name in found and found[name].shape != own[name].shape:
            shapes = (tuple(found[name].shape), tuple(own[name].shape))
            problems.append(f"{name} is {shapes[0]} in it, {shapes[1]} in the backbone")
        elif name in found and not found[name].is_floating_point():
            problems.append(f"{name} holds {found[name].dtype} in it, no weights")
        elif name not in found and name.partition(".")[0] in touched:
            problems.append(f"it lacks {name}")
    if problems:
        raise InvalidValue(
            f"{file} does not fit this backbone: {_listed(problems, '; ')}. Give the backbone the options in "
            "the folder's backbone.yaml (camera_encoders, block_rank, known_observation, prompts ...)"
        )
    denoiser.load_state_dict(check_weights(found, str(file)), strict=False)


def diffusers_class(network: nn.Module) -> Any:
    """The class of diffusers that a network is, or that its own class extends."""
    return next(kind for kind in type(network).__mro__ if kind.__module__.startswith("diffusers."))


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder under a temporary name, which is renamed when all is written and removed if that fails.

    Raises:
        FileExistsError: `out` is already there.
    """
    if out.exists():
        raise ExistingFile(f"{out} is already there and is not overwritten; name another, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes private folders
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary)
        raise


def _listed(words: list[str], separator: str = ", ") -> str:
    more = f" and {len(words) - 5} more" if len(words) > 5 else ""
    return separator.join(words[:5]) + more
