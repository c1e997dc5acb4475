"""Lens distortion is removed as COLMAP and OpenCV define it; what a camera file says besides is refused."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from ai_wam.camera_checks import check_intrinsics
from datamodules.cameras.calibration import Calibration
from datamodules.cameras.colmap import read_colmap
from datamodules.cameras.lens_distortion import Lens

POINTS = np.array([[0.5, -0.3, 1.0], [-0.4, 0.35, 1.2], [0.1, 0.2, 0.8]])  # in the camera
# pycolmap 4.2.1: Camera(model, 320, 240, numbers).img_from_cam(POINTS)
PYCOLMAP = {
    "SIMPLE_PINHOLE 300 160 120": [[310.0, 30.0], [60.0, 207.5], [197.5, 195.0]],
    "PINHOLE 300 310 161 119": [[311.0, 26.0], [61.0, 209.4167], [198.5, 196.5]],
    "SIMPLE_RADIAL 300 160 120 -.2": [[299.8, 36.12], [63.9236, 204.0668], [196.9141, 193.8281]],
    "RADIAL 300 160 120 -.2 .05": [[300.667, 35.5998], [63.7312, 204.2352], [196.9255, 193.851]],
    "OPENCV 300 310 161 119 -.2 .05 .001 -.002": [
        *([301.073, 32.1337], [64.4218, 206.2772], [197.8786, 195.3369]),
    ],
    "FULL_OPENCV 300 310 161 119 -.2 .05 .001 -.002 .01 .02 .03 .004": [
        *([299.68, 32.9973], [64.9036, 205.8416], [197.8144, 195.2042]),
    ],
    "SIMPLE_RADIAL_FISHEYE 300 160 120 .05": [[297.6925, 37.3845], [65.045, 203.0856], [196.7026, 193.4052]],
    "RADIAL_FISHEYE 300 160 120 .05 -.01": [[297.5871, 37.4478], [65.0735, 203.0607], [196.7006, 193.4012]],
    "OPENCV_FISHEYE 300 310 161 119 .05 -.01 .002 .001": [
        *([298.5938, 33.6919], [66.0724, 204.8304], [197.7006, 194.848]),
    ],
}
POSE = np.eye(4).tolist()
ENTRY = {"K": [[300, 0, 160], [0, 300, 120], [0, 0, 1]], "size": [240, 320], "camera_to_world": POSE}


def drawn(pixels):
    """Round spots; the first pixel's centre lies at 0.5."""
    rows, columns = np.mgrid[:240, :320] + 0.5
    picture = np.zeros((240, 320, 3), np.uint8)
    for x, y in pixels:
        picture += (200 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)).astype(np.uint8)[..., None]
    return picture


def centre(picture, near):
    """Of the spot within ten pixels of a place."""
    rows, columns = np.mgrid[:240, :320] + 0.5
    weight = picture[..., 0] * (np.hypot(columns - near[0], rows - near[1]) < 10)
    return np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()


@pytest.mark.parametrize("camera", sorted(PYCOLMAP))
def test_pictures_of_every_model_become_those_of_a_pinhole(tmp_path: Path, camera: str) -> None:
    model, *numbers = camera.split()
    (tmp_path / "cameras.txt").write_text(f"# a comment\n1 {model} 320 240 {' '.join(numbers)}\n")
    (tmp_path / "images.txt").write_text("1 1 0 0 0 0 0 0 1 front.png\n\n")
    found = read_colmap(tmp_path, {"front": tmp_path / "front.png"})["front"]
    pixels, flat = np.array(PYCOLMAP[camera]), POINTS @ found.intrinsics[0].T
    expected = flat[:, :2] / flat[:, 2:]
    view = found.view(drawn(pixels), 0)
    assert np.array_equal(view.intrinsics, found.intrinsics[0])
    straight = pixels if found.lens is None else found.lens.straighten(pixels, found.intrinsics[0])
    assert np.abs(straight - expected).max() < 0.02
    for place in expected:
        assert np.abs(centre(view.image, place) - place).max() < 0.2


LENSES = {
    "opencv": [
        [-0.35, 0.12, 0.001, -0.001, -0.02],
        [0.2, 0.05, 0, 0],
        [12.4, 6.1, 0.0002, -0.0001, 0.3, 12.7, 10.1, 1.6],
        [-0.3, 0.1, 0.001, 0, 0, 0, 0, 0, 0.01, -0.001, 0.02, 0.001, 0.05, -0.04],
    ],
    "fisheye": [[0.06, 0.02, -0.03, 0.008]],
}


@pytest.mark.parametrize(("model", "numbers"), [(m, each) for m, many in LENSES.items() for each in many])
def test_a_pixel_at_the_edge_of_a_wide_picture_is_straightened(model, numbers):
    """OpenCV says where rays end; its own way back is pixels off at the first one's edge."""
    lens, k = Lens.read(numbers, model, "here"), np.array([[600.0, 0, 640], [0, 600, 360], [0, 0, 1]])
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    slopes = np.concatenate([r * np.stack([np.cos(angles), np.sin(angles)], 1) for r in (0, 0.5, 1.0, 1.1)])
    matrix, none = k - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]], np.zeros(3)
    if model == "fisheye":
        bent = cv2.fisheye.distortPoints(slopes[:, None], matrix, np.array(numbers))
    else:
        rays = np.pad(slopes, ((0, 0), (0, 1)), constant_values=1.0)
        bent = cv2.projectPoints(rays, none, none, matrix, np.array(numbers))[0]
    assert np.abs(lens.straighten(bent[:, 0] + 0.5, k) - (600 * slopes + [640, 360])).max() < 0.01


