"""The canvas: which segments a model sees at once, and which of their latent frames are given.

For V views the canvas holds [video_0 | action_0 | video_1 | action_1 | ...], each segment encoded on its own.
A plan says which segments exist and how much of each is given clean; the rest is generated. Acting,
joint generation, labeling and simulating are six plans over one canvas (arXiv 2604.06168, section 3);
annotation, which labels a video without knowing its first action, is ours. The same `plan` function and the
same `Canvas` serve training, sampling and evaluation.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional

from ai_wam.cameras import Cameras
from ai_wam.errors import InvalidValue
from ai_wam.types import LatentSpec
from ai_wam.utils.tensor_dataclass import TensorDataclass

RAY_CHANNELS = 6


class Kind(Enum):
    """What a segment shows."""

    VIDEO = "video"
    ACTION = "action"


@dataclass(frozen=True)
class Rule:
    """How one segment takes part: how many latent frames it has, and how many of them are given."""

    length: Literal["all", "first"]
    given: Literal["all", "first", "none"]


_GENERATED = Rule("all", "first")
_UNKNOWN = Rule("all", "none")
_GIVEN = Rule("all", "all")
_FIRST_ONLY = Rule("first", "first")


@dataclass(frozen=True)
class Plan:
    """Which segments exist and what is given.

    Attributes:
        name: in YAML, logs and errors.
        video: rule of the observation segments.
        action: rule of the action segments; None leaves them out.
        first_video: rule of view 0's observation segment where it differs.
    """

    name: str
    video: Rule
    action: Rule | None
    first_video: Rule | None = None

    def segments(self, views: int, latent_frames: int) -> tuple["Segment", ...]:
        """The segments in canvas order, view by view."""
        lengths = {"all": latent_frames, "first": 1, "none": 0}
        found = []
        for view in range(views):
            for kind, rule in ((Kind.VIDEO, self.video_of(view)), (Kind.ACTION, self.action)):
                if rule is not None:
                    found.append(Segment(kind, view, lengths[rule.length], lengths[rule.given]))
        return tuple(found)

    def video_of(self, view: int) -> Rule:
        """The rule of a view's observation segment."""
        return self.first_video if view == 0 and self.first_video is not None else self.video

    @property
    def lengths(self) -> tuple[str | None, ...]:
        """How long its segments are; canvases of plans of equal lengths can be joined."""
        first = self.first_video or self.video
        return first.length, self.video.length, None if self.action is None else self.action.length

    @property
    def needs_video(self) -> bool:
        """Whether observation frames after the first one take part."""
        return self.video.length == "all" or (
            self.first_video is not None and self.first_video.length == "all"
        )

    @property
    def knows_cameras(self) -> bool:
        """Whether the future of a moving camera is known; while acting, the wrist's is not."""
        return self.video.given == "all" or (self.action is not None and self.action.given == "all")

    @property
    def needs_actions(self) -> bool:
        """Whether recorded actions take part, as condition or as truth."""
        return self.action is not None

    @property
    def generates_actions(self) -> bool:
        """Whether actions are generated."""
        return self.action is not None and self.action.given != "all"

    @property
    def knows_pose(self) -> bool:
        """Whether the first action is known."""
        return self.action is not None and self.action.given != "none"


_PLANS = {
    plan.name: plan
    for plan in (
        Plan("joint", video=_GENERATED, action=_GENERATED),
        Plan("policy", video=_FIRST_ONLY, action=_GENERATED),
        Plan("action_conditioned", video=_GENERATED, action=_GIVEN),
        Plan("labeling", video=_GIVEN, action=_GENERATED),
        Plan("annotation", video=_GIVEN, action=_UNKNOWN),
        Plan("video_only", video=_GENERATED, action=None),
        Plan("cross_view", video=_GENERATED, action=_GENERATED, first_video=_GIVEN),
    )
}


