"""`fit`, `validate`, `test` and `predict` through the Lightning CLI.

Settings come in this order, later ones winning: defaults, the checkpoint's hyperparameters, YAML files,
command line. Lightning itself lays the checkpoint over everything else, so that asking for another head or
another number of steps would silently do nothing.
"""

import inspect
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning import Callback, LightningDataModule, LightningModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from ai_wam.cli.configs import instantiate, resolved
from ai_wam.cli.replacing import replacing
from backbones.base import VideoBackbone
from backbones.parts import without_weights
from datamodules.coverage import CoverageReport
from datamodules.images import ImagesDataModule
from datamodules.shards import ShardDataModule
from tasks.base import WorldActionTask
from tasks.writer import ActionWriter, SampleWriter

_FOREIGN = (  # warnings of libraries that a user can do nothing about
    (r".*isinstance\(treespec, LeafSpec\).*", FutureWarning),  # Lightning 2.6 asks torch in an old way
    (r".*callbacks used to create the checkpoint need.*", UserWarning),  # testing needs no EMA or saving
    (r"Found \d+ module\(s\) in eval mode.*", UserWarning),  # codec and prompt encoder are frozen on purpose
    (r"Mismatch dtype between input and weight.*", UserWarning),  # norms stay float32 under autocast
    (r".*does not have many workers.*", UserWarning),  # trials are no data to load; training sets its workers
)
_SETTINGS: dict[str, Any] = {
    "model_class": LightningModule,
    "datamodule_class": LightningDataModule,
    "subclass_mode_model": True,
    "subclass_mode_data": True,
    "save_config_kwargs": {"overwrite": True},
    "parser_kwargs": {"prog": "ai-wam"},
}
_KEYWORDS = ("best", "last", "hpc")  # what Lightning takes instead of a path


class _CLI(LightningCLI):
    """The Lightning CLI with the project's precedence, and one clip for model and data."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Data and benchmarks follow the model's clip."""
        parser.link_arguments("model.init_args.clip", "data.init_args.clip")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Insert the checkpoint's hyperparameters before every other setting."""
        words = sys.argv[1:]
        checkpoint = _option(words, "--ckpt_path")
        model = self._parse_over(parser, args, checkpoint)
        asked = self.config[words[0]]
        # It may be named in a YAML file, or in a spelling not looked for above.
        if asked.get("ckpt_path") != checkpoint:
            checkpoint = asked.ckpt_path
            model = self._parse_over(parser, args, checkpoint)
        self._saved = model
        if model is not None:
            _check_backbone(str(checkpoint), model, self.config[words[0]].model)

    def _parse_over(
        self, parser: LightningArgumentParser, args: ArgsType, checkpoint: str | None
    ) -> dict[str, Any] | None:
        """Parse the command line on top of a checkpoint's model, which is returned; None without a file."""
        words, model = sys.argv[1:], None
        with tempfile.TemporaryDirectory() as folder:
            first: list[str] = []
            if checkpoint not in (None, *_KEYWORDS) and not str(checkpoint).startswith("registry"):
                model, file = hyperparameters(str(checkpoint)), Path(folder) / "checkpoint.yaml"
                file.write_text(yaml.safe_dump({"model": model}))
                first = ["--config", str(file)]
            sys.argv[1:] = replacing([words[0], *first, *words[1:]])
            try:
                super().parse_arguments(parser, args)
            finally:
                sys.argv[1:] = words
        return model

    def instantiate_classes(self) -> None:
        """Refuse a clip that the backbone cannot take before its weights are read."""
        check_clip(_bare(self.config[self.config.subcommand].model.get("init_args", Namespace())))
        super().instantiate_classes()

    def after_instantiate_classes(self) -> None:
        """Keep the model's configuration in every checkpoint, in plain values that rebuild the model."""
        asked = self.config[self.config.subcommand].model
        arguments = _bare(asked.get("init_args", Namespace()))
        known = {"_class_path": asked.class_path, "_instantiator": "lightning.pytorch.cli.instantiate_module"}
        self.model.save_hyperparameters({**known, **arguments}, logger=False)

    def before_fit(self) -> None:
        """Say of every epoch what it saw of the recordings."""
        if isinstance(self.model, WorldActionTask):
            _warn_of_rounding(self.model.backbone)
        if isinstance(self.datamodule, ShardDataModule):
            self.trainer.callbacks.insert(0, CoverageReport())  # type: ignore[attr-defined]  # set in its constructor

    def before_predict(self) -> None:
        """Predictions go to files, batch by batch; a person's own input gets a folder per sample."""
        if self._saved is not None and isinstance(self.model, WorldActionTask):
            _check_plan(self._saved, self.model.control_plan.name)
        folder = Path(self.trainer.default_root_dir) / "predictions"
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]  # set in its constructor
        callbacks.append(ActionWriter(folder))
        if isinstance(self.datamodule, ImagesDataModule):
            callbacks.append(SampleWriter(folder))

    def _parse_ckpt_path(self) -> None:
        """Lightning would lay the checkpoint's hyperparameters over YAML and command line here."""


class _Settings(_CLI):
    """The settings of `ai-wam fit` alone: nothing is built, nothing is run."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """As Lightning does."""
        LightningCLI.parse_arguments(self, parser, args)

    def instantiate_classes(self) -> None:
        """Nothing is built."""

    def after_instantiate_classes(self) -> None:
        """Nothing was built."""


def settings_of_fit(words: Sequence[str]) -> dict[str, Any]:
    """What `ai-wam fit` with these words would build: trainer, model and data as plain values."""
    sys.argv[1:] = replacing(resolved(words))
    cli = _Settings(run=False, **_SETTINGS)
    return dict(_bare(cli.config))


def run(words: Sequence[str]) -> LightningCLI:
    """Run one of Lightning's commands; `words` begin with its name."""
    torch.set_float32_matmul_precision("high")
    for message, category in _FOREIGN:
        warnings.filterwarnings("ignore", message=message, category=category)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "💡" not in record.getMessage()
    )
    # Lightning warns if arguments reach it by another way than the command line.
    sys.argv[1:] = resolved(_with_trials(words))
    return _CLI(**_SETTINGS)


