"""`ai-wam export-checkpoint`: the backbone of a trained checkpoint as a folder of its own, or on the hub."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from huggingface_hub import HfApi

from ai_wam.cli.checkpoint_settings import hyperparameters, state_dict, trained_backbone
from ai_wam.cli.shipped_configs import instantiate
from ai_wam.errors import InvalidValue
from ai_wam.files.json_yaml import read_json
from ai_wam.files.weights import load_weights, read_torch
from backbones.base import VideoBackbone
from backbones.weights.denoiser_folder import (
    diffusers_class,
    new_folder,
    released_name,
    split_weights,
    write_denoiser,
)
from backbones.weights.lora import merge_lora, write_lora

What = Literal["both", "merged", "adapters"]

_WHOLE = """It loads with

    from ai_wam.cli.shipped_configs import instantiate
    from backbones.base import VideoBackbone

    backbone = instantiate("backbone.yaml", VideoBackbone)

or as `--model.backbone backbone.yaml` of `ai-wam fit`; the whole policy is `--model task.yaml` of
`ai-wam test`. `pretrained` in these files names this folder or repository. The denoiser alone loads with
diffusers, too, but then knows nothing of what adapter.safetensors adds: which latents are given, what they
show, and from where."""
_ADAPTERS = """Here are its low-rank adapters alone: `pipeline.load_lora_weights(...)` of diffusers
puts them on the released model. They do not carry what the backbone adds to it (which latents are given, what
they show, and from where), so the policy cannot act with them; export it with `--what merged`."""
_ARMS = ("policy", "ceiling", "blind", "floor")


def export_checkpoint(
    ckpt_path: str,
    out: str,
    push: str | None = None,
    license: str = "other",
    base_model: str | None = None,
    metrics: str | None = None,
    what: What = "both",
) -> None:
    """Write the backbone of a trained checkpoint as a folder that `pretrained:` and diffusers load.

    The denoiser is written as diffusers' own class, what ours adds beside it in adapter.safetensors,
    backbone.yaml and task.yaml to load both (the latter is a whole `--model`), and README.md, the model card.
    Low-rank adapters are merged in float32, and written alone for diffusers. Nothing is overwritten.

    Args:
        ckpt_path: a .ckpt file written by `ai-wam fit`.
        out: the new folder.
        push: "user/repository" on the Hugging Face hub to upload the folder to; made, private, if it is new.
        license: of the weights, as the hub calls it, such as apache-2.0.
        base_model: hub id of the model that was fine-tuned, where it was loaded from a local folder.
        metrics: a results.json of `ai-wam test`, to be shown in the model card.
        what: of a checkpoint with low-rank adapters: "merged" is the whole denoiser in float32, "adapters" a
            small file that diffusers' `load_lora_weights` puts on the released model, "both" both.
    """
    if push is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", push):
        raise InvalidValue(f"push must be user/repository, got {push!r}")
    said = _export(ckpt_path, Path(out), push, license, base_model, metrics, what)
    print(f"{out}: written, {said}")
    if push is not None:
        api = HfApi()
        api.create_repo(push, private=True, exist_ok=True)
        api.upload_folder(repo_id=push, folder_path=str(out), commit_message="Export of ai-wam")
        print(f"{push}: uploaded")


def _export(
    ckpt_path: str,
    out: Path,
    push: str | None,
    license: str,
    base_model: str | None,
    metrics: str | None,
    what: What,
) -> str:
    """Write everything; returns a description."""
    model = hyperparameters(ckpt_path)
    described = trained_backbone(ckpt_path, model)
    results = None if metrics is None else _results(Path(metrics))
    print(f"reading {ckpt_path}, {Path(ckpt_path).stat().st_size / 1e9:.1f} GB", flush=True)
    with new_folder(out) as folder:
        saved = read_torch(ckpt_path)
        backbone = _trained(described, state_dict(ckpt_path))
        if what == "adapters" and backbone.lora is None:
            raise InvalidValue(f"{ckpt_path} has no low-rank adapters; leave --what out to write its weights")
        base = base_model or backbone.base_model
        if push is not None and base is not None and Path(base).exists():
            raise InvalidValue(
                f"it was trained from {base!r} on this machine; name its hub id by --base_model"
            )
        said, whole = [], what != "adapters"
        if whole:
            said.append(write_backbone(backbone, folder, base))
            _describe(backbone, model, folder, push or str(out.absolute()))
        if backbone.lora is not None and what != "merged":
            said.append(write_adapters(backbone, folder, base))
        steps = saved.get("global_step")
        card = _card(push or out.name, model, license, base, steps, results, "; ".join(said), whole)
        (folder / "README.md").write_text(card)
    return "; ".join(said)


def _describe(backbone: VideoBackbone, model: Mapping[str, Any], folder: Path, place: str) -> None:
    """backbone.yaml and task.yaml, which load a folder."""
    described = model["init_args"]["backbone"]
    # What is replaced is named, since YAML files are laid over one another.
    arguments = {**described["init_args"], "pretrained": place, "architecture": None}
    if backbone.lora is not None:
        # The folder's weights hold the adapters; half precision would round away what was learned.
        arguments["training"] = {**arguments["training"], "lora": None, "dtype": "float32"}
    loaded = {"class_path": described["class_path"], "init_args": arguments}
    task = {"class_path": model["class_path"], "init_args": {**model["init_args"], "backbone": loaded}}
    for name, content in (("backbone", loaded), ("task", task)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def write_backbone(backbone: VideoBackbone, folder: Path, base_model: str | None) -> str:
    """Write a backbone's networks and their adapters into a folder; returns in which precision.

    Args:
        backbone: which stays as it is; of one with low-rank adapters, a copy is merged in float32.
        folder: in which every network gets a folder of its own.
        base_model: where codec, prompt and image encoder come from.
    """
    known = (base_model, backbone.trained_as())
    for name, network in backbone.networks().items():
        denoiser: Any = network
        if backbone.lora is not None:
            denoiser = copy.deepcopy(network)
            merge_lora(denoiser)
        weights, adapter = split_weights(denoiser, backbone.input_projection, backbone.released_names)
        kind = diffusers_class(denoiser)
        write_denoiser(folder / name, kind, denoiser.config, weights, adapter, *known)
    names = " and ".join(backbone.networks())
    if backbone.lora is not None:
        return f"low-rank adapters merged into {names} in float32"
    return f"{names} in {str(backbone.weights_dtype).removeprefix('torch.')}"


def write_adapters(backbone: VideoBackbone, folder: Path, base_model: str | None) -> str:
    """Write a backbone's low-rank adapters alone, as diffusers or peft load them; returns where.

    Args:
        backbone: with low-rank adapters.
        folder: in which they are written.
        base_model: of what they are adapters.
    """
    assert backbone.lora is not None
    files = []
    for part, network in backbone.networks().items():
        names = {
            name: plain.removesuffix(".weight")
            for name, _ in network.named_modules()
            if (plain := released_name(f"{name}.weight", backbone.input_projection))
            in backbone.released_names
        }
        file = write_lora(folder, part, network, backbone.lora, names, base_model)
        files.append(file.name)
    return f"low-rank adapters alone in float32: {' and '.join(files)}"


def _trained(described: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> VideoBackbone:
    backbone = instantiate(described, VideoBackbone)  # type: ignore[type-abstract]  # an interface is asked for
    own = {name.removeprefix("backbone."): state[name] for name in state if name.startswith("backbone.")}
    load_weights(backbone.load_state_dict, own, type(backbone).__name__)
    return backbone


def _results(file: Path) -> str:
    """The table of a results.json.

    Raises:
        ValueError: a file that `ai-wam test` did not write.
    """
    try:
        tasks = read_json(file)["tasks"]
        rows = [
            f"| {task} | {' | '.join(_rate(row.get(arm)) for arm in _ARMS)} |" for task, row in tasks.items()
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InvalidValue(f"{file} is no results.json of `ai-wam test` ({error!r})") from error
    head = f"| task | {' | '.join(_ARMS)} |\n|{'---|' * (1 + len(_ARMS))}"
    return "\n".join(["## Results", "", "Successes with 95 % Wilson intervals.", "", head, *rows, ""])


def _rate(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "not run"
    if row["interval"] is None:
        return "no trial counts"
    low, high = row["interval"]
    return f"{row['successes']}/{row['trials']} [{100 * low:.0f}, {100 * high:.0f}] %"


def _card(
    name: str,
    model: Mapping[str, Any],
    license: str,
    base: str | None,
    steps: int | None,
    results: str | None,
    said: str,
    whole: bool,
) -> str:
    """The model card: metadata that the hub reads, then what a reader wants to know."""
    head = {"license": license, "library_name": "ai-wam", "pipeline_tag": "robotics"}
    if base is not None and not Path(base).exists():
        head["base_model"] = base
    described = {"task": model["class_path"], "backbone": model["init_args"]["backbone"]["class_path"]}
    trained = {**described, "base_model": base, "steps": steps, "clip": model["init_args"].get("clip")}
    return f"""---
{yaml.safe_dump({**head, "tags": ["world-action-model", "action-images"]}, sort_keys=False)}---
# {name}

The video backbone of a world action model trained with ai-wam. {_WHOLE if whole else _ADAPTERS}

Written: {said}.

## Training

```yaml
{yaml.safe_dump(trained, sort_keys=False)}```
{"" if results is None else chr(10) + results}"""
