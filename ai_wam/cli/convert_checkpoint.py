"""`ai-wam convert-checkpoint`: the released Action Images checkpoint as a folder for backbones, and back."""

import tempfile
from pathlib import Path

import torch
import yaml
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors.torch import save_file

from ai_wam.errors import ExistingFile, MissingFile
from ai_wam.files.weights import read_safetensors
from backbones.weights.action_images_release import from_released, read_checkpoint, to_released
from backbones.weights.denoiser_folder import ADAPTER, new_folder, write_denoiser


def convert_checkpoint(
    source: str,
    out: str,
    base_model: str = "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    head_width: int = 128,
) -> None:
    """Convert the released Action Images checkpoint into a folder for `pretrained:`, or such a folder back.

    The folder holds diffusers' transformer, the camera encoders beside it, and backbone.yaml, which loads
    both. Nothing is overwritten. docs/checkpoints.md lists what was assumed.

    Args:
        source: a .ckpt or .safetensors file in the released names; or a folder, to go back.
        out: the new folder; or the new file, .ckpt or .safetensors.
        base_model: hub id or folder of the model that gives video autoencoder and text encoder.
        head_width: channels of an attention head, which the weights do not show.
    """
    if Path(source).is_dir():
        _back(Path(source) / "transformer", Path(out))
    elif Path(source).is_file():
        _convert(Path(source), Path(out), base_model, head_width)
    else:
        raise MissingFile(f"there is no file or folder {source!r}")


def _convert(source: Path, out: Path, base_model: str, head_width: int) -> None:
    print(f"converting {source}, {source.stat().st_size / 1e9:.1f} GB", flush=True)
    with new_folder(out) as folder:
        config, weights, adapter = from_released(read_checkpoint(source), head_width)
        write_denoiser(folder / "transformer", WanTransformer3DModel, config, weights, adapter, base_model)
        replaced = ("architecture", "codec", "prompts", "path")  # YAML files are laid over one another
        arguments = {
            "pretrained": str(out.absolute()),
            **dict.fromkeys(replaced),
            "prediction": "native",
            "camera_encoders": bool(adapter),
            "time": "shared",  # as it was trained: given frames have the diffusion time of the others
            "known_observation": False,
        }
        described = {"class_path": "backbones.wan.Wan", "init_args": arguments}
        (folder / "backbone.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
    counts = [sum(value.numel() for value in part.values()) / 1e6 for part in (weights, adapter)]
    print(f"{out}: a denoiser of {counts[0]:.1f} M weights, camera encoders of {counts[1]:.1f} M")


def _back(folder: Path, out: Path) -> None:
    if out.suffix not in (".ckpt", ".safetensors") or out.exists():
        raise ExistingFile(f"{out} is already there, or is neither .ckpt nor .safetensors; name another")
    if not (folder / ADAPTER).is_file():
        raise MissingFile(f"{folder} holds no {ADAPTER}; give a folder that ai-wam wrote")
    weights = {}
    for part in sorted(folder.glob("diffusion_pytorch_model*.safetensors")):
        weights.update(read_safetensors(part))
    state = to_released(weights, read_safetensors(folder / ADAPTER))
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        file = Path(temporary) / out.name
        if out.suffix == ".ckpt":
            torch.save(state, file)
        else:
            save_file(state, file)
        file.rename(out)
    print(f"{out}: {len(state)} weights in the released names")