def _with_trials(words: Sequence[str]) -> list[str]:
    """`--trial ID`, given once or several times, is short for `--data.trials=["ID", ...]`."""
    kept, ids, rest = [], [], iter(words)
    for word in rest:
        if word == "--trial":
            ids.append(next(rest, ""))
        elif word.startswith("--trial="):
            ids.append(word.partition("=")[2])
        else:
            kept.append(word)
    return [*kept, f"--data.trials={json.dumps(ids)}"] if ids else kept


def _option(words: Sequence[str], name: str) -> str | None:
    """Value of a command-line option in either spelling, or None."""
    for index, word in enumerate(words):
        if word == name and index + 1 < len(words):
            return words[index + 1]
        if word.startswith(name + "="):
            return word.partition("=")[2]
    return None


def hyperparameters(path: str) -> dict[str, Any]:
    """Class path and arguments of the model a checkpoint was made by."""
    if not Path(path).is_file():
        raise SystemExit(
            f"ai-wam: there is no checkpoint {path!r}; --ckpt_path takes a .ckpt file written by `ai-wam fit`"
        )
    # Tensors are mapped, not read: only the hyperparameters are wanted here.
    saved = torch.load(path, weights_only=True, map_location="cpu", mmap=True).get("hyper_parameters", {})
    arguments = {name: value for name, value in saved.items() if name not in ("_class_path", "_instantiator")}
    if "_class_path" not in saved:
        raise SystemExit(
            f"ai-wam: {path!r} does not say which model it belongs to; only checkpoints written by "
            "`ai-wam fit` do. In Python, build the task yourself and load the file's state_dict."
        )
    return {"class_path": saved["_class_path"], "init_args": arguments}


def check_clip(arguments: Mapping[str, Any]) -> None:
    """Refuse frames or pictures that do not fit a pretrained backbone; no weight is read.

    Args:
        arguments: of a task; others than of backbone and clip do not matter.

    Raises:
        ValueError: the clip's frames or size, with what would fit.
    """
    backbone, clip = arguments.get("backbone"), arguments.get("clip")
    if backbone is None or clip is None or not backbone.get("init_args", {}).get("pretrained"):
        return
    with without_weights():
        spec = instantiate(backbone, VideoBackbone).spec  # type: ignore[type-abstract]  # an interface is asked for
    spec.latent_frames(clip["frames"])
    spec.grid(tuple(clip["size"]))


# Where weights lie, their precision, and what a step costs may change, what they compute may not.
_FREE = ("pretrained", "dtype", "gradient_checkpointing", "compile_blocks", "cache_given")
_FREE_INSIDE = ("pretrained", "dtype", "device", "cache", "decode_chunk")  # of codec, prompts and images


def _check_backbone(path: str, saved: dict[str, Any], asked: Namespace) -> None:
    """Refuse weights of another backbone even where all shapes agree."""
    old, new = saved["init_args"].get("backbone"), _bare(asked.init_args.get("backbone"))
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
        raise SystemExit(
            f"ai-wam: the checkpoint {path!r} holds the weights of another backbone:\n"
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


def _defaults(class_path: str) -> dict[str, Any]:
    """Default arguments of a class, those of its base classes included."""
    module, _, name = class_path.rpartition(".")
    found: dict[str, Any] = {}
    for kind in reversed(getattr(import_module(module), name).__mro__):
        parameters = inspect.signature(kind.__init__).parameters.values()
        found |= {each.name: each.default for each in parameters if each.default is not each.empty}
    return found


def _warn_of_rounding(backbone: VideoBackbone) -> None:
    if backbone.weights_dtype != torch.float32 and backbone.lora is None:
        warnings.warn(
            f"all weights are trained in {backbone.weights_dtype}, which rounds small steps away; set the "
            "backbone's dtype: float32 (and --trainer.precision bf16-mixed), or train low-rank adapters",
            stacklevel=2,
        )


def _check_plan(saved: dict[str, Any], asked: str) -> None:
    """Refuse to predict by a plan that the checkpoint was never trained on."""
    module, _, name = saved["class_path"].rpartition(".")
    plans = saved["init_args"].get("plans") or getattr(import_module(module), name).default_plans
    trained = [name for name, share in plans.items() if share > 0]
    if asked not in trained:
        raise SystemExit(
            f"ai-wam: the checkpoint was trained on the plans {trained}, not on {asked!r}, by which this "
            "model would act. Leave --model out to use the checkpoint's own, set --model.control_plan to a "
            "plan it knows, or train it on this one."
        )


def _identity(name: str, value: Any) -> Any:
    """What of an argument must agree: of a noise path its kind, of parts all but where and how they run."""
    value = _bare(value)
    if not isinstance(value, dict) or "class_path" not in value:
        return value
    if name == "path":
        return value["class_path"]
    known = _defaults(value["class_path"]) | (value.get("init_args") or {})
    kept = {key: part for key, part in known.items() if key not in _FREE_INSIDE}
    return {"class_path": value["class_path"], "init_args": kept}


def _bare(value: Any) -> Any:
    """Namespaces and tuples as YAML would write them, without the parser's notes of where a part was read."""
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, dict):
        return {key: _bare(part) for key, part in value.items() if not key.startswith("__")}
    return [_bare(part) for part in value] if isinstance(value, list | tuple) else value
