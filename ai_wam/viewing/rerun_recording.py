"""Scenes as a recording of the Rerun viewer (extra `view`).

Rerun's conventions for pinhole cameras are those of `ai_wam.cameras`: OpenCV axes (it calls them RDF), the
centre of pixel (0, 0) at (0.5, 0.5), and a transform of a camera that maps its coordinates to its parent's.
So K and `world_from_camera` are logged as they are; only the negative focal lengths of RLBench are turned.
Every scene is a tree of its own:

    SCENE/world/cameras/VIEW                      the frustum, in metres
    SCENE/world/cameras/VIEW/picture              what the camera saw
    SCENE/world/cameras/VIEW/action_image         the tokenizer's drawing of the recorded pose
    SCENE/world/cameras/VIEW/NAME                 further pictures, such as generated_action_image
    SCENE/world/recorded/tool, .../path           the tool's axes, and all its positions
    SCENE/world/predicted/tool, .../path, .../std the actions of the last chunk, and their deviations
    SCENE/openness/recorded, .../predicted        1 = open
    SCENE/instruction                             text

along the timelines `seconds` and `step`.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from tqdm import tqdm

from ai_wam.action_images import ActionImageTokenizer
from ai_wam.cameras import Cameras
from ai_wam.episodes import View
from ai_wam.errors import MissingPackage
from ai_wam.video import to_uint8
from ai_wam.viewing.scene import PredictedChunk, Scene, ShownFrame

_RECORDED, _VALID, _INVALID = (255, 255, 255), (255, 170, 0), (120, 120, 120)
_PATH, _POINT = 0.002, 0.006  # metres, radii of lines and of the tool centre point
_AXES = 0.1  # metres; as far from the tool centre point as the action image's other two points
_FRUSTUM = 0.5  # metres from a camera to its picture


def rerun() -> ModuleType:
    """Rerun's package.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import rerun
    except ImportError as error:
        raise MissingPackage("`ai-wam view` needs rerun-sdk: pip install 'ai-wam[view]'") from error
    return rerun