def test_a_pixel_that_no_ray_reaches_is_refused():
    """A barrel that bends back ends 0.54 of the focal length from the middle."""
    lens, k = (
        Lens.read([-0.5, 0, 0, 0], "opencv", "here"),
        np.array([[160, 0, 160], [0, 160, 120], [0, 0, 1.0]]),
    )
    with pytest.raises(ValueError, match=r"pixel \(300.0, 120.0\) is not reached by any ray of the lens"):
        lens.straighten(np.array([[np.nan, np.nan], [160.0, 120.0], [300.0, 120.0]]), k)


def test_a_skewed_matrix_has_no_distortion_beside_it():
    k = [[300, 2, 160], [0, 300, 120], [0, 0, 1]]
    with pytest.raises(ValueError, match="camera: K has the skew 2 beside a distortion"):
        Calibration.read({**ENTRY, "K": k, "distortion": [-0.2, 0, 0, 0], "undistort": True}, "camera")


def test_a_picture_shows_nothing_twice() -> None:
    """A strong barrel distortion bends back beyond a radius that the lens never saw."""
    lens = Lens.read([-0.5, 0, 0, 0], "opencv", "here")
    assert lens is not None
    straight = lens.undistort(
        np.full((240, 320, 3), 200, np.uint8), np.array([[160, 0, 160], [0, 160, 120], [0, 0, 1.0]])
    )
    rows, columns = np.mgrid[:240, :320] + 0.5
    beyond = np.hypot(columns - 160, rows - 120) / 160 > (1 / 1.5) ** 0.5 + 0.01
    assert beyond.any()
    assert not straight[beyond].any()
    assert straight[120, 160].tolist() == [200] * 3


def test_hidden_points_stay_hidden() -> None:
    lens = Lens("fisheye", (0.05, 0.0, 0.0, 0.0))
    pixels = np.array([[np.nan, np.nan], [160.0, 120.0]])
    straight = lens.straighten(pixels, np.array(ENTRY["K"], dtype=float))
    assert np.isnan(straight[0]).all()
    assert np.allclose(straight[1], pixels[1])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"dist_coeffs": [0, 0, 0, 0]},
            r"\['dist_coeffs'\] are not known.*\"distortion\": \[k1, k2, p1, p2, k3\]",
        ),
        ({"D": [0.1]}, r"\['D'\] are not known"),
        ({"k1": 0.1, "cameras_to_world": POSE}, r"\['cameras_to_world', 'k1'\] are not known"),
        ({"distortion": [0.1]}, "4, 5, 8, 12, 14 finite numbers"),
        ({"distortion": [0.1, 0, 0, float("nan")]}, "finite numbers"),
        ({"distortion": [True, False, True, False]}, "finite numbers"),
        ({"distortion": "wide"}, "distortion is 'wide', expected numbers"),
        ({"distortion": [0.1] * 5, "model": "fisheye"}, "'fisheye' has 4 finite numbers"),
        ({"model": "OPENCV_FISHEYE"}, "distortion is None"),
        ({"model": "FOV", "distortion": [0.1]}, "the model 'FOV' is not known"),
        ({"K": [[300, 0, 320], [0, 300, 240], [0, 0, 1]]}, None),
        ({"size": [True, True]}, r"size is \[True, True\]"),
        ({"K": [[10**400, 0, 160], [0, 300, 120], [0, 0, 1]]}, "K: "),
    ],
)
def test_what_stands_beside_k_is_read_or_refused(more: dict, said: str | None) -> None:
    if said is None:
        with pytest.raises(ValueError, match=r"principal point of K, \(320.0, 240.0\).* 320 x 240"):
            Calibration.read(ENTRY | more, "here").check_size("front.mp4", (240, 320), "here")
        return
    with pytest.raises(ValueError, match=said):
        Calibration.read(ENTRY | more, "here")


def test_distortion_of_zero_is_none() -> None:
    assert Calibration.read(ENTRY | {"distortion": [0.0] * 5}, "here").lens is None
    assert Calibration.read(ENTRY | {"distortion": [0.0] * 5, "model": "PINHOLE"}, "here").lens is None
    bent = ENTRY | {"distortion": [0.0] * 4, "model": "OPENCV_FISHEYE"}
    with pytest.raises(ValueError, match=r'fisheye distortion .*Add "undistort": true'):
        Calibration.read(bent, "here")
    assert Calibration.read(bent | {"undistort": True}, "here").lens is not None


@pytest.mark.parametrize(
    ("k", "said"),
    [
        ([[600, 0, 320], [0, 600, 240], [0, 0, 1]], "principal point"),
        ([[150, 0, 80], [0, 150, 60], [0, 0, 1]], "principal point"),
        ([[300, 0, 320], [0, 300, 120], [0, 0, 1]], "principal point"),
        ([[0.9, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]], "principal point"),
        ([[900, 0, 160], [0, 300, 120], [0, 0, 1]], "are 900 and 300: pixels far from square"),
        ([[float("nan"), 0, 160], [0, 300, 120], [0, 0, 1]], "pixels far from square"),
        (
            [[4, 0, 160], [0, 4, 120], [0, 0, 1]],
            "fx and fy of K are 4 and 4 .* in pixels, not in millimetres",
        ),
        ([[300e3, 0, 160], [0, 300e3, 120], [0, 0, 1]], "in pixels, not in millimetres"),
    ],
)
def test_k_of_another_picture_is_refused(k: list, said: str) -> None:
    good = [[300, 0, 160], [0, 300, 120], [0, 0, 1]]
    with pytest.raises(ValueError, match=said):
        check_intrinsics(np.array([good, k], dtype=float), (240, 320), "here")


def test_negative_focal_lengths_are_rlbenchs() -> None:
    check_intrinsics(np.array([[[-300, 0, 160], [0, -300, 120], [0, 0, 1.0]]]), (240, 320), "here")
