"""Poses of whole clips: every step is fitted and validated; invalid ones are rescued or interpolated.

Every clip sets its own scale: how well its steps agree on the median scales the predicted standard deviations
(blobs of a video model err by more, and more smoothly, than the pixels around them show) and sets what counts
as disagreement.
"""

from enum import IntEnum
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ai_wam.action_images.pose_fit import (
    Fit,
    Poses,
    Scene,
    choose,
    distances,
    evaluate,
    initial_poses,
    mirrored,
    parallax,
    refine,
)
from ai_wam.poses import (
    continuous_quaternions,
    geodesic_angle,
    quaternion_from_rotation,
    rotation_from_quaternion,
    slerp,
)

_CAUCHY = 4.0  # standard deviations; costs 1 % of precision where the noise is normal
_NORMAL_INFLUENCE = 0.95  # what the robust Hessian keeps of the information where the noise is normal
_MEDIAN_CHI_SQUARE = 0.89  # median of chi square per degree of freedom, 6 degrees
_TWIN_PARALLAX = 0.35  # radians; in views this close together the mirror twin is a rival
_TWIN_MARGIN = 12.0  # chi square by which the better twin must win
_TWIN_ANGLE = 0.35  # radians; twins closer than this are no ambiguity
_GATE = 4.0  # times the clip's median distance


class DecodeStatus(IntEnum):
    """Status of a decoded step. OK and RESCUED are measured; others have an interpolated pose, or NaN.

    OK: fitted.
    RESCUED: fitted without the part of the evidence that is missing or contradicts the rest.
    FILLED: no view shows any blob.
    OFFSCREEN: one of the points is seen by fewer than two views.
    INCONSISTENT: the views show no common pose.
    DEGENERATE: fewer than two views to begin with, or views too close together for depth.
    NONFINITE: NaN or infinite pixels or cameras left too little.
    """

    OK = 0
    RESCUED = 1
    FILLED = 2
    OFFSCREEN = 3
    INCONSISTENT = 4
    DEGENERATE = 5
    NONFINITE = 6


_RESCUABLE = (DecodeStatus.OFFSCREEN, DecodeStatus.INCONSISTENT, DecodeStatus.NONFINITE)


class Limits(NamedTuple):
    """Limits of a valid step.

    Attributes:
        position_std: metres, per axis.
        rotation_std: radians, per axis.
        parallax: radians between two views' lines of sight.
        strict: pixels of RMS distance that are always accepted.
        loose: pixels of RMS distance that are never accepted; in between the clip's median decides.
    """

    position_std: float
    rotation_std: float
    parallax: float
    strict: float
    loose: float


class PoseSequences(NamedTuple):
    """Per step of b clips: "b t 3", "b t 4" (x, y, z, w), a DecodeStatus, and standard deviations per axis.

    Quaternions have the signs of `ai_wam.poses.continuous_quaternions`.
    `weight` "n v p" is 1 for the points that were used.
    """

    position: Tensor
    quaternion: Tensor
    status: Tensor
    position_std: Tensor
    rotation_std: Tensor
    weight: Tensor


class _Estimate(NamedTuple):
    """Fits of n steps, with the statistics by which their status is decided."""

    fit: Fit
    weight: Tensor
    distance: Tensor
    position_std: Tensor
    rotation_std: Tensor


def estimate_sequences(scene: Scene, clips: int, lost: Int[Tensor, "n"], limits: Limits) -> PoseSequences:
    """Poses of all steps of all clips.

    Args:
        scene: n = clips * t steps, clip-major, at least two views.
        clips: number of clips.
        lost: the DecodeStatus of steps without enough evidence, OK for all others.
        limits: what a trusted step must keep to.
    """
    scene, estimate, ambiguous = _fit_all(scene, clips, limits)
    typical = _clip_median(estimate.distance, (lost == DecodeStatus.OK), clips)
    gate = (_GATE * typical).clamp(limits.strict, limits.loose)
    status = _validated(scene, estimate, ambiguous, lost, gate, limits)
    status = _reject_jumps(scene, estimate, status, _GATE * typical, clips)
    status, estimate = _rescue(scene, estimate, status, clips, limits)
    valid = status <= DecodeStatus.RESCUED
    position, quaternion = _bridge(estimate.fit.poses, valid, clips)
    unknown = torch.full_like(estimate.position_std, torch.inf)
    return PoseSequences(
        position,
        continuous_quaternions(quaternion),
        status.unflatten(0, (clips, -1)),
        torch.where(valid, estimate.position_std, unknown).unflatten(0, (clips, -1)),
        torch.where(valid, estimate.rotation_std, unknown).unflatten(0, (clips, -1)),
        torch.where(valid[:, None, None], estimate.weight, 0),
    )


