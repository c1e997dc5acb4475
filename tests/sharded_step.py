"""Run by test_sharding.py in two processes: sharded steps of every tiny twin against those of one.

The twins are released checkpoints, of which every process reads its own part after sharding.
"""

from pathlib import Path

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from ai_wam.cameras import Cameras
from ai_wam.canvas import Canvas, blank, build_canvas, plan
from ai_wam.cli.shipped_configs import instantiate
from backbones.base import VideoBackbone
from backbones.weights.sharded_loading import deferred_weights

ROWS, VIEWS, SIZE, FRAMES = 2, 2, (32, 32), 9


def canvas_of(backbone: VideoBackbone, name: str = "joint") -> Canvas:
    video = torch.rand(2, ROWS, VIEWS, 3, FRAMES, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    first = [backbone.encode(part[:, :, :, :1]) for part in video]
    whole = [backbone.encode(part) for part in video]
    pairs = zip(video, first, strict=True)
    stills = [backbone.encode_still(part[:, :, :, :1], latents, FRAMES) for part, latents in pairs]
    k = torch.tensor([[30.0, 0, 16], [0, 30.0, 16], [0, 0, 1]]).expand(ROWS, VIEWS, 1, 3, 3)
    cameras = Cameras(k, torch.eye(4).expand(ROWS, VIEWS, 1, 4, 4))
    seen = torch.ones(ROWS, VIEWS, dtype=torch.bool)
    shown = None if stills[0] is None else tuple(stills)
    return build_canvas(plan(name), backbone.spec, SIZE, cameras, seen, *first, *whole, stills=shown)


def losses(backbone: VideoBackbone, name: str = "joint", idle: bool = False) -> torch.Tensor:
    canvas = canvas_of(backbone, name)
    canvas = blank(canvas) if idle else canvas
    now = torch.zeros(ROWS, VIEWS, 3, 1, *SIZE)
    context = backbone.encode_context(
        ["reach the red ball", ""], now, torch.ones(ROWS, VIEWS, dtype=torch.bool)
    )
    noise = torch.randn(canvas.clean.shape, generator=torch.Generator().manual_seed(1))
    return backbone.loss(canvas, context, torch.tensor([0.7, 0.3]), noise)


def check_gradients(whole: VideoBackbone, sharded: VideoBackbone) -> None:
    pairs = zip(whole.denoiser.named_parameters(), sharded.denoiser.parameters(), strict=True)
    for (name, one), other in pairs:
        assert isinstance(other, DTensor), name
        assert torch.equal(other.full_tensor(), one), name
        assert one.dtype == other.dtype, name
        assert one.requires_grad == other.requires_grad == (one.grad is not None), name
        if one.grad is not None:
            assert isinstance(other.grad, DTensor), name
            torch.testing.assert_close(other.grad.full_tensor(), one.grad, rtol=1e-4, atol=1e-6, msg=name)


def released(file: str, folder: Path) -> list[str]:
    """Words that make a twin a checkpoint in the released layout, which lies in a folder in several files."""
    torch.manual_seed(1)
    twin = instantiate(file, VideoBackbone)
    network = twin.Denoiser.from_config(dict(twin.denoiser.config))
    network.save_pretrained(folder / twin.folder, max_shard_size="500KB")
    assert len(list((folder / twin.folder).glob("*.safetensors"))) > 1
    return [f"pretrained={folder}", "architecture=null"]


def compare(rank: int, mesh: DeviceMesh, file: str, words: list[str]) -> float:
    """Losses and gradients of one process and of two; the share of the parameters that this one holds."""
    torch.manual_seed(0)
    whole = instantiate(file, VideoBackbone, *words)
    with deferred_weights():
        sharded = instantiate(file, VideoBackbone, *words)
    waiting = {name for name, value in sharded.denoiser.state_dict().items() if value.is_meta}
    assert len(waiting) == len(sharded.released_names)
    ours = {name: value for name, value in whole.denoiser.state_dict().items() if name not in waiting}
    sharded.denoiser.load_state_dict(ours, strict=False)  # adapters are drawn anew
    sharded.shard(mesh)
    expected = losses(whole)
    expected.mean().backward()
    found = losses(sharded)
    found[rank].backward()  # every process its own row; gradients are averaged over processes
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    check_gradients(whole, sharded)
    if Path(file).stem == "wan-tiny":  # one row trains by two plans; the other process idles by the second
        whole.zero_grad()
        sharded.zero_grad()
        (losses(whole).sum() + losses(whole, "policy")[0]).div(2).backward()
        (losses(sharded)[rank] + losses(sharded, "policy", idle=rank == 1)[0]).backward()
        check_gradients(whole, sharded)
    parts = sum(p.to_local().numel() for p in sharded.denoiser.parameters() if isinstance(p, DTensor))
    return parts / sum(p.numel() for p in whole.denoiser.parameters())


def main(rank: int, store: str, files: list[str]) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for file in files:
        words = released(file, Path(f"{store}-{rank}") / Path(file).stem)
        share = compare(rank, mesh, file, words)
        assert 0.4 < share < 0.6, share
        print(f"{Path(file).stem} rank {rank}: {share:.2f} of the parameters", flush=True)
    compare(rank, mesh, files[-1], [*words, "training.lora.rank=2", "block_rank=2"])
    distributed.destroy_process_group()
