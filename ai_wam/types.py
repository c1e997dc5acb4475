"""The types that models, data and benchmarks exchange.

Letters, the same in every shape of the project:

    b batch        v views           t frames            h w pixels       c latent channels
    s segments     tl hl wl latent grid   l prompt tokens   n tokens      a action horizon

Video is float32 in [-1, 1], laid out "b v 3 t h w". Metres, radians, seconds. An action is "x y z, quaternion
x y z w, openness" (1 = open, continuous): the tool centre point's absolute pose in the world frame. Cameras
are `ai_wam.cameras.Cameras` (OpenCV axes). The noise level u in [0, 1] is the diffusion time, 1 = pure noise.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ai_wam.cameras import Cameras, CropResize
from ai_wam.episodes import Frame
from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import AnyPath
from ai_wam.utils.brief_repr import POSE
from ai_wam.utils.tensor_dataclass import TensorDataclass, is_blank

_MOST_NUMBERS = 2**31 - 1  # of one tensor, as convolution kernels index them


@dataclass(frozen=True)
class Clip:
    """Frames, rate, size and views of a sample: equal for a model, its data and its benchmark.

    Attributes:
        frames: number of video frames, the current one included.
        stride: control steps from one frame to the next.
        control_hz: control steps per second.
        size: image height and width in pixels.
        views: camera names, in the model's order; the first one is the frame of reference for the rays.
    """

    frames: int = 9
    stride: int = 4
    control_hz: float = 20.0
    size: tuple[int, int] = (64, 64)
    views: tuple[str, ...] = ("front", "left_shoulder")

    def __post_init__(self) -> None:
        rate = 0 < self.control_hz < math.inf  # false for NaN too
        if self.frames < 2 or self.stride < 1 or not rate or min(self.size) < 1 or not self.views:
            raise InvalidValue(
                f"{self}: frames must be >= 2, stride >= 1, control_hz > 0 and finite, size positive and "
                "views not empty"
            )
        most = _MOST_NUMBERS // (3 * math.prod(self.size))
        if self.frames > most:
            raise InvalidValue(
                f"{self}: the video of one view would have 2^31 numbers or more, which convolutions cannot "
                f"index; at this size at most {most} frames are possible, and memory ends long before"
            )

    @property
    def seconds_per_frame(self) -> float:
        """Time from one frame to the next."""
        return self.stride / self.control_hz


@dataclass(frozen=True)
class LatentSpec:
    """The latents of a backbone, as canvas, loss and sampling need them.

    Attributes:
        channels: latent channels c.
        spatial_stride: pixels per latent cell, both ways.
        temporal_stride: video frames per latent frame; the first latent frame holds the first frame alone.
        frame_multiple: clips of frame_multiple * k + 1 frames are valid.
        patch: latent cells per token, both ways.
        patch_time: latent frames per token; segments are filled up to a multiple of it.
        pack_axis: how segments share the canvas.
        time: whether all latents share one diffusion time ("shared"), or given frames or tokens have their
            own, that of clean latents.
        rays: whether the rays of the views are among the conditions.
        known_observation: whether the known latents of the observation are among the conditions.
        known_action: whether those of the actions are.
        only_grid: the one latent grid that the network has positions for; None where any will do.
    """

    channels: int
    spatial_stride: int
    temporal_stride: int
    frame_multiple: int
    patch: int = 2
    patch_time: int = 1
    pack_axis: Literal["time", "width"] = "time"
    time: Literal["shared", "per_frame", "per_token"] = "shared"
    rays: bool = True
    known_observation: bool = True
    known_action: bool = False
    only_grid: tuple[int, int] | None = None

    def latent_frames(self, frames: int) -> int:
        """Latent frames of a clip.

        Raises:
            ValueError: a number of frames the codec would truncate or pad.
        """
        if (frames - 1) % self.frame_multiple:
            lower = (frames - 1) // self.frame_multiple * self.frame_multiple + 1
            raise InvalidValue(
                f"a clip of {frames} frames does not fit this backbone: it takes {self.frame_multiple}k + 1 "
                f"frames, such as {lower} or {lower + self.frame_multiple}; change clip.frames"
            )
        return (frames - 1) // self.temporal_stride + 1

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the latent grid of an image.

        Raises:
            ValueError: a size that is no multiple of a token's pixels, or not the only one there is.
        """
        token = self.spatial_stride * self.patch
        if size[0] % token or size[1] % token:
            raise InvalidValue(
                f"images of {size[0]} x {size[1]} pixels do not fit this backbone: "
                f"both must be multiples of {token}; change clip.size"
            )
        grid = (size[0] // self.spatial_stride, size[1] // self.spatial_stride)
        if self.only_grid not in (None, grid):
            raise InvalidValue(
                f"images of {size[0]} x {size[1]} pixels do not fit this backbone: its learned positions are "
                f"for {' x '.join(str(n * self.spatial_stride) for n in self.only_grid or ())}; "
                "change clip.size"
            )
        return grid


@dataclass(frozen=True, repr=False)
class Committed(TensorDataclass):
    """Actions that will be carried out whatever is planned now: the end of the last chunk.

    Attributes:
        actions: poses and openness at the clip's frame times after the observation.
        valid: False where nothing is committed; what is committed comes first in its row.
    """

    actions: Float[Tensor, "b p 8"]
    valid: Bool[Tensor, "b p"]


@dataclass(frozen=True, repr=False)
class Observation(TensorDataclass):
    """Batched input of a policy.

    Attributes:
        video: the frames seen, the last one being now, in [-1, 1]; t = 1 for all policies so far.
        cameras: of those frames, leading dimensions "b v t".
        view_mask: False where a view is missing; its video is then zero.
        action: the current pose and openness.
        seconds: time since each row's episode began.
        prompts: one instruction per row.
        episodes: a name per row, stable over its episode; seeds what a policy draws.
        committed: actions carried out while the policy computes; None where the world waits for it.
    """

    units: ClassVar[Mapping[str, str]] = {
        "video": "in [-1, 1]",
        "action": POSE,
    }
    video: Float[Tensor, "b v 3 t h w"]
    cameras: Cameras
    view_mask: Bool[Tensor, "b v"]
    action: Float[Tensor, "b 8"]
    seconds: Float[Tensor, "b"]
    prompts: tuple[str, ...]
    episodes: tuple[str, ...]
    committed: Committed | None = None

    @classmethod
    def from_frames(
        cls, frames: Sequence[Frame], prompts: Sequence[str], episodes: Sequence[str], clip: Clip
    ) -> "Observation":
        """Stack one frame per row into the model's views and size.

        Raises:
            ValueError: a frame without the current pose, or without any of the clip's views.
        """
        rows = [_row(frame, clip) for frame in frames]
        video, intrinsics, poses, masks, actions = zip(*rows, strict=True)
        return cls(
            video=torch.stack(video)[:, :, :, None],
            cameras=Cameras(torch.stack(intrinsics)[:, :, None], torch.stack(poses)[:, :, None]),
            view_mask=torch.stack(masks),
            action=torch.stack(actions),
            seconds=torch.tensor([frame.seconds for frame in frames], dtype=torch.float32),
            prompts=tuple(prompts),
            episodes=tuple(episodes),
        )


@dataclass(frozen=True, repr=False)
class Encoded(TensorDataclass):
    """Outputs of a model's frozen encoders, from a cache (`ai-wam cache`) or computed.

    Attributes:
        first: latents of the first frame alone.
        video: latents of the whole clip; None where only the first frame is used.
        still: picture condition of an image-to-video model, of the first frame; None for others.
        images: tokens of the first frame, for models conditioned on pictures; None for others.
        cameras: what `VideoBackbone.encode_cameras` makes, for models that take it; None for others.
        first_action: latents of the first action image alone.
        action: latents of the action images; they come with `first_action`, from a cache only.
    """

    first: Float[Tensor, "b v c 1 lh lw"]
    video: Float[Tensor, "b v c tl lh lw"] | None = None
    still: Float[Tensor, "b v c tl lh lw"] | None = None
    images: Float[Tensor, "b v k d"] | None = None
    cameras: Float[Tensor, "b v e tl lh lw"] | None = None
    first_action: Float[Tensor, "b v c 1 lh lw"] | None = None
    action: Float[Tensor, "b v c tl lh lw"] | None = None

    @property
    def parts(self) -> dict[str, Tensor]:
        """The outputs that are not None, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, repr=False)
class Batch(TensorDataclass):
    """An observation, its future and its actions: what a task trains on.

    Attributes:
        video: the whole clip; frame 0 is the observation.
        cameras: leading dimensions "b v t".
        view_mask: False where a view is missing.
        video_valid: False on frames whose pictures are not there (not decoded; zero). Past the end of the
            recording the last frame repeats, which is valid to train on: the robot holds still.
        recorded: False where a frame repeats the recording's last one. Such frames were not measured, so no
            metric counts them.
        actions: pose and openness at every frame; zeros where not recorded.
        action_valid: False where no action was recorded.
        prompts: one instruction per row.
        keys: the sample's name: episode and first frame.
        encoded: cached latents of the pictures, which are then not decoded; None without a cache.
    """

    units: ClassVar[Mapping[str, str]] = {
        "video": "in [-1, 1]",
        "actions": POSE,
    }
    video: Float[Tensor, "b v 3 t h w"]
    cameras: Cameras
    view_mask: Bool[Tensor, "b v"]
    video_valid: Bool[Tensor, "b t"]
    recorded: Bool[Tensor, "b t"]
    actions: Float[Tensor, "b t 8"]
    action_valid: Bool[Tensor, "b t"]
    prompts: tuple[str, ...]
    keys: tuple[str, ...]
    encoded: Encoded | None = None

    def rows(self, index: Sequence[int]) -> "Batch":
        """The batch of some of the rows; of all in their order, the batch itself."""
        if list(index) == list(range(len(self.keys))):
            return self
        chosen = torch.tensor(list(index), dtype=torch.long, device=self.video.device)
        parts: dict[str, Any] = {
            name: value[: len(chosen)] if is_blank(value) else value[chosen]
            for name, value in vars(self).items()
            if isinstance(value, Tensor | Cameras)
        }
        prompts, keys = (tuple(names[i] for i in index) for names in (self.prompts, self.keys))
        if self.encoded is not None:
            parts["encoded"] = Encoded(**{name: each[chosen] for name, each in self.encoded.parts.items()})
        return replace(self, prompts=prompts, keys=keys, **parts)

    @property
    def observation(self) -> Observation:
        """What a policy sees of this batch: the first frame."""
        return Observation(
            video=self.video[:, :, :, :1],
            cameras=self.cameras[:, :, :1],
            view_mask=self.view_mask,
            action=self.actions[:, 0],
            seconds=torch.zeros(len(self.keys), device=self.video.device),
            prompts=self.prompts,
            episodes=self.keys,
        )


@dataclass(frozen=True, repr=False)
class ActionChunk(TensorDataclass):
    """The next actions of a policy.

    Attributes:
        actions: poses and openness at dt, 2 dt, ... after the observation.
        valid: False where the pose must not be executed (it is then a guess or NaN).
        confidence: in [0, 1].
        dt: seconds between two actions.
        generated: the policy's generated videos in [-1, 1], for reports: "observation" and "action_images".
        position_std: predicted standard deviation of the position per axis, metres, infinite where invalid;
            None for a policy that does not know. `confidence` mixes it with the rotation's.
        status: what became of each pose, `ai_wam.action_images.DecodeStatus`; None for a policy that reads no
            action images.
    """

    units: ClassVar[Mapping[str, str]] = {
        "actions": POSE,
        "dt": "seconds",
        "position_std": "metres",
    }
    actions: Float[Tensor, "b a 8"]
    valid: Bool[Tensor, "b a"]
    confidence: Float[Tensor, "b a"]
    dt: float
    generated: Mapping[str, Float[Tensor, "b v 3 t h w"]]
    position_std: Float[Tensor, "b a"] | None = None
    status: Int[Tensor, "b a"] | None = None


@runtime_checkable
class ClipEncoder(Protocol):
    """The part of a model that a cache of latents needs: its frozen encoders."""

    def encoders(self) -> dict[str, Any]:
        """The identity of its frozen encoders as JSON values; equal ones make equal latents."""
        ...

    def encode_batch(self, batch: Batch, actions: bool) -> Encoded:
        """Latents of decoded clips; of action images only if `actions`."""
        ...

    def keep_prompts(self, folder: AnyPath, prompts: Sequence[str] = ()) -> bool:
        """Look for embeddings of prompts in a folder, and put those of some prompts there.

        Returns:
            Whether there is anything to keep; not for encoders that cost nothing.
        """
        ...


@runtime_checkable
class Policy(Protocol):
    """The interface of a model for benchmarks. Rows are independent, so n simulators share one forward."""

    def reset(self, episodes: Sequence[str]) -> None:
        """Named episodes are about to begin: drop any state kept for them."""
        ...

    def predict_action(self, observation: Observation) -> ActionChunk:
        """The next actions of every row."""
        ...


@runtime_checkable
class ChecksClip(Protocol):
    """A policy that can act on some clips only, such as that of a server."""

    def check_clip(self, clip: Clip) -> None:
        """Refuse a clip on which it cannot act.

        Raises:
            ValueError: what it takes instead.
        """
        ...


@runtime_checkable
class MultiDecoderPolicy(Protocol):
    """A policy with several action decoders; tests run each of them."""

    def by_decoder(self, knows_std: bool) -> Mapping[str, Policy]:
        """The policy with each of its other decoders, by name.

        Args:
            knows_std: leave out decoders without standard deviations.
        """
        ...


def _row(frame: Frame, clip: Clip) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Video "v 3 h w", intrinsics, poses, view mask and action of one frame."""
    present = [name for name in clip.views if name in frame.views]
    if not present or frame.action is None:
        raise InvalidValue(
            f"a policy with views {list(clip.views)} needs at least one of them and the current pose; "
            f"this frame has views {sorted(frame.views)} and action {frame.action}"
        )
    h, w = clip.size
    video = torch.zeros(len(clip.views), 3, h, w)
    intrinsics = torch.eye(3).repeat(len(clip.views), 1, 1)
    poses = torch.eye(4).repeat(len(clip.views), 1, 1)
    for index, name in enumerate(clip.views):
        if name in frame.views:
            view = frame.views[name]
            fit = CropResize((view.image.shape[0], view.image.shape[1]), clip.size)
            video[index] = fit.images(torch.from_numpy(view.image.copy()).permute(2, 0, 1)) / 127.5 - 1
            intrinsics[index] = fit.intrinsics(torch.from_numpy(view.intrinsics).float())
            poses[index] = torch.from_numpy(view.world_from_camera)
    mask = torch.tensor([name in frame.views for name in clip.views])
    return video, intrinsics, poses, mask, torch.from_numpy(frame.action).float()
