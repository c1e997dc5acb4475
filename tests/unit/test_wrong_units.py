"""Numbers that are well-formed and cannot be meant are found, what is usual is not."""

from dataclasses import replace

import numpy as np
import pytest

from ai_wam.episodes import Labels
from datamodules.checks.wrong_units import Bounds, implausible, odd_gripper, unseen, warnings
from datamodules.shards.reader import EpisodeHeader

HZ = 20.0


def out_of_sight(episode, sizes):
    return list(unseen(episode, sizes, Bounds()))


OPENGL = np.diag([1.0, -1, -1, 1])


def look_at(eye):
    """world_from_camera with OpenCV's axes, towards the middle of the motion."""
    forward = np.array([0.3, 0, 0.2]) - eye
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = np.stack([right, np.cross(forward, right), forward], 1), eye
    return pose


def usual(frames=60):
    """A tool that moves half a metre and turns once about the vertical, pointing down."""
    t = np.linspace(0, 1, frames)
    positions = np.stack([0.3 + 0.2 * np.cos(3 * t), 0.2 * np.sin(3 * t), 0.1 + 0.2 * t], 1)
    half = np.pi * t
    quaternions = np.stack([np.cos(half), np.sin(half), 0 * t, 0 * t], 1)
    return np.column_stack([positions, quaternions, t < 0.5])


def header(actions, cameras=None, source="folder", labels=None):
    cameras = (
        {"front": look_at([1.2, 0.1, 0.6]), "side": look_at([0.2, 1.0, 0.7])} if cameras is None else cameras
    )
    k = np.array([[[300.0, 0, 160], [0, 300, 120], [0, 0, 1]]])
    poses = {name: (pose if pose.ndim == 3 else pose[None]) for name, pose in cameras.items()}
    return EpisodeHeader(
        ("touch it",),
        {"source": source},
        actions.astype(np.float32),
        dict.fromkeys(cameras, k),
        poses,
        labels,
    )


def kinds(episode, hz=HZ, bounds=None):
    return [finding.kind for finding in implausible(episode, hz, bounds or Bounds())]


def changed(part, function):
    actions = usual()
    actions[:, part] = function(actions[:, part])
    return actions


@pytest.mark.parametrize("source", ["folder", "lerobot", "droid", "bridge", "rlbench", "another"])
@pytest.mark.parametrize("hz", [1.0, 5.0, 20.0, 50.0])
def test_what_is_usual_passes(source, hz):
    assert kinds(header(usual(), source=source), hz) == []


def test_a_gripper_that_turns_over_and_a_lost_calibration_pass():
    flipped = usual()
    flipped[30:, 3:7] *= -1
    assert kinds(header(flipped)) == []
    lost = np.full((60, 4, 4), np.nan)
    lost[:30] = look_at([1.2, 0.1, 0.6])
    assert kinds(header(usual(), {"front": lost, "side": np.full((1, 4, 4), np.nan)})) == []


@pytest.mark.parametrize(
    ("actions", "kind", "said"),
    [
        (changed(slice(3), lambda p: 1000 * p), "position", "m from the world's origin, more than 10 m"),
        (changed(slice(3), lambda p: np.diff(p, axis=0, prepend=p[:1])), "position", "never leaves 0.1 m"),
        (
            changed(slice(3), lambda p: np.where(np.arange(60)[:, None] < 30, p, p + 0.5)),
            "rate",
            "from frame 29 to 30",
        ),
        (
            changed(slice(3, 7), lambda q: np.where(np.arange(60)[:, None] % 7, q, q[:, ::-1])),
            "rotation",
            "degrees from",
        ),
    ],
)
def test_units_and_jumps_of_the_tool(actions, kind, said):
    found = implausible(header(actions), HZ, Bounds())
    assert [each.kind for each in found] == [kind]
    assert said in found[0].text


@pytest.mark.parametrize(
    ("pose", "kind", "said"),
    [
        (
            lambda pose: pose @ np.diag([1, 1, 1, 1]) + np.pad(999 * pose[:3, 3:], ((0, 1), (3, 0))),
            "camera",
            "camera 'front' is 1",
        ),
        (
            lambda pose: pose @ OPENGL,
            "axes",
            "lies behind camera 'front' in 100% of the frames (OpenCV's axes",
        ),
    ],
)
def test_units_and_axes_of_a_camera(pose, kind, said):
    front = pose(look_at([1.2, 0.1, 0.6]))
    found = implausible(header(usual(), {"front": front, "side": look_at([0.2, 1.0, 0.7])}), HZ, Bounds())
    assert [each.kind for each in found] == [kind]
    assert said in found[0].text


SIZES = {"front": (240, 320), "side": (240, 320)}


def test_a_tool_that_no_camera_shows():
    """Matrices that map the other way may leave the tool in front of all cameras and in no picture."""
    front, side = look_at([1.2, 0.1, 0.6]), look_at([0.2, 1.0, 0.7])
    assert out_of_sight(header(usual()), SIZES) == []
    [found] = out_of_sight(
        header(usual(), {"front": np.linalg.inv(front), "side": np.linalg.inv(side)}), SIZES
    )
    assert "no camera sees the tool in 100% of the frames" in found.text
    assert out_of_sight(header(usual(), {"front": np.linalg.inv(front), "side": side}), SIZES) == []