def _fit_all(scene: Scene, clips: int, limits: Limits) -> tuple[Scene, _Estimate, Tensor]:
    """The scene with its information scaled to the clips' real scatter, the fits, and which are ambiguous."""
    start = initial_poses(scene, limits.loose)
    weight = scene.usable.double()
    many_views = weight.shape[1] > 2
    if many_views:
        weight = _agreeing(scene, start, limits)
    fit = refine(scene, start, weight, iterations=5)
    if many_views:
        weight = _agreeing(scene, fit.poses, limits)
        fit = refine(scene, fit.poses, weight, iterations=4)
    determined = _seen_twice(weight)
    scatter = _clip_median(_per_freedom(fit.squares, weight), determined, clips) / _MEDIAN_CHI_SQUARE
    scene = scene.scaled(scatter.clamp(min=0.5))
    fit = refine(scene, fit.poses, weight, iterations=3, cauchy=_CAUCHY)
    fit, ambiguous = _settle_twins(scene, fit, weight)
    return scene, _with_precision(scene, fit, weight), ambiguous


def _agreeing(scene: Scene, poses: Poses, limits: Limits) -> Tensor:
    """1 for points that lie where a pose puts them, else 0."""
    return (scene.usable & (distances(scene, poses) < limits.loose)).double()


def _seen_twice(weight: Tensor) -> Tensor:
    """Whether every point is used in at least two views, "n"."""
    return (weight.sum(1) >= 2).all(-1)


def _freedom(weight: Tensor) -> Tensor:
    """Degrees of freedom: two per point and view, less the pose's six; at least one."""
    return (2 * weight.sum((1, 2)) - 6).clamp(min=1)


def _per_freedom(squares: Tensor, weight: Tensor) -> Tensor:
    return (weight * squares).sum((1, 2)) / _freedom(weight)


def _clip_median(values: Tensor, counted: Tensor, clips: int) -> Tensor:
    """Median over each clip's counted steps, repeated for every step; 1 where none counts."""
    by_clip = values.masked_fill(~counted, torch.nan).unflatten(0, (clips, -1))
    median = by_clip.nanmedian(dim=-1, keepdim=True).values.nan_to_num(nan=1.0)
    return median.expand(by_clip.shape).flatten()


def _settle_twins(scene: Scene, fit: Fit, weight: Tensor) -> tuple[Fit, Tensor]:
    """Try the mirror twin where views lie close together; keep the better and say where it hardly is."""
    ambiguous = torch.zeros_like(fit.cost, dtype=torch.bool)
    close = torch.nonzero(parallax(scene, fit.poses, weight) < _TWIN_PARALLAX).squeeze(-1)
    if len(close) == 0:
        return fit, ambiguous
    some, some_weight = scene.take(close), weight[close]
    here = evaluate(some, Poses(*(field[close] for field in fit.poses)), some_weight, _CAUCHY)
    twin = refine(some, mirrored(some, here.poses, some_weight), some_weight, iterations=8, cauchy=_CAUCHY)
    rival = geodesic_angle(twin.poses.rotation, here.poses.rotation) > _TWIN_ANGLE
    ambiguous[close] = rival & ((twin.cost - here.cost).abs() < _TWIN_MARGIN)
    return _put(fit, close, choose(twin.cost < here.cost, twin, here)), ambiguous


def _put(whole: Fit, index: Tensor, part: Fit) -> Fit:
    """`whole` with the steps at `index` replaced."""
    poses = Poses(*(a.index_copy(0, index, b) for a, b in zip(whole.poses, part.poses, strict=True)))
    return Fit(poses, *(a.index_copy(0, index, b) for a, b in zip(whole[1:], part[1:], strict=True)))


