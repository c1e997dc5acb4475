"""`fit`, `validate`, `test` and `predict` through the Lightning CLI.

Settings come in this order, later ones winning: defaults, the checkpoint's hyperparameters, YAML files,
command line. Lightning itself lays the checkpoint over everything else, so that asking for another head or
another number of steps would silently do nothing.
"""

import json
import logging
import re
import sys
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace, capture_parser
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from ai_wam.cli import LIGHTNING, checkpoint_settings
from ai_wam.cli.backbone_override import replacing
from ai_wam.cli.checkpoint_io import AtomicCheckpointIO
from ai_wam.cli.checkpoint_settings import hyperparameters
from ai_wam.cli.graceful_stop import SavesWhenStopped, stopping
from ai_wam.cli.parsing import InOneSentence
from ai_wam.cli.plain_settings import bare
from ai_wam.cli.resuming import check_resumable
from ai_wam.cli.run_folder import RunFolder, check_free, planned_folder
from ai_wam.cli.shipped_configs import resolved
from ai_wam.errors import InvalidValue, MissingPackage
from ai_wam.utils.step_progress import show_steps
from backbones.weights.sharded_loading import deferred_weights
from datamodules.checks.epoch_coverage import CoverageReport
from datamodules.image_datamodule import ImagesDataModule
from datamodules.shard_datamodule import ShardDataModule
from tasks.base import WorldActionTask
from tasks.evaluation.prediction_writer import ActionWriter, SampleWriter

_FOREIGN = (  # warnings of libraries that a user can do nothing about
    (r".*isinstance\(treespec, LeafSpec\).*", FutureWarning),  # Lightning 2.6 asks torch in an old way
    (r".*callbacks used to create the checkpoint need.*", UserWarning),  # testing needs no EMA or saving
    (r"Found \d+ module\(s\) in eval mode.*", UserWarning),  # codec and prompt encoder are frozen on purpose
    (r"Precision bf16-mixed is not supported by the model summary.*", UserWarning),  # of its megabytes
    (
        r"Checkpoint directory .* exists and is not empty.*",
        UserWarning,
    ),  # then the run is resumed, or refused
    (r"Mismatch dtype between input and weight.*", UserWarning),  # norms stay float32 under autocast
    (r".*does not have many workers.*", UserWarning),  # trials are no data to load; training sets its workers
)


class _Parser(InOneSentence, LightningArgumentParser):
    """Parser of Lightning's four commands."""


_SETTINGS: dict[str, Any] = {
    "model_class": LightningModule,
    "datamodule_class": LightningDataModule,
    "subclass_mode_model": True,
    "subclass_mode_data": True,
    "save_config_callback": RunFolder,
    "save_config_kwargs": {"overwrite": True},
    "parser_class": _Parser,
    "parser_kwargs": {"prog": "ai-wam"},
}
_TITLES = {  # of groups of options, by how Lightning's begin
    "A DataModule": "Data",
    "(<class": "Schedule of the learning rate",
    "Runs the full": "Checkpoint",
    "Perform one": "Checkpoint",
    "Run inference": "Checkpoint",
}
_REQUIREMENT = re.compile(r"class_path '([\w.]+)':\s+Requirement '([^']+)' not met")  # Lightning's words
_KEYWORDS = ("best", "last", "hpc")  # what Lightning takes instead of a path