class SceneWriter:
    """Logs scenes into a recording.

    Args:
        recording: Rerun's `RecordingStream`; its sink is the caller's choice.
        tokenizer: draws the action images.
        jpeg: quality of the pictures, 1 to 100; None for PNG, which keeps every pixel.
    """

    def __init__(
        self, recording: Any, tokenizer: ActionImageTokenizer | None = None, jpeg: int | None = None
    ) -> None:
        self._rr, self._recording, self._jpeg = rerun(), recording, jpeg
        self._tokenizer = tokenizer or ActionImageTokenizer()
        self._panels: dict[str, dict[str, list[str]]] = {}  # names of pictures by scene and view
        self._eyes: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # from where to where, by scene
        self._root, self._hz = "", 1.0
        self._shown: dict[str, View] = {}  # cameras as last logged

    def write(self, scene: Scene) -> None:
        """Log a scene, with a progress bar."""
        self._root, self._hz = scene.name, scene.hz
        self._shown, self._panels[scene.name] = {}, {}
        self._log(self._rr.ViewCoordinates.RIGHT_HAND_Z_UP, "world", static=True)
        self._log(self._rr.TextDocument(scene.instruction or "(no instruction)"), "instruction", static=True)
        for chunk in scene.chunks:
            self._chunk(chunk)
        frames = tqdm(scene.frames, desc=scene.name, total=scene.count, unit="frame", leave=False)
        positions = [self._frame(shown) for shown in frames]
        path = np.array([position for position in positions if position is not None])
        if len(path):
            strip = self._rr.LineStrips3D([path], colors=[_RECORDED], radii=_PATH)
            self._log(strip, "world", "recorded", "path", static=True)
            self._place_eye(path.mean(axis=0))

    def finish(self) -> None:
        """Send the viewer's layout: a tab per scene."""
        import rerun.blueprint as rrb

        tabs = [self._layout(rrb, name, views) for name, views in self._panels.items()]
        whole = rrb.Tabs(*tabs) if len(tabs) > 1 else tabs[0]
        panels = (rrb.BlueprintPanel(state="collapsed"), rrb.SelectionPanel(state="collapsed"))
        time = rrb.TimePanel(state="collapsed", timeline="seconds")
        self._recording.send_blueprint(rrb.Blueprint(whole, *panels, time))
        self._recording.flush()

    def _place_eye(self, target: Float[np.ndarray, "3"]) -> None:
        """Look at the tool from behind and above the first camera that has a place."""
        places = [view.world_from_camera[:3, 3] for view in self._shown.values()]
        if known := [place for place in places if np.isfinite(place).all()]:
            position = target + 1.6 * (known[0] - target) + [0.0, 0.0, 0.5]
            self._eyes[self._root] = position, target

    def _path(self, *parts: str) -> str:
        return str(self._rr.new_entity_path([self._root, *parts]))

    def _log(self, what: Any, *parts: str, static: bool = False) -> None:
        self._recording.log(self._path(*parts), what, static=static, strict=True)

    def _at(self, seconds: float) -> None:
        self._recording.set_time("seconds", duration=seconds)
        self._recording.set_time("step", sequence=round(seconds * self._hz))

    def _frame(self, shown: ShownFrame) -> Float[np.ndarray, "3"] | None:
        """Log one instant; gives the tool's position, if it is known."""
        frame = shown.frame
        self._at(frame.seconds)
        action = None if frame.action is None or not np.isfinite(frame.action).all() else frame.action
        for name, view in frame.views.items():
            self._camera(name, view)
            pictures = {"picture": view.image, **shown.generated.get(name, {})}
            if action is not None:
                pictures["action_image"] = draw(self._tokenizer, action, view)
            self._pictures(name, pictures)
        if action is None or not action[3:7].any():
            return None
        self._tool("recorded", action)
        return np.asarray(action[:3])

    def _camera(self, name: str, view: View) -> None:
        """Log a camera where it differs from the instant before."""
        known = self._shown.get(name)
        if known is not None and _same_camera(known, view):
            return
        self._shown[name] = view
        k, pose = upright(view.intrinsics, view.world_from_camera)
        place = ("world", "cameras", name)
        if not (np.isfinite(k).all() and np.isfinite(pose).all()):  # the calibration is lost
            self._log(self._rr.Clear(recursive=False), *place)
            return
        h, w = view.image.shape[:2]
        self._log(self._rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]), *place)
        pinhole = self._rr.Pinhole(
            image_from_camera=k,
            resolution=[w, h],
            camera_xyz=self._rr.ViewCoordinates.RDF,
            image_plane_distance=_FRUSTUM,
        )
        self._log(pinhole, *place)

    def _pictures(self, view: str, pictures: Mapping[str, UInt8[np.ndarray, "h w 3"]]) -> None:
        panels = self._panels[self._root].setdefault(view, [])
        for name, picture in pictures.items():
            if name not in panels:
                panels.append(name)
            data, media = encoded(picture, self._jpeg)
            image = self._rr.EncodedImage(contents=data, media_type=media)
            self._log(image, "world", "cameras", view, name)

    def _tool(self, kind: str, action: Float[np.ndarray, "8"]) -> None:
        place = ("world", kind, "tool")
        unit = action[3:7] / np.linalg.norm(action[3:7])
        pose = self._rr.Transform3D(translation=action[:3], quaternion=unit)  # x y z w, as Rerun's
        self._log(pose, *place)
        self._log(self._rr.TransformAxes3D(_AXES), *place)
        colour = _openness_colour(float(action[7]))
        self._log(self._rr.Points3D([[0, 0, 0]], radii=_POINT, colors=[colour]), *place)
        self._log(self._rr.Scalars(float(action[7])), "openness", kind)

    def _chunk(self, chunk: PredictedChunk) -> None:
        """Log a chunk: path and deviations at the time of prediction, poses when they are due."""
        known = np.isfinite(chunk.actions).all(axis=1) & chunk.actions[:, 3:7].any(axis=1)
        self._at(chunk.seconds)
        points, valid = chunk.actions[known, :3], chunk.valid[known]
        colours = np.where(valid[:, None], _VALID, _INVALID)
        path = self._rr.LineStrips3D([points] if len(points) else [], colors=[_VALID], radii=_PATH)
        self._log(path, "world", "predicted", "path")
        self._log(self._rr.Points3D(points, colors=colours, radii=_POINT), "world", "predicted", "points")
        if chunk.position_std is not None:
            self._deviations(points, chunk.position_std[known], valid)
        for seconds, action, fine in zip(chunk.due, chunk.actions, known, strict=True):
            if fine:
                self._at(float(seconds))
                self._tool("predicted", action)

    def _deviations(
        self, points: Float[np.ndarray, "a 3"], std: Float[np.ndarray, "a"], valid: Bool[np.ndarray, "a"]
    ) -> None:
        """Balls whose radius is one standard deviation."""
        sure = valid & np.isfinite(std)
        half = np.repeat(std[sure, None], 3, axis=1)
        balls = self._rr.Ellipsoids3D(centers=points[sure], half_sizes=half, colors=[(*_VALID, 60)])
        self._log(balls, "world", "predicted", "std")

    def _layout(self, rrb: Any, name: str, views: Mapping[str, Sequence[str]]) -> Any:
        """Space on the left; a column of pictures per view, openness and instruction on the right."""
        self._root = name
        cameras = {view: self._path("world", "cameras", view) for view in views}
        hidden = [
            f"- {self._path('world', 'cameras', view, panel)}"
            for view, panels in views.items()
            for panel in panels
            if panel != "picture"
        ]
        world = self._path("world")
        eye = None
        if name in self._eyes:
            position, target = self._eyes[name]
            eye = rrb.EyeControls3D(position=position, look_target=target, eye_up=[0, 0, 1])
        shown = [f"+ {world}/**", *hidden]
        space = rrb.Spatial3DView(origin=world, contents=shown, name="space", eye_controls=eye)
        columns = [
            rrb.Vertical(
                *[self._picture_view(rrb, cameras[view], view, panel) for panel in panels], name=view
            )
            for view, panels in views.items()
        ]
        right = rrb.Vertical(
            rrb.Horizontal(*columns),
            rrb.TimeSeriesView(
                origin=self._path("openness"),
                name="openness, 1 = open",
                axis_y=rrb.ScalarAxis(range=(-0.05, 1.05)),
            ),
            rrb.TextDocumentView(origin=self._path("instruction"), name="instruction"),
            row_shares=[6, 2, 1],
        )
        return rrb.Horizontal(space, right, name=name)

    def _picture_view(self, rrb: Any, camera: str, view: str, panel: str) -> Any:
        """A picture; over the camera's own, the paths and tools projected into it."""
        tools = [f"+ {self._path('world', kind)}/**" for kind in ("recorded", "predicted")]
        contents = [f"+ {camera}/{panel}", *(tools if panel == "picture" else [])]
        return rrb.Spatial2DView(origin=camera, contents=contents, name=f"{view}: {panel}")