def _with_precision(scene: Scene, fit: Fit, weight: Tensor) -> _Estimate:
    """Predicted standard deviations; a step that scatters more than its clip does gets wider ones."""
    diagonal = fit.hessian.diagonal(dim1=-2, dim2=-1)
    ridge = torch.diag_embed(1e-12 * diagonal.amax(-1, keepdim=True).expand_as(diagonal) + 1e-30)
    variance = torch.linalg.inv_ex(fit.hessian + ridge).inverse.diagonal(dim1=-2, dim2=-1)
    influence = weight / (1 + fit.squares / _CAUCHY**2)  # as in the Hessian
    excess = ((influence * fit.squares).sum((1, 2)) / _freedom(weight) - 1.5).clamp(min=1)
    variance = (_NORMAL_INFLUENCE * variance * excess[:, None]).nan_to_num(
        nan=torch.inf, posinf=torch.inf, neginf=torch.inf
    )
    distance = _per_freedom(distances(scene, fit.poses).square(), weight).sqrt()
    return _Estimate(fit, weight, distance, *variance.unflatten(-1, (2, 3)).mean(-1).sqrt().unbind(-1))


def _validated(
    scene: Scene, estimate: _Estimate, ambiguous: Tensor, lost: Tensor, gate: Tensor, limits: Limits
) -> Int[Tensor, "n"]:
    """Status of every step; of several reasons the first one in the order of the code is given."""
    uncertain = (estimate.position_std > limits.position_std) | (estimate.rotation_std > limits.rotation_std)
    flat = parallax(scene, estimate.fit.poses, scene.usable.double()) < limits.parallax
    disagree = (estimate.distance > gate) | ~_seen_twice(estimate.weight) | estimate.distance.isnan()
    status = torch.where(ambiguous | uncertain, int(DecodeStatus.DEGENERATE), lost)
    status = torch.where(disagree, int(DecodeStatus.INCONSISTENT), status)
    status = torch.where(flat, int(DecodeStatus.DEGENERATE), status)
    return torch.where(lost == DecodeStatus.OK, status, lost)


def _reject_jumps(scene: Scene, estimate: _Estimate, status: Tensor, gate: Tensor, clips: int) -> Tensor:
    """A step whose views agree worse than its clip's do must at least lie near its neighbours.

    In small images the pictures of two different poses agree by chance every few times.
    """
    doubtful = (status == DecodeStatus.OK) & (estimate.distance > gate)
    trusted = (status == DecodeStatus.OK) & ~doubtful
    around, reach = _surroundings(scene, estimate.fit.poses, trusted, clips)
    apart = (estimate.fit.poses.position - around.position).norm(dim=-1) > reach
    return torch.where(doubtful & apart, int(DecodeStatus.INCONSISTENT), status)


def _surroundings(scene: Scene, poses: Poses, trusted: Tensor, clips: int) -> tuple[Poses, Tensor]:
    """Poses "n" bridged from trusted neighbours (or NaN), and how far in metres a step may be from them.

    That is a quarter of the axis length and twice the clip's mean motion, per frame to the farther neighbour.
    """
    position, quaternion = _bridge(poses, trusted, clips)
    before, after, _ = bracket(trusted.unflatten(0, (clips, -1)))
    time = torch.arange(before.shape[1], device=before.device)
    frames = torch.maximum((time - before).abs(), (after - time).abs())
    motion = position.diff(dim=1).norm(dim=-1).sum(dim=1, keepdim=True) / max(position.shape[1] - 1, 1)
    reach = frames * (0.25 * scene.offsets.norm(dim=-1).amax() + 2 * motion)
    return Poses(rotation_from_quaternion(quaternion.flatten(0, 1)), position.flatten(0, 1)), reach.flatten()


def _rescue(
    scene: Scene, estimate: _Estimate, status: Tensor, clips: int, limits: Limits
) -> tuple[Tensor, _Estimate]:
    """Fit failed steps to part of their evidence, starting between their trusted neighbours in time.

    All that is left is tried first, then all but one point in one view, then (three views and more) all but
    one view. The result must lie near those neighbours. A part must still hold at least two redundant
    measurements, and as many again if something was thrown away.
    """
    around, reach = _surroundings(scene, estimate.fit.poses, status <= DecodeStatus.RESCUED, clips)
    failed = torch.isin(status, torch.tensor(_RESCUABLE, device=status.device))
    failed = torch.nonzero(failed & around.position.isfinite().all(-1)).squeeze(-1)
    if len(failed) == 0:
        return status, estimate
    parts = _parts(scene.usable.shape[1], scene.usable.shape[2], scene.usable.device)
    attempts = failed.repeat_interleave(len(parts))
    some = scene.take(attempts)
    weight = some.usable * parts.repeat(len(failed), 1, 1)
    start = Poses(*(field[attempts] for field in around))
    tried = _with_precision(some, refine(some, start, weight, iterations=8), weight)
    near = (tried.fit.poses.position - start.position).norm(dim=-1) <= reach[attempts]
    best, good = _best_part(tried, near, len(parts), limits)
    rows, chosen = failed[good], best[good]
    status = status.index_fill(0, rows, int(DecodeStatus.RESCUED))
    fit = _put(estimate.fit, rows, _take(tried.fit, chosen))
    others = [a.index_copy(0, rows, b[chosen]) for a, b in zip(estimate[1:], tried[1:], strict=True)]
    return status, _Estimate(fit, *others)


