"""GPU memory that training needs: `python -m benchmarks.speed.memory configs/recipes/lora_24gb.yaml [...]`.

Computed, not measured: weights, gradients, optimizer and averages are counted from shapes, and what a step
keeps for its backward pass is counted by tracing one and two blocks in fake tensors, bfloat16 as under
bf16-mixed. Left out are the allocator's slack, the libraries' workspaces and the video autoencoder's own
activations: leave 3 to 4 GB.
"""

import sys
from argparse import ArgumentParser
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ai_wam.cli.shipped_configs import config_path
from backbones.base import VideoBackbone
from backbones.codecs.patch import PatchCodec
from backbones.weights.lora import LoRA
from backbones.weights.training_options import Training
from benchmarks.speed.measuring import canvas_of
from benchmarks.speed.released_sizes import build

_TWO_EXPERTS = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
_NAMES = {
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": "wan2.2-5b",
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "wan2.1-1.3b",
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": "wan2.1-14b",
    _TWO_EXPERTS: "wan2.1-14b",  # the size of one of them
}
_LAYERS = {"wan2.2-5b": 30, "wan2.1-1.3b": 30, "wan2.1-14b": 40}


def main(recipes: list[str]) -> None:
    """Print a budget per recipe."""
    for recipe in recipes:
        own = Path(recipe)  # or one of those that are shipped
        settings = yaml.safe_load((own if own.is_file() else config_path(recipe)).read_text())
        rows = budget(settings)
        print(f"{recipe}: {sum(rows.values()):.1f} GB per GPU (computed, nothing was run)")
        for what, size in (rows | saving(settings)).items():
            print(f"  {size:6.1f} GB  {what}")


def budget(recipe: dict[str, Any]) -> dict[str, float]:
    """Gigabytes (1e9 bytes) per GPU of a recipe's model, trainer and clip.

    Raises:
        KeyError: a pretrained model without a published size in `benchmarks.speed.released_sizes`.
    """
    arguments, trainer = recipe["model"]["init_args"], recipe["trainer"]
    options, clip = arguments["backbone"]["init_args"], arguments["clip"]
    name = _NAMES[options["pretrained"]]
    training = _training(options)
    shards = trainer["devices"] if isinstance(trainer.get("strategy"), dict) else 1
    averaged = any("AveragedWeights" in callback["class_path"] for callback in trainer["callbacks"])
    with torch.device("meta"):
        model = build(name, training=training)
    released = 2 if training.dtype == "bfloat16" else 4
    both = options["pretrained"] == _TWO_EXPERTS and options.get("expert", "both") == "both"
    trained, frozen = ((1 + both) * _count(model.denoiser, asked) for asked in (True, False))
    block = sum(p.numel() for p in model.fsdp_units()[0].parameters())
    kept, working = _activations(
        name, training.lora, released, clip, recipe["data"]["init_args"]["batch_size"]
    )
    if not training.gradient_checkpointing:
        kept, working = _LAYERS[name] * working, 0.0
    rows = {
        "frozen weights": frozen * released,
        "trained weights, float32": 4 * trained / shards,
        "gradients and two moments, float32": 12 * trained / shards,
        "averages, float32": 4 * trained / shards if averaged else 0.0,
        "text encoder": text_encoder(options.get("prompts")),
        "video autoencoder, float32": 4 * sum(p.numel() for p in model.codec.parameters()),
        "two blocks gathered with one's gradients": 12.0 * block if shards > 1 else 0.0,
        "what the forward pass keeps": kept,
        "one block computed again": working,
    }
    return {what: size / 1e9 for what, size in rows.items() if size}


