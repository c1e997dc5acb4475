"""Tool poses from the pixels of the tool's points in several views: weighted nonlinear least squares.

Everything is batched over n independent steps, in float64. A start comes from triangulating the points in
every pair of views; the pose whose rigid points explain most of what all the views saw is then refined over
all of it at once (Levenberg-Marquardt on the six degrees of freedom), which uses the known distances between
the points.
"""

from itertools import combinations
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from ai_wam.cameras import Cameras
from ai_wam.poses import rotation_from_vector

_RAY_RIDGE = 1e-9
_NEAREST = 1e-3  # metres in front of the camera; points behind it project as if there


class Scene(NamedTuple):
    """What n steps were seen as.

    Attributes:
        projection: world point to homogeneous pixel, "n v 3 4".
        whitened: the same for every point, "n v p 3 4", in coordinates in which the found pixel's covariance
            is one.
        target: the pixels in those coordinates, "n v p 2".
        camera_position: metres, "n v 3".
        pixels: where the points were found, "n v p 2"; any finite number where not.
        usable: whether the point was found, "n v p".
        offsets: the points in the tool frame, metres, "p 3"; the first is the tool centre point.
    """

    projection: Tensor
    whitened: Tensor
    target: Tensor
    camera_position: Tensor
    pixels: Tensor
    usable: Tensor
    offsets: Tensor

    def take(self, index: Tensor) -> "Scene":
        """The steps at `index`."""
        steps = {name: field[index] for name, field in self._asdict().items() if name != "offsets"}
        return self._replace(**steps)

    def scaled(self, variance: Tensor) -> "Scene":
        """The same with the covariance of the pixels of each step multiplied by `variance`, "n"."""
        factor = variance.rsqrt()[:, None, None, None]
        rows = torch.ones_like(self.whitened[..., :1])
        rows[..., :2, :] = factor[..., None]
        return self._replace(whitened=self.whitened * rows, target=self.target * factor)


class Poses(NamedTuple):
    """Rotations tool to world "n 3 3" and positions "n 3"."""

    rotation: Tensor
    position: Tensor


class Fit(NamedTuple):
    """Refined poses.

    Attributes:
        poses: the best found.
        hessian: of half the cost by (position, rotation vector about the tool centre point, world axes), "n 6
            6".
        gradient: "n 6".
        cost: weighted squares of the residuals in standard deviations, "n"; robust if asked for.
        squares: the squared residual of every point in standard deviations, "n v p".
    """

    poses: Poses
    hessian: Tensor
    gradient: Tensor
    cost: Tensor
    squares: Tensor


def make_scene(
    cameras: Cameras,
    pixels: Float[Tensor, "n v p 2"],
    information: Float[Tensor, "n v p 2 2"],
    usable: Bool[Tensor, "n v p"],
    offsets: Float[Tensor, "p 3"],
) -> Scene:
    """A scene of float64 cameras with leading dimensions "n v", all finite."""
    rotation, position = cameras.world_from_camera[..., :3, :3], cameras.world_from_camera[..., :3, 3]
    linear = cameras.intrinsics @ rotation.mT
    projection = torch.cat([linear, -linear @ position[..., None]], dim=-1)
    pixels = torch.where(usable[..., None], pixels, 0)
    whitening = torch.zeros(*usable.shape, 3, 3, dtype=pixels.dtype, device=pixels.device)
    whitening[..., :2, :2] = torch.linalg.cholesky_ex(information).L.mT
    whitening[..., 2, 2] = 1
    target = (whitening[..., :2, :2] @ pixels[..., None]).squeeze(-1)
    return Scene(projection, whitening @ projection[:, :, None], target, position, pixels, usable, offsets)


