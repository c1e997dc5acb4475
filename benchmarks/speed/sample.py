"""Time of one chunk by plan and decoder: `python -m benchmarks.speed.sample [--backbone NAME]`.

Milliseconds of CPU time of one chunk for one observation (two views), measured in turns in one process on
one thread, and ratios. Plans that act are measured with each decoder: "whole" decodes everything that was
generated and finds the poses by geometry, "geometric" decodes the action segments only, "beginning" only the
frames that are executed, "latent" reads the poses off the latents, "head" adds the learned action head to
"geometric". The other plans generate and decode a recorded clip.
"""

from argparse import ArgumentParser
from collections.abc import Callable
from functools import partial

import torch

from ai_wam.cameras import Cameras
from ai_wam.canvas import plan
from ai_wam.diffusion.solvers import Sampling
from ai_wam.types import Batch, Clip, Observation
from benchmarks.speed.measuring import interleaved, shipped
from tasks.base import WorldActionTask
from tasks.decoding.action_head import ActionHead
from tasks.joint import JointGeneration

_DECODERS = ("whole", "geometric", "beginning", "latent", "head")
_ACTING = ("joint", "policy")
_GENERATING = ("cross_view", "action_conditioned", "video_only", "labeling", "annotation")


def main(backbone: str, size: int, frames: int, steps: int, rounds: int) -> None:
    """Print the table; the parser at the end says what the arguments mean."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clip = Clip(frames=frames, size=(size, size), views=("one", "other"))
    task = JointGeneration(
        shipped(backbone),
        clip,
        action_head=ActionHead(),
        decoder="latent",
        sampling=Sampling(steps=steps),
    ).eval()
    observation = seen(clip)
    calls: dict[str, Callable[[], object]] = {
        f"{name} {decoder}": partial(act, task, observation, name, decoder)
        for name in _ACTING
        for decoder in _DECODERS
    }
    clips = recorded(observation, clip)
    calls |= {name: partial(task.generate_videos, clips, plan(name)) for name in _GENERATING}
    found = interleaved(calls, rounds)
    print(f"{backbone}, {size} px, {frames} frames, 2 views, {steps} steps: ms per chunk on one thread")
    print(f"{'':<20}" + "".join(f"{decoder:>12}" for decoder in _DECODERS))
    for name in _ACTING:
        print(f"  {name:<18}" + "".join(f"{found[f'{name} {decoder}']:>12.1f}" for decoder in _DECODERS))
    for name in _GENERATING:
        print(f"  {name:<18}{found[name]:>12.1f}")
    joint, policy = (found[f"{name} geometric"] for name in _ACTING)
    print(f"joint over policy, action segments decoded: {joint / policy:.2f}")
    print(f"whole over action segments, joint: {found['joint whole'] / joint:.2f}")


def act(task: WorldActionTask, observation: Observation, name: str, decoder: str) -> object:
    """One chunk by one plan and one decoder."""
    task.control_plan, begun = plan(name), decoder == "beginning"
    task.decoded_frames = max(2, task.clip.frames // 2 + 1) if begun else None
    return task.act(observation, "geometric" if begun else decoder)


def seen(clip: Clip) -> Observation:
    """One observation of noise by two cameras at right angles."""
    size = clip.size[0]
    k = torch.tensor([[size, 0, size / 2], [0, size, size / 2], [0, 0, 1]]).expand(1, 2, 1, 3, 3)
    poses = torch.eye(4).repeat(1, 2, 1, 1, 1)
    poses[:, 1] = torch.tensor([[0.0, 0, -1, 1], [0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 1]])
    return Observation(
        video=torch.rand(1, 2, 3, 1, *clip.size) * 2 - 1, cameras=Cameras(k, poses),
        view_mask=torch.ones(1, 2, dtype=torch.bool), action=torch.tensor([[0.0, 0, 1, 0, 0, 0, 1, 1]]),
        seconds=torch.zeros(1), prompts=("reach the red ball",), episodes=("one",),
    )  # fmt: skip


def recorded(observation: Observation, clip: Clip) -> Batch:
    """A clip in which nothing moves."""
    known = torch.ones(1, clip.frames, dtype=torch.bool)
    return Batch(
        video=observation.video.expand(-1, -1, -1, clip.frames, -1, -1),
        cameras=observation.cameras.map(lambda matrix: matrix.expand(-1, -1, clip.frames, -1, -1)),
        view_mask=observation.view_mask, video_valid=known, recorded=known, action_valid=known,
        actions=observation.action[:, None].expand(-1, clip.frames, -1),
        prompts=observation.prompts, keys=observation.episodes,
    )  # fmt: skip


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="wan-tiny", help="a tiny YAML of configs/backbone")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--frames", type=int, default=41, help="of the clip")
    parser.add_argument("--steps", type=int, default=4, help="network evaluations")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds; the least counts")
    main(**vars(parser.parse_args()))