def plan(name: str) -> Plan:
    """The plan of a name.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    if name not in _PLANS:
        raise InvalidValue(f"unknown plan {name!r}; choose one of {', '.join(_PLANS)}")
    return _PLANS[name]


@dataclass(frozen=True)
class Segment:
    """One video or action video of one view on the canvas.

    Attributes:
        kind: what it shows.
        view: index of the camera.
        length: latent frames.
        given: how many of them, from the first, are given clean; on a joined canvas, in every row.
        still: the first frame is repeated over the whole length (where segments must be equally long).
        pad: copies of the first frame put before it, for networks whose tokens span several frames; a
            picture condition beside the latents is not repeated (`Canvas.image`).
    """

    kind: Kind
    view: int
    length: int
    given: int
    still: bool = False
    pad: int = 0


@dataclass(frozen=True, repr=False)
class Canvas(TensorDataclass):
    """The packed latents of one plan, with everything that conditions their denoising.

    Attributes:
        segments: in packing order.
        axis: along which they are packed: "time", or "width" where temporal attention sees one pixel only.
        clean: clean latents; where they are to be generated, the truth in training and zeros in sampling.
        given: True where the clean latents are given: never noised, never stepped, never in the loss.
        counted: True where the loss counts: generated, and the truth is known.
        condition: per position: rays of the view (Pluecker, frame of view 0 at time 0), given, is-action,
            and the given latents of the view's observation and of its actions at the same time, after the
            last given frame that frame's. Rays and latents where the spec says so.
        image: picture condition of an image-to-video model for each segment: latents of its first frame
            alone, as `VideoBackbone.encode_still` makes them, from the segment's first position on, padding
            or not, and zeros at the end of a padded one; None for other models.
        camera_latents: the view's cameras as `VideoBackbone.encode_cameras` makes them; None for models that
            know them by the rays of the condition alone.
        held: what the segments would be if nothing moved, the observation's first frame held and no action
            drawn; for networks that predict the change against it (`VideoBackbone.hold`), None for others.
    """

    segments: tuple[Segment, ...]
    axis: Literal["time", "width"]
    clean: Float[Tensor, "b c f h w"]
    given: Bool[Tensor, "b 1 f h w"]
    counted: Bool[Tensor, "b 1 f h w"]
    condition: Float[Tensor, "b k f h w"]
    image: Float[Tensor, "b c f h w"] | None = None
    camera_latents: Float[Tensor, "b e f h w"] | None = None
    held: Float[Tensor, "b c f h w"] | None = None

    def packed(self, parts: Sequence[Shaped[Tensor, "b c _ _ _"]]) -> Shaped[Tensor, "b c f h w"]:
        """The inverse of `unpack`; padding repeats a segment's first frame."""
        padded = [_padded(part, segment.pad) for segment, part in zip(self.segments, parts, strict=True)]
        return pack(padded, self.axis)

    @property
    def given_later(self) -> Bool[Tensor, "b 1 f h w"]:
        """Where frames after a segment's first one, and after its padding, are given."""
        parts = self.unpack(torch.ones_like(self.given))
        later = [torch.cat([~part[:, :, :1], part[:, :, 1:]], dim=2) for part in parts]
        return self.given & self.packed(later)

    def unpack(self, latents: Shaped[Tensor, "b c f h w"]) -> list[Shaped[Tensor, "b c _ _ _"]]:
        """The segments' latents, in order, without their padding."""
        if self.axis == "width":
            return list(latents.chunk(len(self.segments), dim=4))
        parts = latents.split([segment.pad + segment.length for segment in self.segments], dim=2)
        return [part[:, :, segment.pad :] for segment, part in zip(self.segments, parts, strict=True)]


def condition_channels(spec: LatentSpec) -> int:
    """Channels of `Canvas.condition`: rays, given, is-action, latents of observation and actions."""
    return spec.rays * RAY_CHANNELS + 2 + (spec.known_observation + spec.known_action) * spec.channels