class _CLI(LightningCLI):
    """The Lightning CLI with the project's precedence, and one clip for model and data."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The command that runs alone: building the parsers of the others takes a third of a second."""
        known = LightningCLI.subcommands()
        return {name: known[name] for name in sys.argv[1:2] if name in known} or known

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        """Help texts that fit a terminal; Lightning's list all options twice and end amid a sentence."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.usage = f"ai-wam {subcommand} --config FILE [options]"
        parser.description = f"{LIGHTNING[subcommand]}; see docs/commands.md"
        for group in parser._action_groups:
            title = str(group.title)
            group.title = next((ours for theirs, ours in _TITLES.items() if title.startswith(theirs)), title)
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Data and benchmarks follow the model's clip."""
        parser.link_arguments("model.init_args.clip", "data.init_args.clip")
        help = "fit: a checkpoint whose weights and model a new run begins with; optimizer and step are new"
        parser.add_argument("--weights", type=str | None, default=None, help=help)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Insert the checkpoint's hyperparameters before every other setting."""
        words = sys.argv[1:]
        checkpoint = _option(words, "--ckpt_path") or _option(words, "--weights")
        model = self._parse_over(parser, args, checkpoint)
        asked = self.config[words[0]]
        # It may be named in a YAML file, or in a spelling not looked for above.
        if named := checkpoint_settings.named_checkpoint(words[0], asked):
            if named != checkpoint:
                checkpoint = named
                model = self._parse_over(parser, args, checkpoint)
            asked = self.config[words[0]]
            if asked.get("ckpt_path") is not None:  # "last" has become a file
                asked.ckpt_path = named
                check_resumable(words[0], named)
        if model is not None:
            checkpoint_settings.check_backbone(str(checkpoint), model, asked.model)
        checkpoint_settings.check_request(words[0], asked, model)

    def _parse_over(
        self, parser: LightningArgumentParser, args: ArgsType, checkpoint: str | None
    ) -> dict[str, Any] | None:
        """Parse the command line on top of a checkpoint's model, which is returned; None without a file."""
        words, model = sys.argv[1:], None
        with tempfile.TemporaryDirectory() as folder:
            first: list[str] = []
            if checkpoint not in (None, *_KEYWORDS) and not str(checkpoint).startswith("registry"):
                model, file = hyperparameters(str(checkpoint)), Path(folder) / "checkpoint.yaml"
                file.write_text(yaml.safe_dump({"model": model}, sort_keys=False))
                first = ["--config", str(file)]
            sys.argv[1:] = replacing([words[0], *first, *words[1:]])
            try:
                super().parse_arguments(parser, args)
            finally:
                sys.argv[1:] = words
        return model

    def instantiate_classes(self) -> None:
        """Refuse a clip that does not fit before weights are read; a model to be sharded reads them then."""
        asked = self.config[self.config.subcommand]
        data = bare(asked.data) if self.config.subcommand == "fit" and asked.get("data") else None
        if self.config.subcommand == "fit" and not asked.trainer.get("fast_dev_run"):
            check_free(planned_folder(bare(asked.trainer)), asked.get("ckpt_path"))
        checkpoint_settings.check_fits(bare(asked.model.get("init_args", Namespace())), data)
        with deferred_weights() if checkpoint_settings.shards_weights(asked) else nullcontext():
            try:
                super().instantiate_classes()
            except ValueError as error:  # the parser's, with every class that the value is not
                if (missing := _missing_package(str(error))) is None:
                    raise
                raise missing from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Checkpoints are written by `ai_wam.cli.checkpoint_io`, unless a plug-in for that is given.

        Raises:
            ValueError: settings that Lightning's trainer refuses.
        """
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, RuntimeError, ImportError) as error:
            raise InvalidValue(f"the trainer cannot be set up: {' '.join(str(error).split())}") from error
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer

    def _dump_config(self) -> None:
        """Plain values for the hyperparameters of a module; Lightning writes and reads YAML for them."""
        self.config_dump = bare(self.config[self.config.subcommand])

    def after_instantiate_classes(self) -> None:
        """Keep the model's configuration in every checkpoint, in plain values that rebuild the model."""
        asked = self.config[self.config.subcommand].model
        arguments = bare(asked.get("init_args", Namespace()))
        known = {"_class_path": asked.class_path, "_instantiator": "lightning.pytorch.cli.instantiate_module"}
        self.model.save_hyperparameters({**known, **arguments}, logger=False)

    def before_fit(self) -> None:
        """Load the weights of `--weights`, and add what watches a training."""
        if (weights := self.config.fit.get("weights")) is not None:
            self.model.load_state_dict(checkpoint_settings.state_dict(weights))
        if isinstance(self.model, WorldActionTask):
            checkpoint_settings.warn_of_rounding(self.model.backbone)
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]  # set in its constructor
        show_steps(callbacks)
        if isinstance(self.datamodule, ShardDataModule):
            callbacks.insert(0, CoverageReport())
        callbacks.append(SavesWhenStopped())  # the last, so that it saves what the others did at a step

    def before_predict(self) -> None:
        """Predictions go to files, batch by batch; a person's own input gets a folder per sample."""
        folder = Path(self.trainer.default_root_dir) / "predictions"
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]  # set in its constructor
        callbacks.append(ActionWriter(folder))
        if isinstance(self.datamodule, ImagesDataModule):
            callbacks.append(SampleWriter(folder))

    def _set_seed(self) -> None:
        """Refuse a seed that NumPy does not take."""
        try:
            super()._set_seed()
        except ValueError as error:
            raise InvalidValue(f"seed_everything: {error}") from error

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would let the checkpoint override YAML and command line here."""


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
    return dict(bare(cli.config))


def parser_of_settings() -> LightningArgumentParser:
    """The parser of `settings_of_fit`."""
    words, sys.argv[1:] = sys.argv[1:], []  # Lightning warns if arguments reach it by another way
    try:
        parser: LightningArgumentParser = capture_parser(_Settings, run=False, **_SETTINGS)
    finally:
        sys.argv[1:] = words
    return parser


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
    with stopping(words):
        return _CLI(**_SETTINGS)


def _missing_package(message: str) -> MissingPackage | None:
    """The error of a class of Lightning, such as a logger, whose package is not installed."""
    found = _REQUIREMENT.search(message)
    if found is None:
        return None
    return MissingPackage(f"{found[1]} needs a package that is not installed: pip install '{found[2]}'")


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
