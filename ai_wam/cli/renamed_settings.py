"""Names of classes and settings before version 0.1.0: errors of old names give the new ones."""

import re
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

from ai_wam.errors import InvalidValue

MODULES = {
    "ai_wam.averaging": "ai_wam.utils.ema",
    "ai_wam.noise": "ai_wam.diffusion.noise_paths",
    "backbones.codec": "backbones.codecs.patch",
    "backbones.images": "backbones.conditions.image_encoders",
    "backbones.lora": "backbones.weights.lora",
    "backbones.prompts": "backbones.conditions.prompts",
    "backbones.t5": "backbones.conditions.t5",
    "benchmarks.benchmark": "benchmarks.evaluation.benchmark",
    "benchmarks.protocol": "benchmarks.evaluation.protocol",
    "benchmarks.rlbench": "benchmarks.simulators.rlbench.simulator",
    "benchmarks.rollout": "benchmarks.rollout_callback",
    "benchmarks.tabletop.simulator": "benchmarks.simulators.tabletop.simulator",
    "benchmarks.trials": "benchmarks.trial_datamodule",
    "datamodules.action_images_layout": "datamodules.sources.action_images",
    "datamodules.bridge": "datamodules.sources.bridge",
    "datamodules.droid": "datamodules.sources.droid",
    "datamodules.folder": "datamodules.sources.folder",
    "datamodules.images": "datamodules.image_datamodule",
    "datamodules.lerobot": "datamodules.sources.lerobot",
    "datamodules.rlbench_demos": "datamodules.sources.rlbench",
    "datamodules.shards": "datamodules.shard_datamodule",
    "datamodules.uncalibrated": "datamodules.cameras.vggt",
    "tasks.action_head": "tasks.decoding.action_head",
    "tasks.fixed": "tasks.fixed_policy",
    "tasks.labeler": "tasks.labeled_source",
    "tasks.writer": "tasks.evaluation.prediction_writer",
}
SETTINGS = {
    "gradient_checkpointing": "training.gradient_checkpointing",
    "compile_blocks": "training.compile_blocks",
    "lora": "training.lora",
    "dtype": "training.dtype",
    "decode_observation": "decoder",
    "learning_rate": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "warmup_steps": "lr_scheduler.warmup_steps",
    "schedule": "lr_scheduler (tasks.training.optimizer.CosineWithWarmup or ConstantWithWarmup)",
    "schedule_steps": "lr_scheduler.steps",
    "sampling_steps": "sampling.steps",
    "guidance": "sampling.guidance",
    "solver": "sampling.solver",
    "prefix_dropin": "prefix.dropin",
    "give_committed": "prefix.condition",
    "test_plans": "evaluation.plans",
    "test_networks": "evaluation.networks",
    "vague": "low_confidence",
    "first_observation": "known_observation",
    "record": "videos",
    "recording": "recorded_actions",
}
_NOT_ACCEPTED = re.compile(r"Option '(\w+)' is not accepted")
_CLASS = re.compile(r"(?<![\w.])((?:" + "|".join(map(re.escape, MODULES)) + r"))\.([A-Z]\w*)")


def hint(message: str) -> str:
    """A sentence for every old name in a parser's message; empty where there is none."""
    settings = [name for name in _NOT_ACCEPTED.findall(message) if name in SETTINGS]
    found = [f"`{name}` is now `{SETTINGS[name]}`" for name in dict.fromkeys(settings)]
    classes = dict.fromkeys(_CLASS.findall(message))
    found += [f"{module}.{name} is now {MODULES[module]}.{name}" for module, name in classes]
    return "".join(f". {one}" for one in found)


def check_current(path: str, model: Mapping[str, Any], accepted: Callable[[], Container[str]]) -> None:
    """Refuse a checkpoint whose classes or settings have the names of an earlier version.

    Args:
        path: of the checkpoint.
        model: its class path and arguments.
        accepted: names of the arguments that its class takes; asked where an old name is among the model's.

    Raises:
        ValueError: the first old name, with its new one.
    """
    old = [each for each in _class_paths(model) if _CLASS.match(each)]
    names = [name for name in model["init_args"] if name in SETTINGS]
    if names and not old:
        taken = accepted()
        old = [name for name in names if name not in taken]
    if old:
        new = SETTINGS.get(old[0]) or hint(old[0]).partition(" is now ")[2]
        raise InvalidValue(
            f"{path!r} was written by a version of ai-wam before 0.1.0, in which {new} was called {old[0]}; "
            "such checkpoints cannot be read any more: train again, or use the version that wrote it"
        )


def _class_paths(value: Any) -> Iterator[str]:
    """Every class path in a configuration."""
    if isinstance(value, Mapping):
        if isinstance(value.get("class_path"), str):
            yield value["class_path"]
        for each in value.values():
            yield from _class_paths(each)
    elif isinstance(value, list):
        for each in value:
            yield from _class_paths(each)