def build_canvas(
    plan: Plan,
    spec: LatentSpec,
    size: tuple[int, int],
    cameras: Cameras,
    view_mask: Bool[Tensor, "b v"],
    first_video: Float[Tensor, "b v c 1 h w"],
    first_action: Float[Tensor, "b v c 1 h w"],
    video: Float[Tensor, "b v c tl h w"] | None = None,
    action: Float[Tensor, "b v c tl h w"] | None = None,
    latent_frames: int | None = None,
    stills: tuple[Float[Tensor, "b v c tl h w"], Float[Tensor, "b v c tl h w"]] | None = None,
    camera_latents: Float[Tensor, "b v e tl h w"] | None = None,
    prefix: Int[Tensor, "b"] | None = None,
) -> Canvas:
    """Pack latents by a plan.

    Args:
        plan: what takes part and what is given.
        spec: the backbone's latents.
        size: image height and width in pixels.
        cameras: of the clip's frames, leading dimensions "b v t"; t = 1 stands for cameras that do not move.
        view_mask: False where a view is missing: its positions are given as zeros and counted nowhere.
        first_video: latents of the first observation frame, encoded alone.
        first_action: latents of the first action image, encoded alone.
        video: latents of the whole observation clips, where known.
        action: latents of the whole action clips, where known.
        latent_frames: length of a full segment; needed only where neither clip is known.
        stills: for image-to-video models, the picture conditions of the first frames of the observation and
            of the action clip.
        camera_latents: of every view, for models that take them.
        prefix: latent frames after the first that every row's action segments are given besides, from
            `action`; none, if left out.

    Raises:
        ValueError: the plan gives what is not known.
    """
    known = video if video is not None else action
    if latent_frames is None:
        if known is None:
            raise InvalidValue(
                "build_canvas: latent_frames is needed where neither video nor action latents are given"
            )
        latent_frames = known.shape[3]
    views = view_mask.shape[1]
    segments = tuple(_fitted(each, spec, latent_frames) for each in plan.segments(views, latent_frames))
    rays = latent_rays(cameras, spec, size, latent_frames) if spec.rays else None
    calibrated = cameras.world_from_camera.isfinite().flatten(2).all(dim=2)  # b v
    parts: dict[str, list[Tensor]] = defaultdict(list)
    for segment in segments:
        is_video = segment.kind is Kind.VIDEO
        first, whole = (first_video, video) if is_video else (first_action, action)
        clean = _segment_latents(
            segment, first[:, segment.view], None if whole is None else whole[:, segment.view], plan
        )
        given = torch.zeros_like(clean[:, :1], dtype=torch.bool)
        given[:, :, : segment.given] = True
        if prefix is not None and not is_video:
            given |= _first(1 + prefix, segment.length)
        present = view_mask[:, segment.view, None, None, None, None]
        conditions = [] if rays is None else [rays[:, segment.view, :, : segment.length]]
        conditions += [given.to(clean), torch.full_like(clean[:, :1], float(not is_video))]
        if spec.known_observation:
            conditions.append(_known(plan.video_of(segment.view), segment, first_video, video))
        if spec.known_action:
            conditions.append(_known(plan.action, segment, first_action, action, prefix))
        # Without a calibration no action can be drawn, so nothing is known of it.
        truth = present if is_video else present & calibrated[:, segment.view, None, None, None, None]
        values = {
            "clean": clean * present,
            "given": given | ~present,
            "counted": ~given & truth,
            "condition": torch.cat(conditions, dim=1) * present,
        }
        if camera_latents is not None:
            values["camera_latents"] = camera_latents[:, segment.view, :, : segment.length] * present
        for name, value in values.items():
            parts[name].append(_padded(value, segment.pad))
        if stills is not None:
            picture = stills[0 if is_video else 1][:, segment.view, :, : segment.length] * present
            parts["image"].append(functional.pad(picture, (0, 0, 0, 0, 0, segment.pad)))
    packed = {name: pack(part, spec.pack_axis) for name, part in parts.items()}
    return Canvas(segments, spec.pack_axis, **packed)


def _known(
    rule: Rule | None, segment: Segment, first: Tensor, whole: Tensor | None, prefix: Tensor | None = None
) -> Tensor:
    """What is given of one kind in a segment's view, "b c l h w" for its frames, whatever the segment shows.

    Zeros where nothing is given; after the last given frame that frame again.

    Args:
        rule: of the kind in this view.
        segment: whose positions are conditioned.
        first: latents "b v c 1 h w" of the first frame.
        whole: latents "b v c tl h w", where they are known.
        prefix: frames after the first that every row is given besides.
    """
    first, length = first[:, segment.view], segment.length
    if rule is None or rule.given == "none":
        return torch.zeros_like(first).expand(-1, -1, length, -1, -1)
    if length == 1 or (rule != _GIVEN and prefix is None):
        return first.expand(-1, -1, length, -1, -1)
    assert whole is not None  # build_canvas refuses what gives it otherwise
    frames = torch.cat([first, whole[:, segment.view, :, 1:length]], dim=2)
    if rule == _GIVEN or prefix is None:
        return frames
    last = torch.minimum(torch.arange(length, device=prefix.device), prefix[:, None])
    return frames[torch.arange(len(last), device=last.device)[:, None], :, last].transpose(1, 2)


