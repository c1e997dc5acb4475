"""Loading parts of a released checkpoint in diffusers' layout: whole and of the right family, or an error."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from ai_wam.errors import InvalidValue, UserError
from ai_wam.files.json_yaml import read_json
from ai_wam.files.weights import check_finite
from backbones.weights.checkpoint_parts import (
    MissingPart,
    find,
    require,
    together,
    weight_files,
    weights_are_wanted,
    without_weights,
)
from backbones.weights.family_names import family_of

_T = TypeVar("_T")

# What the encoders' classes do without: other classes' heads, and a buffer that old versions wrote.
_UNUSED = re.compile(r"^(decoder|lm_head|visual_projection)\.|\.position_ids$")
_NETWORKS = {"transformer": "unet", "unet": "transformer"}  # where families keep the denoiser


def load_part(
    kind: Any, pretrained: str, subfolder: str, dtype: torch.dtype = torch.float32, **options: Any
) -> Any:
    """One part (transformer, vae, text_encoder, tokenizer) of a local folder or a hub repository.

    Inside `backbones.weights.checkpoint_parts.without_weights` a network of diffusers is only described.

    Args:
        kind: a class with `from_pretrained`.
        pretrained: a local folder in diffusers' layout, or a hub id; the hub client honours HF_HUB_OFFLINE.
        subfolder: name of the part.
        dtype: of the weights; ignored by tokenizers.
        options: passed on.

    Raises:
        FileNotFoundError: the part, or one of its files, is not there; the message says how to fetch it.
        ValueError: another class than asked for, weights of other shapes than the part's configuration says,
            or too few or too many.
    """
    network = isinstance(kind, type) and issubclass(kind, torch.nn.Module)
    if network and _diffusers_class(kind) is not None:
        described = _described(kind, pretrained, subfolder)
        if not weights_are_wanted():
            return described
    require(pretrained, subfolder, network)
    try:
        if not network:
            return kind.from_pretrained(pretrained, subfolder=subfolder, **options)
        name = "dtype" if kind.__module__.startswith("transformers.") else "torch_dtype"
        found, info = kind.from_pretrained(
            pretrained, subfolder=subfolder, output_loading_info=True, use_safetensors=True,
            **{name: dtype}, **options,
        )  # fmt: skip
    except (OSError, SafetensorError, ValueError, TypeError, LookupError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise MissingPart({pretrained: {subfolder: str(error).split("\n")[0].rstrip(".")}}) from error
    unused = _UNUSED if kind.__module__.startswith("transformers.") else None
    unread = [name for name, value in found.named_parameters() if value.is_meta]
    lacking = sorted({*info["missing_keys"], *unread})
    unknown = sorted(name for name in info["unexpected_keys"] if not (unused and unused.search(name)))
    where = f"{subfolder!r} of {pretrained!r}"
    check_complete(lacking, unknown, info.get("mismatched_keys") or [], where)
    for name, value in found.named_parameters():
        check_finite(value, name, where)
    return found


def load_codec(
    kind: Any, pretrained: str | None, architecture: dict[str, Any] | None, dtype: torch.dtype
) -> Any:
    """A released video autoencoder, or a new one of a given size.

    Raises:
        ValueError: neither or both of `pretrained` and `architecture`.
        FileNotFoundError: an incomplete checkpoint.
    """
    one_source(kind, pretrained, architecture)
    if pretrained is not None:
        return load_part(kind, pretrained, "vae", dtype)
    new = built(kind, architecture or {}, "architecture")
    return new if dtype == torch.float32 else new.to(dtype)


def new_denoiser(kind: Any, architecture: Mapping[str, Any] | None, fixed: Mapping[str, int]) -> Any:
    """A denoiser with random weights.

    Args:
        kind: its class in diffusers.
        architecture: constructor arguments.
        fixed: those that follow from codec, prompts and images.

    Raises:
        ValueError: an architecture that contradicts what is fixed.
    """
    asked = architecture or {}
    clash = sorted(key for key in fixed if key in asked and asked[key] != fixed[key])
    if clash:
        raise InvalidValue(
            f"{kind.__name__}: {clash} follow from codec, prompts and images ({dict(fixed)}); leave them out"
        )
    return built(kind, {**asked, **fixed}, "architecture")


def built(kind: Any, arguments: Mapping[str, Any], what: str) -> Any:
    """An object of a library, made with settings of a person.

    Args:
        kind: a class or function of the library.
        arguments: by name.
        what: they are, for the error.

    Raises:
        ValueError: arguments that it does not know or cannot use.
    """
    known = inspect.signature(kind).parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in known.values())
    if not takes_any and (unknown := sorted(arguments.keys() - known.keys())):
        names = ", ".join(map(repr, unknown))
        raise InvalidValue(f"{what}: {kind.__name__} knows no {names}; it has {', '.join(known)}")
    try:
        return kind(**arguments)
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidValue(f"{what}: these values cannot be used ({said})") from error


def survey(
    backbone: Any, codec: Any, prompts: Any, images: Any
) -> tuple[Mapping[str, Any] | None, Any, Any, Any]:
    """A released denoiser's configuration, and a backbone's codec, prompts and images without their weights.

    Whatever is missing or of another family is found here, before anything large is read. A backbone from
    scratch has no configuration to be found.

    Args:
        backbone: whose hooks bring what is not given.
        codec: given part, or None.
        prompts: given part, or None.
        images: given part, or None.

    Raises:
        ValueError: a checkpoint of another family, or weights of other shapes; a part that nothing brings.
        FileNotFoundError: an incomplete checkpoint.
    """
    base = backbone.base_model

    def denoiser() -> tuple[Mapping[str, Any] | None, Any]:
        if base is None:
            return None, images
        described = together(
            *(partial(_described, backbone.Denoiser, backbone.pretrained, name) for name in backbone.folders)
        )
        config, *others = (network.config for network in described)
        for name, other in zip(backbone.folders[1:], others, strict=True):
            _check_sizes(config, other, f"{backbone.folder!r} and {name!r} of {backbone.pretrained!r}")
        return config, backbone.released_images(base, config) if images is None else images

    with without_weights():
        (config, images), codec, prompts = together(
            denoiser,
            lambda: or_released(codec, "codec", base, backbone.released_codec),
            lambda: or_released(prompts, "prompts", base, backbone.released_prompts),
        )
    return config, codec, prompts, images


def one_source(kind: Any, pretrained: str | None, architecture: Mapping[str, Any] | None) -> None:
    """Refuse none or both of `pretrained` and `architecture`."""
    if (pretrained is None) == (architecture is None):
        raise InvalidValue(
            f"{kind.__name__}: give either `pretrained` (released weights) or `architecture` (a new one)"
        )


def or_released(part: _T | None, name: str, pretrained: str | None, load: Callable[[str], _T]) -> _T:
    """A given part of a backbone, or the released model's own.

    Raises:
        ValueError: not given, and there is no released model to take it from.
    """
    if part is not None:
        return part
    if pretrained is None:
        raise InvalidValue(
            f"a backbone from scratch needs its `{name}`; only released weights bring their own"
        )
    return load(pretrained)


def _diffusers_class(kind: Any) -> Any:
    """The class of diffusers that a class is or extends, if it does."""
    return next((base for base in kind.__mro__ if base.__module__.startswith("diffusers.")), None)


def _described(kind: Any, pretrained: str, subfolder: str) -> Any:
    """A network of diffusers on the meta device, after its configuration; the files here are checked."""
    saved = saved_config(kind, pretrained, subfolder)
    require(pretrained, subfolder, weights=True)
    with torch.device("meta"):
        network = built(
            kind.from_config, {"config": saved}, f"config.json of {subfolder!r} in {pretrained!r}"
        )
    _check_shapes(network, pretrained, subfolder)
    return network


def saved_config(kind: Any, pretrained: str, subfolder: str) -> Mapping[str, Any]:
    """A part's config.json, of the right class."""
    wanted = _diffusers_class(kind).__name__
    if (here := find(pretrained, subfolder, "config.json")) is not None:
        read_json(here)  # diffusers' own reader takes any JSON, and fails later
    try:
        saved = kind.load_config(pretrained, subfolder=subfolder)
    except OSError as error:
        elsewhere = _NETWORKS.get(subfolder)
        if elsewhere is None or (other := find(pretrained, elsewhere, "config.json")) is None:
            require(pretrained, subfolder, weights=False)
            raise MissingPart({pretrained: {subfolder: str(error).split("\n")[0].rstrip(".")}}) from error
        saved = read_json(other)
    found = str(saved.get("_class_name", wanted))
    if found in [base.__name__ for base in kind.__mro__]:
        return dict(saved)
    if subfolder not in _NETWORKS:
        raise InvalidValue(
            f"{subfolder!r} of {pretrained!r} is a {found}, this backbone needs a {wanted}; take codec and "
            "denoiser from one release"
        )
    family, ours = family_of(found), family_of(wanted)
    way = "no shipped configuration loads it" if family is None else f"use the configuration of {family}"
    raise InvalidValue(
        f"{pretrained!r} holds a checkpoint of another family ({found}): {way}, or give a checkpoint "
        f"({wanted}) for {ours}"
    )


