"""Every tiny twin learns to label: a falling loss is no evidence, decoded points that beat chance are.

Each step draws fresh scenes: two cameras anywhere around a moving tool, its three points painted in other
colours than the tokenizer's over a random background. The model sees the whole video and generates the action
images.
"""

import math
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ai_wam.action_images import ActionImageTokenizer, tool_points
from ai_wam.cameras import Cameras
from ai_wam.canvas import Kind, plan
from ai_wam.cli.shipped_configs import instantiate
from ai_wam.diffusion.solvers import Sampling
from ai_wam.types import Batch, Clip
from backbones.base import VideoBackbone
from tasks.joint import JointGeneration

TINY = sorted((Path(__file__).parents[2] / "configs" / "backbone").glob("*-tiny.yaml"))
SMALL = {"svd-tiny": (5, 32)}  # frames and pixels where nine frames of 64 would take hours
MINUTES = 20  # of the processor
PAINT = ActionImageTokenizer(blob_std=0.06)
COLOURS = torch.tensor([[0.9, 0.8, 0.0], [0.0, 0.7, 0.9], [0.8, 0.1, 0.8]])  # of the three points, as RGB


def look_at(origin: Tensor) -> Tensor:
    """world_from_camera "n 4 4" of cameras at `origin` "n 3" that look at the middle, y downwards."""
    z = -origin / origin.norm(dim=-1, keepdim=True)
    x = torch.linalg.cross(z, torch.tensor([0.0, 0.0, 1.0]).expand_as(z))
    x = x / x.norm(dim=-1, keepdim=True)
    poses = torch.eye(4).repeat(len(origin), 1, 1)
    poses[:, :3, :3] = torch.stack([x, torch.linalg.cross(z, x), z], dim=-1)
    poses[:, :3, 3] = origin
    return poses


def scenes(rows: int, clip: Clip, g: torch.Generator) -> Batch:
    """Clips that were not trained on."""
    frames, (height, width) = clip.frames, clip.size
    turn = torch.rand(rows, 1, generator=g) * 2 * math.pi
    azimuth = turn + torch.tensor([0.0, 1.0]) + 0.6 * torch.rand(rows, 2, generator=g)
    rise = 0.2 + 0.6 * torch.rand(rows, 2, generator=g)
    flat = torch.stack([azimuth.cos() * rise.cos(), azimuth.sin() * rise.cos(), rise.sin()], dim=-1)
    poses = look_at(flat.flatten(0, 1)).unflatten(0, (rows, 2))[:, :, None].expand(-1, -1, frames, -1, -1)
    k = torch.tensor([[1.1 * width, 0, width / 2], [0, 1.1 * width, height / 2], [0, 0, 1]])
    cameras = Cameras(k.expand(rows, 2, frames, 3, 3), poses)

    when = torch.linspace(-1, 1, frames)[:, None]
    place = 0.36 * (torch.rand(rows, 1, 3, generator=g) - 0.5) + 0.1 * when * torch.randn(
        rows, 1, 3, generator=g
    )
    axis = torch.nn.functional.normalize(torch.randn(rows, 2, 1, 4, generator=g), dim=-1)
    quaternion = torch.nn.functional.normalize(axis[:, 0] + 0.4 * when * axis[:, 1], dim=-1)
    openness = torch.rand(rows, 1, 1, generator=g).expand(-1, frames, -1)
    actions = torch.cat([place, quaternion, openness], dim=-1)

    blobs = PAINT.encode(actions, cameras, clip.size)
    background = 0.4 * torch.rand(rows, 2, 3, 1, 1, 1, generator=g)
    video = torch.einsum("bvkthw,kc->bvcthw", blobs, COLOURS) + background
    return Batch(
        video=2 * video.clamp(0, 1) - 1, cameras=cameras, view_mask=torch.ones(rows, 2, dtype=torch.bool),
        video_valid=torch.ones(rows, frames, dtype=torch.bool),
        recorded=torch.ones(rows, frames, dtype=torch.bool), actions=actions,
        action_valid=torch.ones(rows, frames, dtype=torch.bool), prompts=("label",) * rows,
        keys=tuple(map(str, range(rows))),
    )  # fmt: skip


def point_errors(task: JointGeneration, batch: Batch) -> tuple[float, float]:
    """Median distance in pixels of decoded points from the true ones, and from those of other clips.

    A point that was not found counts as infinitely far; points outside the image do not count.
    """
    canvas, latents = task.generate(plan("labeling"), batch.observation, batch.cameras, video=batch.video)
    drawn = task.decode_segments(canvas, latents)[Kind.ACTION]
    made = task.generated(canvas, latents, drawn, batch.cameras, batch.observation)
    found = made.geometric.pixels
    points = tool_points(batch.actions, task.tokenizer.axis_length)
    truth = batch.cameras.project(points[:, None].expand(-1, 2, -1, -1, -1), task.clip.size)
    inside = truth.visible

    def median(other: Tensor, counts: Tensor) -> float:
        return float((found - other).norm(dim=-1).nan_to_num(torch.inf)[counts].median())

    return median(truth.pixels, inside), median(truth.pixels.roll(1, 0), inside.roll(1, 0))


@pytest.mark.slow
@pytest.mark.parametrize("file", TINY, ids=lambda file: file.stem)
def test_decoded_points_beat_chance_five_times(file: Path):
    frames, pixels = SMALL.get(file.stem, (9, 64))
    torch.manual_seed(0)
    clip = Clip(frames=frames, size=(pixels, pixels), views=("one", "other"))
    backbone = instantiate(str(file), VideoBackbone)
    task = JointGeneration(backbone, clip, plans={"labeling": 1.0}, sampling=Sampling(steps=4))
    optimizer = torch.optim.AdamW(task.parameter_groups(), lr=2e-3, betas=(0.9, 0.95))
    held_out = scenes(32, clip, torch.Generator().manual_seed(12345))
    g, began, step, error, chance = torch.Generator().manual_seed(0), time.process_time(), 0, math.inf, 1.0
    while not error < chance / 5:  # infinite where most points were not found
        minutes = (time.process_time() - began) / 60
        assert minutes < MINUTES, f"{file.stem}: {error:.2f} px after {step} steps, chance {chance:.2f} px"
        for _ in range(250):
            step += 1
            batch = scenes(8, clip, g)
            canvas = task.training_canvas(batch, plan("labeling"))
            u, noise = backbone.path.draw(8, g), torch.randn(canvas.clean.shape, generator=g)
            context = task.backbone.encode_context(batch.prompts, batch.video[:, :, :, -1:], batch.view_mask)
            loss = backbone.loss(canvas, context, u, noise).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * min(1, step / 100)
            optimizer.step()
        error, chance = point_errors(task.eval(), held_out)
        task.train()
        spent = (time.process_time() - began) / 60
        print(f"{file.stem} step {step}: {error:.2f} px, chance {chance:.2f} px, {spent:.1f} min", flush=True)
