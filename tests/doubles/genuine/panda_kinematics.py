"""Rigid motions, and a Panda by its public measures: where the tip is, and angles that bring it somewhere."""

import math

import numpy as np

# Modified Denavit-Hartenberg rows of the Panda: a, d, alpha; then flange and tip.
_ARM = [
    (0.0, 0.333, 0.0),
    (0.0, 0.0, -math.pi / 2),
    (0.0, 0.316, math.pi / 2),
    (0.0825, 0.0, math.pi / 2),
    (-0.0825, 0.384, -math.pi / 2),
    (0.0, 0.0, math.pi / 2),
    (0.088, 0.0, math.pi / 2),
]
_TIP = 0.107 + 0.1034
BASE = (-0.2687, 0.0, 0.752)
HOME = np.array([0.0, 0.1746, 0.0, -0.8727, 0.0, 1.2217, math.pi / 4])
LOW = np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973])
HIGH = np.array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973])


def place(position, rotation=None):
    pose = np.eye(4)
    pose[:3, :3] = np.eye(3) if rotation is None else rotation
    pose[:3, 3] = position
    return pose


def turn(axis, angle):
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def looking(eye, at):
    """CoppeliaSim's vision sensors: z into the scene, y up, x left."""
    forward = np.subtract(at, eye) / np.linalg.norm(np.subtract(at, eye))
    left = np.cross([1e-3, 0.0, 1.0], forward)
    left /= np.linalg.norm(left)
    return place(eye, np.stack([left, np.cross(forward, left), forward], axis=1))


def quaternion(rotation):
    """x y z w."""
    w = math.sqrt(max(1 + np.trace(rotation), 0)) / 2
    if w > 1e-3:
        r = rotation
        return [(r[2, 1] - r[1, 2]) / 4 / w, (r[0, 2] - r[2, 0]) / 4 / w, (r[1, 0] - r[0, 1]) / 4 / w, w]
    values, vectors = np.linalg.eigh((rotation + rotation.T) / 2)
    return [*vectors[:, np.argmax(values)], 0.0]


def rotation(quaternion):
    x, y, z, w = quaternion
    length = math.sqrt(x * x + y * y + z * z)
    return np.eye(3) if length < 1e-12 else turn([x, y, z], 2 * math.atan2(length, w))


def tip_of(joints):
    pose = place(BASE)
    for (a, d, alpha), theta in zip(_ARM, joints, strict=True):
        pose = pose @ place((a, 0, 0), turn([1, 0, 0], alpha)) @ place((0, 0, d), turn([0, 0, 1], theta))
    return pose @ place((0, 0, _TIP), turn([0, 0, 1], -math.pi / 4))


def error(pose, target):
    x, y, z, w = quaternion(target[:3, :3] @ pose[:3, :3].T)
    length = math.sqrt(x * x + y * y + z * z)
    axis = np.zeros(3) if length < 1e-9 else 2 * math.atan2(length, w) / length * np.array([x, y, z])
    return np.concatenate([target[:3, 3] - pose[:3, 3], axis])


def solve(joints, target, iterations):
    """Damped least squares; None if the pose is not reached."""
    joints = np.array(joints, dtype=float)
    for _ in range(iterations):
        pose = tip_of(joints)
        missing = error(pose, target)
        if np.linalg.norm(missing) < 1e-4:
            return joints
        columns = [error(pose, tip_of(joints + 1e-6 * unit)) / 1e-6 for unit in np.eye(7)]
        jacobian = np.stack(columns, axis=1)
        joints += jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + 1e-4 * np.eye(6), missing)
        joints = np.clip(joints, LOW, HIGH)
    return None