def _check_sizes(one: Mapping[str, Any], other: Mapping[str, Any], where: str) -> None:
    """Refuse networks of one release that are not of one size."""
    differing = [
        f"{key}: {one.get(key)} and {other.get(key)}"
        for key in sorted({*one, *other})
        if not key.startswith("_") and one.get(key) != other.get(key)
    ]
    if differing:
        raise InvalidValue(f"{where} are not of one size: {'; '.join(differing)}; take both from one release")


def _check_shapes(network: torch.nn.Module, pretrained: str, subfolder: str) -> None:
    """Compare what the files say of their tensors with the configuration."""
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    for file in weight_files(pretrained, subfolder)[0]:
        for name, shape in _shapes(file, pretrained, subfolder).items():
            if wanted.get(name, shape) != shape:
                raise InvalidValue(
                    f"the weights in {subfolder!r} of {pretrained!r} do not fit its own config.json: "
                    f"{name} is {shape}, expected {wanted[name]}; take both from one release"
                )


def _shapes(file: Path, pretrained: str, subfolder: str) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(file, "pt") as content:
            names = content.keys()
            return {name: tuple(content.get_slice(name).get_shape()) for name in names}
    except SafetensorError as error:
        raise MissingPart({pretrained: {subfolder: f"{file.name} is damaged ({error})"}}) from error


def check_complete(
    lacking: Sequence[str], unknown: Sequence[str], mismatched: Sequence[Any], where: str
) -> None:
    """Refuse a network some of whose weights would stay at their initial values.

    Args:
        lacking: names of weights that the files do not hold.
        unknown: names that only the files know.
        mismatched: weights of other shapes.
        where: the files, in words.

    Raises:
        ValueError: anything of these.
    """
    problems = {"lacks": lacking, "holds unknown": unknown, "has other shapes of": mismatched}
    listed = "; ".join(
        f"it {what} {', '.join(map(str, list(names)[:5]))} ({len(names)} in all)"
        for what, names in problems.items()
        if names
    )
    if listed:
        raise InvalidValue(
            f"the weights in {where} are not those of its config.json: {listed}; download it again"
        )