def initial_poses(scene: Scene, tolerance: float) -> Poses:
    """Start values: the best of one pose per pair of views and one from each point's own best pair.

    Args:
        scene: n steps.
        tolerance: pixels beyond which a point counts as not explained, whatever its distance.
    """
    views = scene.pixels.shape[1]
    pairs = torch.tensor(list(combinations(range(views), 2)), device=scene.pixels.device)
    points = torch.stack([_triangulate(scene, pair) for pair in pairs], dim=1)  # n pairs p 3
    both = scene.usable[:, pairs].all(dim=2)  # n pairs p
    misfit = torch.where(both, _unexplained(scene, points, tolerance).sum(2), torch.inf)
    if len(pairs) > 1:
        own = misfit.argmin(dim=1, keepdim=True)
        points = torch.cat([points, points.gather(1, own[..., None].expand(-1, -1, -1, 3))], dim=1)
    rotation = frame_from_points(points)
    rigid = points[:, :, :1] + scene.offsets @ rotation.mT
    best = _unexplained(scene, rigid, tolerance).sum((2, 3)).argmin(dim=1)
    index = torch.arange(len(best), device=best.device)
    return Poses(rotation[index, best], points[index, best, 0])


def frame_from_points(points: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 3 3"]:
    """Rotation with x axis from the first point to the second, z axis from the third to the first.

    Errors of the two directions are shared equally: their sum and difference are made orthogonal, then
    halved.
    """
    x = functional.normalize(points[..., 1, :] - points[..., 0, :], dim=-1)
    z = functional.normalize(points[..., 0, :] - points[..., 2, :], dim=-1)
    total, difference = functional.normalize(x + z, dim=-1), functional.normalize(x - z, dim=-1)
    x, z = (total + difference) / 2**0.5, (total - difference) / 2**0.5
    return torch.stack([x, torch.linalg.cross(z, x), z], dim=-1)


def refine(
    scene: Scene, start: Poses, weight: Float[Tensor, "n v p"], iterations: int, cauchy: float | None = None
) -> Fit:
    """Levenberg-Marquardt from `start`.

    Args:
        scene: n steps.
        start: where to begin; the result is never worse.
        weight: of every point's squared residual; zero leaves it out.
        iterations: number of steps tried.
        cauchy: residual, in standard deviations, at which a point's influence is halved; None is plain least
            squares.
    """
    best = evaluate(scene, start, weight, cauchy)
    damping = torch.full_like(best.cost, 1e-3)
    for _ in range(iterations):
        diagonal = best.hessian.diagonal(dim1=-2, dim2=-1)
        ridge = damping[:, None] * diagonal + 1e-12 * diagonal.amax(-1, keepdim=True) + 1e-30
        step = torch.linalg.solve_ex(best.hessian + torch.diag_embed(ridge), best.gradient).result
        moved = evaluate(scene, _move(best.poses, step), weight, cauchy)
        better = moved.cost <= best.cost
        damping = torch.where(better, damping * 0.1, damping * 10).clamp(1e-9, 1e6)
        best = choose(better, moved, best)
    return best


def evaluate(scene: Scene, poses: Poses, weight: Tensor, cauchy: float | None = None) -> Fit:
    """Cost and derivatives at given poses; arguments as in `refine`."""
    lever = scene.offsets @ poses.rotation.mT  # n p 3
    points = (poses.position[:, None] + lever)[:, None]
    linear = scene.whitened[..., :3]
    homogeneous = (linear * points[..., None, :]).sum(-1) + scene.whitened[..., 3]
    inverse_depth = homogeneous[..., 2:].clamp(min=_NEAREST).reciprocal()
    seen = homogeneous[..., :2] * inverse_depth
    residual = scene.target - seen  # n v p 2
    by_point = (linear[..., :2, :] - seen[..., None] * linear[..., 2:, :]) * inverse_depth[..., None]
    by_rotation = torch.linalg.cross(lever[:, None, :, None].expand_as(by_point), by_point)
    jacobian = torch.cat([by_point, by_rotation], dim=-1)
    squares = residual.square().sum(-1)
    influence, loss = weight, weight * squares
    if cauchy is not None:
        influence = weight / (1 + squares / cauchy**2)
        loss = weight * cauchy**2 * torch.log1p(squares / cauchy**2)
    left = (influence[..., None, None] * jacobian).flatten(1, 3).mT  # n 6 (v p 2)
    gradient = (left @ residual.flatten(1)[..., None]).squeeze(-1)
    return Fit(poses, left @ jacobian.flatten(1, 3), gradient, loss.sum((1, 2)), squares)


def distances(scene: Scene, poses: Poses) -> Float[Tensor, "n v p"]:
    """Pixels between where the points were found and where the poses put them."""
    points = poses.position[:, None] + scene.offsets @ poses.rotation.mT
    return (_project(scene.projection, points[:, None]) - scene.pixels).norm(dim=-1)


def choose(condition: Bool[Tensor, "n"], yes: Fit, no: Fit) -> Fit:
    """Step by step `yes` where the condition holds, `no` elsewhere."""

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(condition.reshape(-1, *[1] * (a.dim() - 1)), a, b)

    poses = Poses(*map(pick, yes.poses, no.poses))
    return Fit(poses, *map(pick, yes[1:], no[1:]))


def parallax(scene: Scene, poses: Poses, weight: Float[Tensor, "n v p"]) -> Float[Tensor, "n"]:
    """Largest angle in radians between two used views' sights of a point; of the points, the least."""
    points = poses.position[:, None] + scene.offsets @ poses.rotation.mT
    sight = functional.normalize(points[:, None] - scene.camera_position[:, :, None], dim=-1)
    views = torch.arange(sight.shape[1], device=sight.device)
    first, second = torch.combinations(views, 2).unbind(-1)
    sine = torch.linalg.cross(sight[:, first], sight[:, second]).norm(dim=-1)
    angle = torch.atan2(sine, (sight[:, first] * sight[:, second]).sum(-1))
    both = (weight[:, first] > 0) & (weight[:, second] > 0)
    return torch.where(both, angle, 0).amax(1).amin(1)


def mirrored(scene: Scene, poses: Poses, weight: Float[Tensor, "n v p"]) -> Poses:
    """The poses whose points look nearly alike in views that lie close together.

    The points' offsets along the mean line of sight change sign, as in the two readings of a drawn cube.
    """
    shares = weight.sum(-1, keepdim=True)
    eye = (shares * scene.camera_position).sum(1) / shares.sum(1).clamp(min=1e-12)
    sight = functional.normalize(poses.position - eye, dim=-1)[:, None]
    lever = scene.offsets @ poses.rotation.mT
    return Poses(frame_from_points(lever - 2 * (lever * sight).sum(-1, keepdim=True) * sight), poses.position)


def _move(poses: Poses, step: Tensor) -> Poses:
    position, turn = step[:, :3], step[:, 3:]
    # Half a turn and more is never a refinement, and metres are not either.
    turn = turn * (1 / turn.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
    position = position * (0.5 / position.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
    return Poses(rotation_from_vector(turn) @ poses.rotation, poses.position + position)


def _project(projection: Tensor, points: Tensor) -> Tensor:
    """Pixels "n v p 2" of points "n 1 p 3" under projections "n v 3 4"."""
    homogeneous = points @ projection[..., :3].mT + projection[..., None, :, 3]
    return homogeneous[..., :2] / homogeneous[..., 2:].clamp(min=_NEAREST)


def _unexplained(scene: Scene, points: Tensor, tolerance: float) -> Tensor:
    """Squared pixel distances "n h v p" of h hypotheses "n h p 3" to what was found, cut at the tolerance."""
    hypotheses = points.shape[1]
    repeated = scene.projection.repeat_interleave(hypotheses, dim=0)
    seen = _project(repeated, points.flatten(0, 1)[:, None])
    distance = (seen.unflatten(0, (-1, hypotheses)) - scene.pixels[:, None]).square().sum(-1)
    return torch.where(scene.usable[:, None], distance.clamp(max=tolerance**2), 0)


def _triangulate(scene: Scene, views: Tensor) -> Tensor:
    """Points "n p 3" nearest to the lines of sight of two views."""
    position = scene.camera_position[:, views]
    sight = functional.normalize(_line_of_sight(scene.projection[:, views], scene.pixels[:, views]), dim=-1)
    identity = torch.eye(3, dtype=sight.dtype, device=sight.device)
    across = identity - sight[..., :, None] * sight[..., None, :]  # n 2 p 3 3
    right = (across @ position[:, :, None, :, None]).sum(1)
    return torch.linalg.solve_ex(across.sum(1) + _RAY_RIDGE * identity, right).result.squeeze(-1)


def _line_of_sight(projection: Tensor, pixels: Tensor) -> Tensor:
    """World directions "n v p 3" of all points that project to a pixel: what both image rows are blind to."""
    rows = projection[..., None, :2, :3] - pixels[..., None] * projection[..., None, 2:, :3]
    return torch.linalg.cross(rows[..., 0, :], rows[..., 1, :])