def _take(fit: Fit, index: Tensor) -> Fit:
    return Fit(Poses(*(field[index] for field in fit.poses)), *(field[index] for field in fit[1:]))


def _parts(views: int, points: int, device: torch.device) -> Float[Tensor, "parts v p"]:
    """Which evidence each attempt uses: all of it, all but one point in one view, all but one view."""
    count = views * points
    without_point = 1 - torch.eye(count, dtype=torch.float64, device=device).unflatten(1, (views, points))
    parts = [torch.ones_like(without_point[:1]), without_point]
    if views > 2:
        without_view = 1 - torch.eye(views, dtype=torch.float64, device=device)
        parts.append(without_view[..., None].expand(-1, -1, points))
    return torch.cat(parts)


def _best_part(tried: _Estimate, near: Tensor, parts: int, limits: Limits) -> tuple[Tensor, Tensor]:
    """Row of the best attempt for each failed step, and whether it may be trusted."""
    redundancy = (2 * tried.weight.sum((1, 2)) - 6).unflatten(0, (-1, parts))
    needed = torch.full_like(redundancy, 4)
    needed[:, 0] = 2
    sharp = near & (tried.position_std < limits.position_std) & (tried.rotation_std < limits.rotation_std)
    distance = tried.distance.unflatten(0, (-1, parts)).nan_to_num(nan=torch.inf)
    good = sharp.unflatten(0, (-1, parts)) & (distance < limits.strict) & (redundancy >= needed)
    score = torch.where(good, distance, torch.inf)
    score[:, 0] = torch.where(good[:, 0], -1.0, score[:, 0])
    best = score.argmin(-1)
    return best + parts * torch.arange(len(best), device=best.device), good.any(-1)


def _bridge(poses: Poses, valid: Bool[Tensor, "n"], clips: int) -> tuple[Tensor, Tensor]:
    """Positions "b t 3" and quaternions "b t 4": interpolated where invalid, held at the ends, or NaN."""
    valid = valid.unflatten(0, (clips, -1))
    position = poses.position.unflatten(0, (clips, -1))
    quaternion = quaternion_from_rotation(poses.rotation).unflatten(0, (clips, -1))
    before, after, fraction = bracket(valid)

    def at(values: Tensor, index: Tensor) -> Tensor:
        return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))

    between = torch.lerp(at(position, before), at(position, after), fraction[..., None])
    turned = slerp(at(quaternion, before), at(quaternion, after), fraction)
    nothing = ~valid.any(dim=1)[:, None, None]
    return between.masked_fill(nothing, torch.nan), turned.masked_fill(nothing, torch.nan)


def bracket(
    valid: Bool[Tensor, "b t"],
) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"], Float[Tensor, "b t"]]:
    """Nearest valid steps at or before and at or after each step, and how far between them it lies (0 to 1).

    Where one side has none the other side's stands for both; without any valid step they are some step.
    """
    steps = valid.shape[1]
    time = torch.arange(steps, device=valid.device).expand(valid.shape)
    before = torch.where(valid, time, -1).cummax(dim=1).values
    after = torch.where(valid, time, steps).flip(1).cummin(dim=1).values.flip(1)
    first = torch.where(before >= 0, before, after).clamp(max=steps - 1)
    last = torch.where(after < steps, after, before).clamp(min=0)
    last = torch.where((before < 0) & (after == steps), first, last)
    fraction = (time - first) / (last - first).clamp(min=1)
    return first, last, torch.where(last > first, fraction, 0).double()
