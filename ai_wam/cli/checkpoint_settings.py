"""Settings saved in a checkpoint against those asked for: refused before weights are read or GPUs used."""

import inspect
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning import LightningDataModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from ai_wam.cli.plain_settings import bare
from ai_wam.cli.renamed_settings import check_current
from ai_wam.cli.resuming import named_file
from ai_wam.cli.shipped_configs import instantiate
from ai_wam.errors import InvalidType, InvalidValue
from ai_wam.files.weights import check_weights, read_torch
from ai_wam.types import Clip
from backbones.base import VideoBackbone
from backbones.weights.checkpoint_parts import without_weights
from tasks.base import WorldActionTask
from tasks.training.optimized_task import OptimizedTask

_EARLY = (
    200  # episodes of a folder whose captions are looked at before weights are read; more when fitting starts
)


def check_there(path: str) -> None:
    """Refuse the path of a checkpoint that is no file."""
    if not Path(path).is_file():
        raise InvalidValue(
            f"there is no checkpoint {path!r}; --ckpt_path takes a .ckpt file written by `ai-wam fit`"
        )


def hyperparameters(path: str) -> dict[str, Any]:
    """Class path and arguments of the model of a checkpoint."""
    check_there(path)
    saved = read_torch(path).get("hyper_parameters", {})
    if not isinstance(saved, Mapping) or not isinstance(saved.get("_class_path"), str):
        raise InvalidValue(
            f"{path!r} does not say which model it belongs to; only checkpoints written by "
            "`ai-wam fit` do. In Python, build the task yourself and load the file's state_dict."
        )
    arguments = {name: value for name, value in saved.items() if name not in ("_class_path", "_instantiator")}
    model = {"class_path": saved["_class_path"], "init_args": arguments}
    check_current(path, model, lambda: _accepted(model["class_path"]))
    return model


def trained_backbone(path: str, model: Mapping[str, Any]) -> dict[str, Any]:
    """Class path and arguments of the backbone in a checkpoint's model."""
    backbone = model["init_args"].get("backbone")
    if not isinstance(backbone, dict) or not isinstance(backbone.get("init_args"), dict):
        raise InvalidValue(f"{path!r} holds a {model['class_path']}, which has no backbone to write")
    return backbone


def state_dict(path: str) -> dict[str, Tensor]:
    """The weights of a checkpoint; averaged ones where the run kept some."""
    return check_weights(read_torch(path).get("state_dict"), f"the state_dict of {path!r}")


def named_checkpoint(command: str, asked: Namespace) -> str | None:
    """The checkpoint that a command begins with."""
    weights, checkpoint = asked.get("weights"), named_file(asked)
    if weights is not None and (command != "fit" or checkpoint is not None):
        raise InvalidValue(
            f"weights is {weights!r}, which begins a new run: it is for `ai-wam fit` without "
            "ckpt_path; `--ckpt_path` resumes a run, and is what the other commands take"
        )
    return weights if checkpoint is None else checkpoint


def check_request(command: str, asked: Namespace, saved: Mapping[str, Any] | None) -> None:
    """Refuse requests that the training of a model does not cover.

    Args:
        command: of Lightning's four.
        asked: its settings.
        saved: the checkpoint's model; None without one.
    """
    kind = _class(asked.model.class_path)
    _check_every_trial(command, asked)
    if not issubclass(kind, WorldActionTask):
        if issubclass(kind, OptimizedTask) and saved is None:
            _check_random(command, asked, pretrained=False)
        return
    settings = settings_of(bare(asked.model))
    if saved is None:
        backbone = bare(asked.model.init_args.backbone)
        _check_random(command, asked, pretrained=_pretrained(backbone) is not None)
    elif command == "fit":
        _check_resumed(asked, saved, settings)
    else:
        check_plans(saved, _plans_asked(command, asked, settings))
        _check_guidance(saved, settings)


def check_plans(saved: Mapping[str, Any], asked: Sequence[str]) -> None:
    """Refuse to use a checkpoint by a plan that it was never trained on."""
    trained = trained_plans(settings_of(saved))
    if foreign := [name for name in asked if name not in trained]:
        raise InvalidValue(
            f"the checkpoint was trained on the plans {trained}, not on {foreign[0]!r}, by which it "
            "would be used here. Train it on this one, give another checkpoint (`ai-wam label` needs one of "
            "the plan 'annotation'), or use plans that it knows: to act, leave --model out or set "
            "--model.control_plan; to evaluate, set --model.evaluation.plans or --model.plans"
        )