def _fitted(segment: Segment, spec: LatentSpec, latent_frames: int) -> Segment:
    """A segment as long as the network needs it: side by side all are equal, in time whole tokens."""
    if spec.pack_axis == "width" and segment.length == 1:
        return replace(segment, length=latent_frames, given=latent_frames, still=True)
    return replace(segment, pad=-segment.length % spec.patch_time)


def _first(counts: Int[Tensor, "b"], length: int) -> Bool[Tensor, "b 1 l 1 1"]:
    """True for so many of the first frames of every row."""
    return (torch.arange(length, device=counts.device) < counts[:, None])[:, None, :, None, None]


def _padded(part: Shaped[Tensor, "b c l h w"], pad: int) -> Shaped[Tensor, "b c m h w"]:
    """The first frame repeated `pad` times before it, given where it is."""
    return part if pad == 0 else torch.cat([part[:, :, :1].expand(-1, -1, pad, -1, -1), part], dim=2)


def _segment_latents(segment: Segment, first: Tensor, whole: Tensor | None, plan: Plan) -> Tensor:
    """The clean latents "b c l h w" of one segment: first frame encoded alone, then the rest, if known."""
    if segment.length == 1 or segment.still:
        return first.expand(-1, -1, segment.length, -1, -1)
    if whole is None:
        if segment.given > 1:
            raise InvalidValue(
                f"plan {plan.name!r} gives the whole {segment.kind.value} segment of view {segment.view}, "
                f"but its latents are unknown; pass them as `{segment.kind.value}`"
            )
        return torch.cat([first, torch.zeros_like(first).expand(-1, -1, segment.length - 1, -1, -1)], dim=2)
    return torch.cat([first, whole[:, :, 1 : segment.length]], dim=2)


def latent_rays(
    cameras: Cameras, spec: LatentSpec, size: tuple[int, int], latent_frames: int
) -> Float[Tensor, "b v 6 tl h w"]:
    """Pluecker rays at the latent grid's cell centres, in the frame of view 0 at time 0.

    Latent frame k stands for the camera at video frame k * temporal_stride, the last frame it holds. Computed
    in float64, which neither autocast nor TF32 touches; zeros where a calibration is lost.
    """
    cameras = cameras.to(torch.float64)
    frames = cameras.shape[2]
    times = [min(k * spec.temporal_stride, frames - 1) for k in range(latent_frames)]
    if frames == 1:
        times = [0]
    reference = cameras.world_from_camera[:, :1, :1]
    rays = cameras[:, :, times].relative_to(reference).plucker(size, spec.grid(size))  # b v tl h w 6
    rays = rays.permute(0, 1, 5, 2, 3, 4)
    return rays.nan_to_num(0).float().expand(-1, -1, -1, latent_frames, -1, -1)


def joined(canvases: Sequence[Canvas]) -> Canvas:
    """One canvas with the rows of all, whose segments are equally long: one forward serves several plans."""
    segments = tuple(
        replace(same[0], given=min(each.given for each in same))
        for same in zip(*(canvas.segments for canvas in canvases), strict=True)
    )
    tensors: dict[str, Any] = {
        name: torch.cat([getattr(canvas, name) for canvas in canvases])
        for name, value in vars(canvases[0]).items()
        if isinstance(value, Tensor)
    }
    return replace(canvases[0], segments=segments, **tensors)


def blank(canvas: Canvas) -> Canvas:
    """A canvas of the same segments on which nothing is known, given or counted."""
    zeros: dict[str, Any] = {
        name: torch.zeros_like(value) for name, value in vars(canvas).items() if isinstance(value, Tensor)
    }
    return replace(canvas, **zeros)


def pack(
    parts: Sequence[Shaped[Tensor, "b _ _ _ _"]], axis: Literal["time", "width"]
) -> Shaped[Tensor, "b c f h w"]:
    """Latents of segments side by side along the packing axis; `Canvas.unpack` is the inverse."""
    return torch.cat(list(parts), dim=4 if axis == "width" else 2)
