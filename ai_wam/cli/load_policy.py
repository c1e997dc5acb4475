"""A trained policy from Python: pictures, cameras, an instruction and the present pose in, actions out."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from ai_wam.camera_checks import check_intrinsics, check_tool_near_pictures
from ai_wam.cameras import Cameras
from ai_wam.cli.checkpoint_settings import check_plans, hyperparameters
from ai_wam.cli.load_task import load_model
from ai_wam.episodes import Frame, View
from ai_wam.errors import InvalidType, InvalidValue
from ai_wam.types import ActionChunk, Clip, Observation, Policy
from ai_wam.utils.class_paths import class_path
from datamodules.image_datamodule import checked_pose
from tasks.base import WorldActionTask


class LoadedPolicy:
    """A policy that takes what a robot has: pictures by name, cameras, words, a pose.

    Args:
        model: a trained task.
        clip: its views, size and rate.

    Attributes:
        model: the task, a LightningModule; `policy.model.to("cuda")` moves it.
        clip: `clip.views` are the names of the pictures it needs.
    """

    def __init__(self, model: Policy, clip: Clip) -> None:
        self.model, self.clip = model, clip

    def predict_action(
        self,
        images: Mapping[str, UInt8[np.ndarray, "h w 3"]],
        cameras: Cameras,
        instruction: str,
        pose: Sequence[float] | Float[np.ndarray, "8"],
        seconds: float = 0.0,
        episode: str = "",
    ) -> ActionChunk:
        """The next actions, exactly as in a test of the policy.

        Args:
            images: RGB by view, of any size: they are cropped and resized as in training.
            cameras: of these pictures in the order of `images`, leading dimension "v", K in their pixels.
            instruction: what is to be done.
            pose: the tool now, in the cameras' world: x y z in metres, quaternion x y z w, openness (1 =
                open).
            seconds: since the episode began.
            episode: its name; it and the time alone decide what the policy draws.

        Returns:
            One row of actions at `dt`, 2 `dt`, ... from now; `actions[0]` are poses in the same world.

        Raises:
            ValueError: other views than the model's, cameras of another number, a pose that is none, or
                one far outside of every picture.
        """
        frame = Frame(self._views(images, cameras), checked_pose(list(pose)), seconds)
        check_tool_near_pictures(frame)
        observation = Observation.from_frames([frame], [instruction], [episode], self.clip)
        return self.model.predict_action(observation)

    def _views(self, images: Mapping[str, UInt8[np.ndarray, "h w 3"]], cameras: Cameras) -> dict[str, View]:
        if set(images) != set(self.clip.views):
            raise InvalidValue(
                f"images are given for the views {sorted(images)}, the model has {sorted(self.clip.views)}; "
                "give one of each"
            )
        if tuple(cameras.shape) != (len(images),):
            raise InvalidValue(
                f"cameras have leading dimensions {tuple(cameras.shape)}, expected ({len(images)},): one for "
                "each image, in their order"
            )
        views = {}
        for index, (name, image) in enumerate(images.items()):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise InvalidValue(f"the image {name!r} is {image.dtype} {image.shape}, expected uint8 h w 3")
            k = cameras.intrinsics[index].double().cpu().numpy()
            check_intrinsics(k[None], (image.shape[0], image.shape[1]), f"view {name!r}")
            views[name] = View(image, k, cameras.world_from_camera[index].double().cpu().numpy())
        return views


def load_policy(path: str, *changes: str, device: str = "cpu") -> LoadedPolicy:
    """The policy of a checkpoint, ready to act.

        policy = load_policy("last.ckpt")
        chunk = policy.predict_action(images, cameras, "reach the red sphere", pose)

    Args:
        path: a .ckpt file of `ai-wam fit`.
        changes: settings to be set otherwise, as on the command line: "sampling.steps=10".
        device: where it computes.

    Raises:
        TypeError: a checkpoint of something that does not act.
        ValueError: no checkpoint, or a plan that the model was not trained on.
    """
    model = load_model(path, *changes).to(device)
    clip = getattr(model, "clip", None)
    if not isinstance(model, Policy) or not isinstance(clip, Clip):
        raise InvalidType(f"{path!r} holds a {class_path(model)}, which is no policy")
    if isinstance(model, WorldActionTask):
        check_plans(hyperparameters(path), [model.control_plan.name])
    return LoadedPolicy(model, clip)