def saving(recipe: dict[str, Any]) -> dict[str, float]:
    """Gigabytes that a recipe's checkpoints take on disk and, while one is written, in the host's memory.

    A checkpoint holds weights, averages and two moments of all that is trained, in float32. One process of a
    sharded run gathers it, with a second copy of the weights; others write it tensor by tensor.

    Args:
        recipe: its content; its ModelCheckpoint keeps all files, as those of the shipped recipes do.
    """
    options, trainer = recipe["model"]["init_args"]["backbone"]["init_args"], recipe["trainer"]
    with torch.device("meta"):
        denoiser = build(_NAMES[options["pretrained"]], training=_training(options)).denoiser
        trained = _count(denoiser, True) * 4e-9
    averaged = any("AveragedWeights" in callback["class_path"] for callback in trainer["callbacks"])
    saver = next(
        each["init_args"] for each in trainer["callbacks"] if "ModelCheckpoint" in each["class_path"]
    )
    file, files = (3 + averaged) * trained, trainer["max_steps"] // saver["every_n_train_steps"]
    return {
        "on disk, one checkpoint": file,
        f"on disk, {files} checkpoints, the last again, and one more while it is written": (files + 2) * file,
        "host memory of the process that saves": file + trained if "strategy" in trainer else 0.0,
    }


def text_encoder(prompts: dict[str, Any] | None) -> float:
    """Bytes of the encoder on the GPU, where it stays once it was needed; Wan's, if none is named."""
    from transformers import AutoConfig, AutoModelForTextEncoding

    options = {} if prompts is None else prompts["init_args"]
    if options.get("device") == "cpu":
        return 0.0
    kind = "umt5" if options.get("encoder", "UMT5EncoderModel") == "UMT5EncoderModel" else "t5"
    xxl = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    words = {"umt5": 256384, "t5": 32128}[kind]
    config = AutoConfig.for_model(kind, **xxl, vocab_size=words, feed_forward_proj="gated-gelu")
    with torch.device("meta"):
        encoder = AutoModelForTextEncoding.from_config(config)
    return sum(p.numel() for p in encoder.parameters()) * (4.0 if options.get("dtype") == "float32" else 2.0)


def _training(options: dict[str, Any]) -> Training:
    """A recipe's training options."""
    settings = dict(options.get("training", {}))
    lora = settings.pop("lora", None)
    return Training(**settings, lora=None if lora is None else LoRA(**lora))


def _count(module: nn.Module, trained: bool) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad == trained)


def _activations(
    name: str, lora: LoRA | None, released: int, clip: dict[str, Any], rows: int
) -> tuple[float, float]:
    """Bytes kept from block to block under gradient checkpointing, and those that one block keeps inside."""
    traces = []
    for layers in (1, 2):
        with torch.device("meta"):
            spec = build(name, layers=1).spec
        channels = spec.channels + -spec.channels % 3  # a channel or two more enter; blocks are as they are
        codec = PatchCodec(channels, spec.spatial_stride, spec.temporal_stride)
        with torch.device("meta"):
            model = build(name, training=Training(lora=lora), layers=layers, codec=codec)
        model.to_empty(device="cpu")  # their values count for nothing, drawing them takes seconds
        for parameter in model.denoiser.parameters():
            if released == 2 and not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
        traces.append(_trace(model, clip, rows))
    (first, entering), (second, _) = traces
    block = second - first
    return first - block + _LAYERS[name] * entering, block


def _trace(model: VideoBackbone, clip: dict[str, Any], rows: int) -> tuple[float, float]:
    """Bytes that one loss keeps for its backward pass, and bytes of the tokens that enter a block."""
    canvas, context = canvas_of(model, "joint", tuple(clip["size"]), clip["frames"], rows)
    noise, u = torch.randn_like(canvas.clean), torch.full((rows,), 0.5)
    kept: dict[int, int] = {}
    entering: list[int] = []
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    weights = [fake.from_tensor(part) for part in model.parameters()]  # alive, as addresses tell storages
    owned = {part.untyped_storage()._cdata for part in weights}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in owned:
            kept[storage._cdata] = storage.nbytes()
        alive.append(tensor)  # or another one might get its address
        return tensor

    alive: list[Tensor] = []
    model.fsdp_units()[0].register_forward_pre_hook(lambda _, args: entering.append(args[0].nbytes))
    with (
        fake,
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
    ):
        model.loss(canvas, context, u, noise)
    return float(sum(kept.values())), float(entering[0])


def _listed(words: Iterable[str]) -> list[str]:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="+", help="YAML files that `ai-wam fit` takes")
    return list(parser.parse_args(list(words)).recipes)


if __name__ == "__main__":
    main(_listed(sys.argv[1:]))