def trained_plans(settings: Mapping[str, Any]) -> list[str]:
    """Names of the plans that a model of these settings is trained on."""
    return [name for name, share in settings["plans"].items() if share > 0]


def settings_of(model: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a task by name: those given, and the defaults of the others."""
    kind = _class(model["class_path"])
    if not issubclass(kind, WorldActionTask):
        raise InvalidType(f"{model['class_path']} is no world action model; give a checkpoint of one")
    settings = _defaults(model["class_path"]) | model.get("init_args", {})
    control = kind.acts_by or settings["control_plan"]
    return settings | {"plans": settings.get("plans") or kind.default_plans, "control_plan": control}


def _plans_asked(command: str, asked: Namespace, settings: Mapping[str, Any]) -> list[str]:
    if command == "predict" or (command == "test" and _has_trials(asked)):
        return [settings["control_plan"]]
    if command == "test" and settings["evaluation"]["plans"]:
        return list(settings["evaluation"]["plans"])
    return trained_plans(settings)


def _check_every_trial(command: str, asked: Namespace) -> None:
    limit = asked.trainer.get("limit_test_batches")
    every = limit is None or (isinstance(limit, float) and limit == 1)  # the share; the number 1 is one batch
    if command == "test" and _has_trials(asked) and not every:
        raise InvalidValue(
            f"--trainer.limit_test_batches {limit} would leave trials out, and a result needs every trial of "
            "its protocol; to run fewer, lower the protocol's trials_per_task, or name some: --trial ID"
        )


def _has_trials(asked: Namespace) -> bool:
    return "benchmark" in asked.data.get("init_args", {})


def _check_random(command: str, asked: Namespace, pretrained: bool) -> None:
    if command != "fit" and asked.get("ckpt_path") is None and not pretrained:
        raise InvalidValue(
            "there is no --ckpt_path, and the model has no pretrained weights, so "
            "random ones would answer; give a checkpoint written by `ai-wam fit`"
        )


def _pretrained(backbone: Mapping[str, Any]) -> Any:
    return backbone.get("init_args", {}).get("pretrained")


def _check_resumed(asked: Namespace, saved: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """A resumed optimizer needs the parameters it began with."""
    before = settings_of(saved)
    for name in ("action_head", "freeze_backbone"):
        pair = [bool(each.get(name)) for each in (before, settings)]
        if asked.get("ckpt_path") is not None and pair[0] != pair[1]:
            raise InvalidValue(
                f"--ckpt_path resumes a run made with {name} {'on' if pair[0] else 'off'}, and "
                "its optimizer knows no other parameters; to begin a new run from these weights, say "
                f"--weights {asked.ckpt_path} instead"
            )


def _check_guidance(saved: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    guidance = settings["sampling"]["guidance"]
    if guidance != 1 and not settings_of(saved)["prompt_dropout"]:
        raise InvalidValue(
            f"guidance is {guidance}, but the checkpoint was trained with prompt_dropout "
            "0 and has never seen the empty prompt that guidance leads away from; leave "
            "--model.sampling.guidance at 1, or train with prompt_dropout 0.05"
        )


def _class(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidValue(f"there is no class {path!r} to import ({error}); correct its path") from error


def check_fits(arguments: Mapping[str, Any], data: Mapping[str, Any] | None = None) -> None:
    """Refuse a clip, or captions to be trained on, that a pretrained backbone cannot take; reads no weight.

    Args:
        arguments: of a task; others than of backbone and clip do not matter.
        data: class path and arguments of what it is trained on, where the captions are to be looked at.

    Raises:
        ValueError: the clip's frames or size, with what would fit; a caption.
    """
    backbone, clip = arguments.get("backbone"), arguments.get("clip")
    if clip is not None:
        plain: dict[str, Any] = dict(clip)
        for name in plain.keys() & {"size", "views"}:
            plain[name] = tuple(plain[name])
        Clip(**plain)  # refuses absurd values
    if backbone is None or clip is None or not backbone.get("init_args", {}).get("pretrained"):
        return
    with without_weights():
        found = instantiate(backbone, VideoBackbone)  # type: ignore[type-abstract]  # an interface is asked for
    found.spec.latent_frames(clip["frames"])
    found.spec.grid(tuple(clip["size"]))
    if data is not None and hasattr(_class(data["class_path"]), "captions"):
        plain = {**data, "init_args": {**data["init_args"], "verify": False}}
        module: Any = instantiate(plain, LightningDataModule)
        module.setup("fit")
        found.prompts.check(module.captions(_EARLY))


# Where weights lie, their precision, and what a step costs may change, what they compute may not.
_FREE = ("pretrained", "cache_given", "low_guidance")
_FREE_INSIDE = ("pretrained", "dtype", "device", "cache", "decode_chunk")  # of codec, prompts and images


def check_backbone(path: str, saved: dict[str, Any], asked: Namespace) -> None:
    """Refuse weights of another backbone even where all shapes agree."""
    old, new = saved["init_args"].get("backbone"), bare(asked.init_args.get("backbone"))
    if old is None or new is None:
        return
    pairs = {"class_path": (old["class_path"], new["class_path"])}
    # An option that was not there yet when the checkpoint was written has its default.
    ours, theirs = (_defaults(each["class_path"]) | each.get("init_args", {}) for each in (old, new))
    for name in {**ours, **theirs}:
        if name not in _FREE:
            pairs[name] = (_identity(name, ours.get(name)), _identity(name, theirs.get(name)))
    differing = [f"  {name}: checkpoint {a!r}, asked for {b!r}" for name, (a, b) in pairs.items() if a != b]
    if differing:
        raise InvalidValue(
            f"the checkpoint {path!r} holds the weights of another backbone:\n"
            + "\n".join(differing)
            + "\nLeave --model.backbone out to use the checkpoint's own, or give a checkpoint of this one."
        )
    places = [Path(str(each.get("pretrained"))).name for each in (ours, theirs)]
    if places[0] != places[1]:
        print(
            f"ai-wam: the checkpoint {path!r} was trained from {ours.get('pretrained')!r} and takes what it "
            f"does not hold from {theirs.get('pretrained')!r}; both must be copies of one release",
            file=sys.stderr,
        )


def shards_weights(asked: Namespace) -> bool:
    """Whether the strategy shards a model that takes its weights from a released checkpoint alone."""
    strategy = asked.trainer.get("strategy")
    if asked.get("weights") is not None or not isinstance(strategy, Namespace):
        return False
    return issubclass(_class(strategy.class_path), ModelParallelStrategy)


def warn_of_rounding(backbone: VideoBackbone) -> None:
    """Warn that training half-precision weights rounds small steps away."""
    if backbone.weights_dtype != torch.float32 and backbone.lora is None:
        warnings.warn(
            f"all weights are trained in {backbone.weights_dtype}, which rounds small steps away; set the "
            "backbone's training.dtype: float32 (and --trainer.precision bf16-mixed), or train "
            "low-rank adapters",
            stacklevel=2,
        )


def _defaults(class_path: str) -> dict[str, Any]:
    """Default arguments of a class, those of its base classes included."""
    return {
        each.name: _plain(each.default) for each in _parameters(class_path) if each.default is not each.empty
    }


def _accepted(class_path: str) -> set[str]:
    """Names of the arguments of a class, those of its base classes included."""
    return {each.name for each in _parameters(class_path)}


def _parameters(class_path: str) -> Iterator[inspect.Parameter]:
    """Parameters of the constructors of a class and its base classes, base classes first."""
    for kind in reversed(_class(class_path).__mro__):
        yield from inspect.signature(kind.__init__).parameters.values()


def _plain(default: Any) -> Any:
    """A default as a configuration writes it: groups of settings as mappings."""
    return asdict(default) if is_dataclass(default) and not isinstance(default, type) else default


def _identity(name: str, value: Any) -> Any:
    """The part of an argument that must agree: of a noise path its kind, of encoders what they compute."""
    value = bare(value)
    if name == "training":
        return value.get("lora")
    if not isinstance(value, dict) or "class_path" not in value:
        return value
    if name == "path":
        return value["class_path"]
    known = _defaults(value["class_path"]) | (value.get("init_args") or {})
    kept = {key: part for key, part in known.items() if key not in _FREE_INSIDE}
    return {"class_path": value["class_path"], "init_args": kept}