def test_a_lost_calibration_hides_nothing():
    lost = np.full((60, 4, 4), np.nan)
    assert out_of_sight(header(usual(), {"front": lost, "side": lost}), SIZES) == []
    lost[:10] = look_at([1.2, 0.1, 0.6])
    assert out_of_sight(header(usual(), {"front": lost}), {"front": (240, 320)}) == []
    lost[:10] = np.linalg.inv(lost[0])
    assert (
        "in 100% of the frames"
        in out_of_sight(header(usual(), {"front": lost}), {"front": (240, 320)})[0].text
    )
    nothing = replace(header(usual()), actions=None)
    assert out_of_sight(nothing, SIZES) == []


WILD = {
    "far": changed(slice(3), lambda p: p + 20),
    "near": changed(slice(3), lambda p: p / 100),
    "speed": changed(slice(3), lambda p: np.where(np.arange(60)[:, None] < 30, p, p + 0.5)),
    "turn": changed(slice(3, 7), lambda q: np.where(np.arange(60)[:, None] % 7, q, q[:, ::-1])),
    "camera": usual(),
    "behind": usual(),
    "gripper": changed(slice(7, 8), lambda g: g * 0.08),
}


@pytest.mark.parametrize("bound", WILD)
def test_what_is_found_names_the_bound_that_accepts_it(bound):
    poses = {"camera": look_at([30, 0, 0.6]), "behind": look_at([1.2, 0.1, 0.6]) @ OPENGL}
    cameras = {"front": poses[bound]} if bound in poses else {}
    episode, opened = header(WILD[bound], cameras), WILD[bound][:, 7]
    accepting = Bounds(**{bound: 0.0 if bound in ("near", "gripper") else 1000.0})

    def found(bounds):
        return implausible(episode, HZ, bounds) + odd_gripper(
            [(opened.min(), opened.max())], bounds, "folder"
        )

    assert [f"change `--bounds.{bound}` of ai-wam inspect" in each.text for each in found(Bounds())] == [True]
    assert found(accepting) == []


def test_bounds_are_narrower_where_the_robot_is_known_and_can_be_changed():
    far = changed(slice(3), lambda p: p + np.array([1.5, 0, 0]))
    cameras = {"front": look_at([1.2, 0.1, 0.6]) + np.pad([[1.5], [0], [0], [0]], ((0, 0), (3, 0)))}
    assert kinds(header(far, cameras, "folder")) == []
    assert kinds(header(far, cameras, "droid")) == ["position"]
    assert kinds(header(far, cameras, "droid"), bounds=Bounds(far=10.0)) == []
    with pytest.raises(ValueError, match="speed must be at least 0"):
        Bounds(speed=float("nan"))


@pytest.mark.parametrize(
    ("ranges", "odd"),
    [
        ([(0.0, 1.0)], False),
        ([(0.0, 0.0), (1.0, 1.0)], False),
        ([(0.3, 0.3)], False),
        ([(0.0, 0.005)], False),
        ([(0.0, 0.08), (0.01, 0.04)], True),
        ([(0.915, 1.0)], True),
        ([(0.0, 0.08), (0.0, 0.9)], False),
        ([(0.4, 0.6)], False),
    ],
)
def test_openness_in_metres(ranges, odd):
    found = odd_gripper(ranges, Bounds(), "lerobot")
    assert bool(found) == odd
    assert not odd or "set `closed_and_open`" in found[0].text


def test_a_warning_counts_episodes():
    found = [
        (f"e{number}", each) for number in range(5) for each in odd_gripper([(0.0, 0.05)], Bounds(), "x")
    ]
    assert [line.split(":")[1] for line in warnings(found)] == [" e0, e1, e2 and 2 more"]


def test_labels_may_jump():
    wild = changed(slice(3, 7), lambda q: np.where(np.arange(60)[:, None] % 7, q, q[:, ::-1]))
    assert kinds(header(wild, labels=Labels(np.ones(60, bool), np.ones(60), np.ones(60)))) == []


@pytest.mark.parametrize(("aside", "share"), [(0.0, None), (5.0, "100%"), (np.nan, None)])
@pytest.mark.parametrize("moving", [False, True])
def test_a_tool_in_no_picture(aside, share, moving):
    """Cameras of another world, standing or with a pose per frame; a lost calibration says nothing."""
    cameras = {"front": look_at([1.2, 0.1, 0.6]), "side": look_at([0.2, 1.0, 0.7])}
    for pose in cameras.values():
        pose[:2, 3] += aside
    if moving:
        cameras = {name: np.tile(pose, (60, 1, 1)) for name, pose in cameras.items()}
    found = list(unseen(header(usual(), cameras), dict.fromkeys(cameras, (240, 320)), Bounds()))
    assert [each.kind for each in found] == (["view"] if share else [])
    assert not share or f"no camera sees the tool in {share} of the frames" in found[0].text
