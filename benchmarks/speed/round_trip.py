"""What action images keep of recorded poses: `python -m benchmarks.speed.round_trip --shards FOLDER`.

Every episode's actions are drawn as action images of its own cameras, rounded to 8 bits, and read back; with
`--backbone NAME` also encoded and decoded by that backbone's video codec in between. Printed are, by task,
millimetres and degrees of the steps that were read, their share, and how often a blob is in no picture.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from jsonargparse import auto_cli
from torch import Tensor
from tqdm import tqdm

from ai_wam.action_images import ActionImageTokenizer
from ai_wam.cameras import Cameras
from ai_wam.errors import InvalidValue
from ai_wam.utils.number_checks import check_numbers
from backbones.codecs.base import LatentCodec
from benchmarks.report.text_tables import aligned
from benchmarks.speed.measuring import shipped
from datamodules.checks.inspection import fitted_cameras, pose_errors, stacked
from datamodules.shards.reader import ShardSet

_COLUMNS = ("steps", "unseen", "one view", "median mm", "p95 mm", "p95 degrees", "read")
_THROUGH = ("median mm", "p95 mm", "p95 degrees", "read")


@dataclass(frozen=True)
class Reading:
    """Poses read back, step by step.

    Attributes:
        position: distance to the drawn pose in millimetres.
        rotation: angle to it in degrees.
        valid: whether the pose was measured.
    """

    position: Float[Tensor, " t"]
    rotation: Float[Tensor, " t"]
    valid: Bool[Tensor, " t"]

    def cells(self) -> list[str]:
        """Median and 95th percentiles of the valid steps, and their share."""
        if not self.valid.any():
            return ["-", "-", "-", "0.0 %"]
        kept, turned = self.position[self.valid], self.rotation[self.valid]
        numbers = (kept.median(), kept.quantile(0.95), turned.quantile(0.95))
        return [
            *(f"{float(number):.2f}" for number in numbers),
            f"{100 * float(self.valid.float().mean()):.1f} %",
        ]


@dataclass(frozen=True)
class Steps:
    """Recorded steps of one task.

    Attributes:
        views: by step, in how many pictures that blob is which is in fewest.
        drawn: read from the drawn images, rounded to 8 bits.
        coded: read after a video codec; None without one.
    """

    views: Float[Tensor, " t"]
    drawn: Reading
    coded: Reading | None

    def cells(self) -> list[str]:
        """A line of the table, without the task's name."""
        shares = (100 * float((self.views == count).float().mean()) for count in (0, 1))
        line = [str(len(self.views)), *(f"{share:.1f} %" for share in shares), *self.drawn.cells()]
        return line + (self.coded.cells() if self.coded is not None else [])


def report(shards: str, size: int = 128, backbone: str | None = None) -> None:
    """Print the table.

    Args:
        shards: a folder that `ai-wam collect` or `convert` wrote.
        size: height and width in pixels of the action images.
        backbone: a tiny YAML of configs/backbone, whose codec the images go through.
    """
    check_numbers("round_trip", at_least=16, size=size)
    codec = shipped(backbone).codec if backbone is not None else None
    found: dict[str, list[Steps]] = defaultdict(list)
    for task, steps in tqdm(_episodes(ShardSet(shards), size, codec), unit="episode", leave=False):
        found[task].append(steps)
    print(f"{shards}: action images of {size} pixels; unseen, one view: a blob is in no picture, in one")
    print("\n".join(table({task: joined(parts) for task, parts in found.items()}, backbone)))


def table(tasks: Mapping[str, Steps], codec: str | None) -> list[str]:
    """Lines of the tasks, and one of all their steps.

    Args:
        tasks: steps by task's name.
        codec: the backbone whose codec was used.
    """
    header = ["task", *_COLUMNS, *(f"{codec} {name}" for name in _THROUGH if codec is not None)]
    rows = [[name, *steps.cells()] for name, steps in tasks.items()]
    return aligned([header, *rows, ["all", *joined(list(tasks.values())).cells()]])


def joined(parts: list[Steps]) -> Steps:
    """The steps of several episodes or tasks, one after the other."""
    coded = [part.coded for part in parts if part.coded is not None]
    return Steps(
        torch.cat([part.views for part in parts]),
        _joined([part.drawn for part in parts]),
        _joined(coded) if coded else None,
    )


def _joined(parts: list[Reading]) -> Reading:
    names = ("position", "rotation", "valid")
    return Reading(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def _episodes(folder: ShardSet, size: int, codec: LatentCodec | None) -> Iterator[tuple[str, Steps]]:
    """Task and steps of every episode that has actions."""
    if not len(folder):
        raise InvalidValue("round_trip: the folder has no episodes")
    for index, entry in enumerate(folder.episodes):
        header = folder.header(index)
        if header.actions is None:
            continue
        cameras = stacked(fitted_cameras(folder, index, (size, size), range(entry.frames)))
        task = header.provenance.get("task", header.instructions[0])
        yield str(task), measured(torch.from_numpy(header.actions)[None], cameras, size, codec)


@torch.no_grad()
def measured(
    actions: Float[Tensor, "1 t 8"], cameras: Cameras, size: int, codec: LatentCodec | None
) -> Steps:
    """Draw an episode's actions, and read them back.

    Args:
        actions: world frame, absolute.
        cameras: leading dimensions "1 v t".
        size: height and width in pixels of the action images.
        codec: of the videos, if any.
    """
    tokenizer = ActionImageTokenizer()
    pixels = tokenizer.project(actions, cameras, (size, size))
    inside = ((pixels >= 0) & (pixels <= size)).all(dim=-1)  # NaN, behind a camera, is not
    images = (tokenizer.encode(actions, cameras, (size, size)) * 255).round() / 255
    coded = None
    if codec is not None:
        coded = _reading(tokenizer, _through(codec, images), cameras, actions)
    return Steps(
        inside.sum(dim=1).amin(dim=-1)[0].float(), _reading(tokenizer, images, cameras, actions), coded
    )


def _through(codec: LatentCodec, images: Float[Tensor, "1 v 3 t h w"]) -> Float[Tensor, "1 v 3 t h w"]:
    """Images after the codec; the last frame is repeated until it takes the clip."""
    frames, multiple = images.shape[3], codec.frame_multiple
    missing = -(frames - 1) % multiple
    video = torch.cat([images, images[:, :, :, -1:].expand(-1, -1, -1, missing, -1, -1)], dim=3)
    seen = codec.decode(codec.encode(2 * video[0] - 1))
    return ((seen + 1) / 2).clamp(0, 1)[None, :, :, :frames]


def _reading(
    tokenizer: ActionImageTokenizer,
    images: Float[Tensor, "1 v 3 t h w"],
    cameras: Cameras,
    actions: Float[Tensor, "1 t 8"],
) -> Reading:
    decoded = tokenizer.decode(images, cameras)
    return Reading(*pose_errors(decoded.actions[0], actions[0]), decoded.valid[0])


if __name__ == "__main__":
    auto_cli(report, as_positional=False)
