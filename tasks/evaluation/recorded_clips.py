"""Evaluation on recorded clips: what a plan generates, beside a hold-still floor and the codec's ceiling.

    ai-wam test --ckpt_path x.ckpt --data configs/data/shards.yaml --data.test data/test

The same metrics are computed of several arms: the model, by its decoded images; its learned action head
(`head`), where it has one, and poses read off the latents (`latent`), where it acts by them; the floor, which
copies the first frame (`copy_first_frame`) or holds the present pose (`hold_still`); and the ceiling
(`codec`), the recorded video or the recorded actions' images encoded and decoded.

Only recorded frames count: past the end of an episode a window repeats its last frame, which the floor gets
right. Errors of actions are those of an arm's valid steps, whose share is the metric `valid`. `hold_still` is
evaluated on the model's valid steps, so that both errors are of the same steps.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchmetrics import Metric, MetricCollection, SumMetric

from ai_wam.action_images import ActionImageTokenizer, DecodedActions, tool_points
from ai_wam.cameras import Cameras
from ai_wam.canvas import Kind, Plan
from ai_wam.files.atomic import write_json
from ai_wam.types import Batch
from ai_wam.utils.class_paths import class_path
from ai_wam.utils.counted import counted
from ai_wam.utils.run_folders import own_folder
from tasks.metrics.action import ActionAccuracy
from tasks.metrics.networks import Extractor
from tasks.metrics.tracking import Tracking
from tasks.metrics.video import FrechetVideoDistance, VideoQuality

Videos = Mapping[Kind, Float[Tensor, "b v 3 _ h w"]]
Values = dict[str, dict[str, float]]  # of metrics, by arm and name
_BASELINE = {Kind.VIDEO: "copy_first_frame", Kind.ACTION: "hold_still"}
_ARMS = ("model", "head", "latent", *_BASELINE.values(), "codec")


@dataclass(frozen=True)
class ClipEvaluation:
    """Settings of the evaluation of recorded clips by `ai-wam test`.

    Attributes:
        plans: by name; the plans trained on, if left out.
        networks: files of the networks of video metrics, by the metric's name: `lpips_alex`, `lpips_vgg`,
            `fvd_i3d` ...; see `tasks.metrics.networks`. Metrics without a file are left out.
    """

    plans: list[str] | None = None
    networks: dict[str, str] | None = None


class ClipEvaluator:
    """The metrics of one plan.

    Metrics of generated video are VideoQuality and the configured FVDs, of generated actions ActionAccuracy;
    where the video is given (labeling) the three points drawn of the tool are Tracking's points too. A row
    whose actions are not recorded does not count in plans that need them.

    Attributes:
        plan: what is evaluated.
        kinds: what it generates.

    Args:
        chosen: the plan.
        tokenizer: how actions are drawn.
        networks: of video metrics, by name, as `load_networks` gives them.
        device: where the metrics live.
        readings: of decoders that are evaluated beside the geometric one: `head`, `latent`.
    """

    def __init__(
        self,
        chosen: Plan,
        tokenizer: ActionImageTokenizer,
        networks: Mapping[str, torch.nn.Module],
        device: torch.device,
        readings: Sequence[str] = (),
    ) -> None:
        self.plan, self.tokenizer, self._readings = chosen, tokenizer, readings
        self.kinds = [kind for kind in Kind if any(self._generated(kind, 2))]
        self.clips = SumMetric().to(device)
        self._metrics: dict[tuple[Kind, str], MetricCollection] = {}
        for kind in self.kinds:
            beside = readings if kind is Kind.ACTION else ()
            for arm in ("model", *beside, _BASELINE[kind], "codec"):
                metrics = _of_video(networks) if kind is Kind.VIDEO else _of_actions(chosen)
                # Compute groups would merge different metrics whose states happen to be equal.
                self._metrics[kind, arm] = MetricCollection(metrics, compute_groups=False).to(device)

    def update(
        self,
        batch: Batch,
        cameras: Cameras,
        model: Videos,
        codec: Videos,
        read: Mapping[str, DecodedActions],
    ) -> None:
        """Add a batch.

        Args:
            batch: the recorded clips.
            cameras: those that the action images are drawn for.
            model: what was generated.
            codec: the recorded clips, encoded and decoded.
            read: poses of generated actions by decoder: `geometric`, and the `readings`.
        """
        rows = batch.action_valid.all(1) | (not self.plan.needs_actions)
        self.clips.update(rows.sum())
        shown = batch.view_mask & rows[:, None]
        if Kind.VIDEO in self.kinds:
            self._videos(batch, shown, model[Kind.VIDEO], codec[Kind.VIDEO])
        if Kind.ACTION in self.kinds:
            self._actions(batch, shown, cameras, read, codec[Kind.ACTION])

    def compute(self) -> Values:
        """Values over all ranks; metrics without any sample are left out."""
        arms: Values = {}
        for (_, arm), metrics in sorted(self._metrics.items(), key=lambda item: _ARMS.index(item[0][1])):
            values = {name: float(value) for name, value in metrics.compute().items()}
            arms.setdefault(arm, {}).update({k: v for k, v in values.items() if not math.isnan(v)})
        return arms

    def _generated(self, kind: Kind, views: int) -> list[bool]:
        """Whether the plan generates anything of a kind, by view."""
        segments = [each for each in self.plan.segments(views, 2) if each.kind is kind]
        return [each.given < each.length for each in segments]

    def _videos(self, batch: Batch, shown: Bool[Tensor, "b v"], model: Tensor, codec: Tensor) -> None:
        views = torch.tensor(self._generated(Kind.VIDEO, shown.shape[1]), device=shown.device)
        counted = (shown & views)[:, :, None] & (batch.video_valid & batch.recorded)[:, None]
        still = batch.video[:, :, :, :1].expand_as(batch.video)
        for arm, video in (("model", model), ("copy_first_frame", still), ("codec", codec)):
            self._metrics[Kind.VIDEO, arm].update(video=video, truth=batch.video, counted=counted)

    def _actions(
        self,
        batch: Batch,
        shown: Bool[Tensor, "b v"],
        cameras: Cameras,
        model: Mapping[str, DecodedActions],
        codec: Tensor,
    ) -> None:
        size = (batch.video.shape[-2], batch.video.shape[-1])
        truth, visible = self._tracks(batch.actions, cameras, size)
        held = batch.actions[:, :1].expand_as(batch.actions)
        tracks, seen = self._tracks(held, cameras, size)
        arms = {}
        kept = self.tokenizer.decode((codec + 1) / 2, cameras, batch.view_mask)
        for arm, read in (("model", model["geometric"]), ("codec", kept)):
            arms[arm] = (read.actions, read.valid, read.pixels.to(truth))
        arms["hold_still"] = (held, arms["model"][1], tracks.masked_fill(~seen[..., None], math.nan))
        for arm in self._readings:
            other = model[arm]
            tracks, seen = self._tracks(other.actions, cameras, size)
            arms[arm] = (other.actions, other.valid, tracks.masked_fill(~seen[..., None], math.nan))
        for arm, (actions, valid, tracks) in arms.items():
            self._metrics[Kind.ACTION, arm].update(  # each metric takes its own arguments
                actions=actions[:, 1:],
                valid=valid[:, 1:],
                batch=batch,
                tracks=tracks,
                truth=truth,
                visible=visible,
                size=size,
                counted=shown[:, :, None] & batch.recorded[:, None],
            )

    def _tracks(
        self, actions: Float[Tensor, "b t 8"], cameras: Cameras, size: tuple[int, int]
    ) -> tuple[Float[Tensor, "b v t 3 2"], Bool[Tensor, "b v t 3"]]:
        """Pixels of the points drawn, and whether they lie in the picture."""
        points = tool_points(actions.double(), self.tokenizer.axis_length)
        points = points[:, None].expand(*cameras.shape, 3, 3)
        pixels, _, visible = cameras.to(torch.float64).project(points, size)
        return pixels, visible


def _of_video(networks: Mapping[str, torch.nn.Module]) -> dict[str, Metric | MetricCollection]:
    perceptual = {name: each for name, each in networks.items() if not isinstance(each, Extractor)}
    extractors = {name: each for name, each in networks.items() if isinstance(each, Extractor)}
    distances = {name: FrechetVideoDistance(name, each, each.features) for name, each in extractors.items()}
    return {"quality": VideoQuality(perceptual), **distances}


def _of_actions(chosen: Plan) -> dict[str, Metric | MetricCollection]:
    given = chosen.video.given == "all"
    return {"accuracy": ActionAccuracy(), **({"tracking": Tracking()} if given else {})}


def report_metrics(
    module: LightningModule,
    clips: Mapping[str, int],
    found: Mapping[str, Values],
    left_out: Mapping[str, str],
) -> None:
    """Log metrics of recorded clips, print them, and write them to metrics.json in the trainer's log folder.

    Args:
        module: whose test has ended.
        clips: how many, by plan.
        found: metrics by plan, arm and name.
        left_out: metrics that are missing, and why.
    """
    for plan, arms in found.items():
        for arm, figures in arms.items():
            prefix = f"test/{plan}/" if arm == "model" else f"test/{plan}/{arm}/"
            module.log_dict({prefix + name: value for name, value in figures.items()})
    trainer = module.trainer
    folder = own_folder(trainer)  # asks all ranks
    content = {
        "task": class_path(module),
        "config": json.loads(json.dumps(dict(module.hparams), default=class_path)),
        "checkpoint": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
        "plans": {plan: {"clips": clips[plan], "arms": arms} for plan, arms in found.items()},
        "left_out": dict(left_out),
    }
    if trainer.is_global_zero:
        write_json(folder / "metrics.json", content)
        tables = [f"{plan}: {counted(clips[plan], 'clip')}\n{table(arms)}" for plan, arms in found.items()]
        missing = [f"{name} is left out: {why}" for name, why in left_out.items()]
        rank_zero_info("\n".join([*tables, *missing, f"metrics: {folder / 'metrics.json'}"]))


def table(arms: Values) -> str:
    """A line per metric, a column per arm."""
    names = dict.fromkeys(name for figures in arms.values() for name in figures)
    rows = [["", *arms]]
    for name in names:
        rows.append([name, *(f"{arms[arm][name]:.4g}" if name in arms[arm] else "-" for arm in arms)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            word.ljust(width) if column == 0 else word.rjust(width)
            for column, (word, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