@contextmanager
def recording_of(application: str) -> Iterator[Any]:
    """A recording without the timelines of the machine that writes it; faults of ours are errors."""
    rr = rerun()
    stream = rr.RecordingStream(application)
    stream.set_log_time_enabled(False)
    stream.set_log_tick_enabled(False)
    yield stream
    stream.flush()
    stream.disconnect()


def draw(
    tokenizer: ActionImageTokenizer, action: Float[np.ndarray, "8"], view: View
) -> UInt8[np.ndarray, "h w 3"]:
    """The action image of one pose in one camera, of its picture's size."""
    h, w = view.image.shape[:2]
    camera = Cameras(
        torch.tensor(view.intrinsics, dtype=torch.float64)[None, None, None],
        torch.tensor(view.world_from_camera, dtype=torch.float64)[None, None, None],
    )
    drawn = tokenizer.encode(torch.tensor(action, dtype=torch.float32)[None, None], camera, (h, w))
    picture: UInt8[np.ndarray, "h w 3"] = to_uint8(2 * drawn[0, 0, :, 0] - 1)
    return picture


def upright(
    intrinsics: Float[np.ndarray, "3 3"], world_from_camera: Float[np.ndarray, "4 4"]
) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "4 4"]]:
    """The same camera with positive focal lengths, which Rerun needs to draw a frustum.

    Negative ones (RLBench) mean that the camera's x and y axes point left and up.
    """
    if not (intrinsics[0, 0] < 0 and intrinsics[1, 1] < 0):
        return intrinsics, world_from_camera
    turned = Cameras.from_rlbench(
        torch.tensor(intrinsics, dtype=torch.float64), torch.tensor(world_from_camera, dtype=torch.float64)
    )
    return turned.intrinsics.numpy(), turned.world_from_camera.numpy()


def encoded(picture: UInt8[np.ndarray, "h w 3"], jpeg: int | None) -> tuple[bytes, str]:
    """A picture as a file, and its media type."""
    data = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(picture))
    if jpeg is None:
        image.save(data, "PNG", compress_level=3)
        return data.getvalue(), "image/png"
    image.save(data, "JPEG", quality=jpeg, subsampling=0)
    return data.getvalue(), "image/jpeg"


def _same_camera(first: View, second: View) -> bool:
    return (
        first.image.shape == second.image.shape
        and np.array_equal(first.intrinsics, second.intrinsics, equal_nan=True)
        and np.array_equal(first.world_from_camera, second.world_from_camera, equal_nan=True)
    )


def _openness_colour(openness: float) -> tuple[int, int, int]:
    """Green where the gripper is open, red where it is closed."""
    level = round(255 * min(max(openness, 0.0), 1.0))
    return 255 - level, level, 0
