"""The calls of CoppeliaSim that an episode of reach_target makes: kinematics, no physics.

Replaces functions of the genuine `pyrep.backend.sim`, so everything above it is the genuine code. numpy only.
"""

import math

import numpy as np
import panda_kinematics as panda
from coppeliasim_looks import EVERY_PROPERTY, Looks

_FRONT = [[0, -0.42262, -0.90631, 1.35], [-1, 0, 0, 0], [0, 0.90631, -0.42262, 1.58], [0, 0, 0, 1]]
_SHAPE, _JOINT, _DUMMY, _PROXIMITY, _VISION, _FORCE = 0, 1, 4, 5, 9, 12
_CAMERAS = {"front": 40, "over_shoulder_left": 60, "over_shoulder_right": 60, "overhead": 60, "wrist": 60}
_RADIUS = 0.025
_DT = 0.05


def _single(values):
    return [float(value) for value in np.asarray(values, dtype=np.float32).ravel()]


class Thing:
    def __init__(self, name, kind, parent, pose, **more):
        self.name, self.kind, self.parent, self.pose = name, kind, parent, np.array(pose, dtype=float)
        self.value, self.target, self.speed, self.more = 0.0, 0.0, 0.0, more


class Scene(Looks):
    """Objects by handle, and the functions of `sim` as methods."""

    def __init__(self, sim):
        self.sim, self.things, self.runs, self.next = sim, {}, {}, 10
        base = self.add("Panda", _SHAPE, -1, panda.place(panda.BASE), model=True)
        self.arm = [self.add(f"Panda_joint{i + 1}", _JOINT, base, np.eye(4)) for i in range(7)]
        self.tip = self.add("Panda_tip", _DUMMY, base, np.eye(4))
        self.goal = self.add("Panda_target", _DUMMY, -1, np.eye(4))
        hand = self.add("Panda_gripper", _SHAPE, self.tip, np.eye(4), model=True)
        self.fingers = [self.add(f"Panda_gripper_joint{i}", _JOINT, hand, np.eye(4)) for i in (1, 2)]
        self.add("Panda_gripper_attachProxSensor", _PROXIMITY, hand, np.eye(4))
        self.add("Panda_gripper_attachPoint", _FORCE, hand, np.eye(4))
        self.add("workspace", _SHAPE, -1, panda.place((0.25, 0.0, 0.752)), box=(0.3, 0.45, 0.0))
        eyes = {"over_shoulder_left": (-0.3, 0.6, 2.0), "over_shoulder_right": (-0.3, -0.6, 2.0)}
        for name in _CAMERAS:
            pose = (
                _FRONT
                if name == "front"
                else panda.looking(eyes.get(name, (0.2, 0.0, 2.6)), (0.35, 0.0, 0.9))
            )
            if name == "wrist":
                pose = panda.place((0.0, 0.0, -0.15))
            parent = self.tip if name == "wrist" else -1
            for suffix in ("", "_mask"):
                self.add(
                    f"cam_{name}{suffix}", _VISION, parent, pose, degrees=_CAMERAS[name], size=[128, 128]
                )
        self.add_lamps()
        for handle, angle in zip(self.arm, panda.HOME, strict=True):
            self.things[handle].value = self.things[handle].target = angle
        for handle in self.fingers:
            self.things[handle].value = 0.04

    def add(self, name, kind, parent, pose, **more):
        self.next += 1
        self.things[self.next] = Thing(name, kind, parent, pose, **more)
        return self.next

    def angles(self):
        return np.array([self.things[handle].value for handle in self.arm])

    def world(self, handle):
        if handle in (-1, self.sim.sim_handle_scene):
            return np.eye(4)
        if handle == self.tip:
            return panda.tip_of(self.angles())
        return self.world(self.things[handle].parent) @ self.things[handle].pose

    def relative(self, handle, to):
        return np.linalg.inv(self.world(to)) @ self.world(handle)

    def move(self, handle, to, pose):
        thing = self.things[handle]
        thing.pose = np.linalg.inv(self.world(thing.parent)) @ self.world(to) @ pose

    def children(self, handle):
        return [key for key, thing in self.things.items() if thing.parent == handle]

    def tree(self, handle):
        return [handle, *(below for child in self.children(handle) for below in self.tree(child))]

    # --- application ---
    def simSetStringParameter(self, parameter, value): ...

    def simExtLaunchUIThread(self, options, scene, pyrep_root): ...

    def simExtCanInitSimThread(self):
        return True

    def simExtSimThreadInit(self): ...

    def simExtSimThreadDestroy(self): ...

    def simExtPostExitRequest(self): ...

    def simStartSimulation(self): ...

    def simStopSimulation(self): ...

    def simGetSimulationTimeStep(self):
        return _DT

    def simExtStep(self, stepIfRunning=True):
        for handle in self.arm:
            self.things[handle].value = self.things[handle].target
        for handle in self.fingers:
            finger = self.things[handle]
            finger.value = float(np.clip(finger.value + finger.speed * _DT, 0.0, 0.04))

    # --- objects ---
    def simGetObjectHandle(self, name):
        for handle, thing in self.things.items():
            if thing.name == name:
                return handle
        raise RuntimeError(f"Handle {name} does not exist.")

    def simGetObjectName(self, handle):
        return self.things[handle].name if handle in self.things else ""

    def simGetObjectType(self, handle):
        return self.things[handle].kind

    def simGetObjectParent(self, handle):
        if self.things[handle].parent == -1:
            raise RuntimeError("The call failed on the V-REP side. Return value: -1")  # as PyRep makes of it
        return self.things[handle].parent

    def simGetObjectsInTree(self, root, kind, options):
        everything = root == self.sim.sim_handle_scene
        found = list(self.things) if everything else self.tree(root)[options & 1 :]
        return [handle for handle in found if kind in (self.sim.sim_handle_all, self.things[handle].kind)]

    def simGetObjectPosition(self, handle, to):
        return _single(self.relative(handle, to)[:3, 3])

    def simGetObjectQuaternion(self, handle, to):
        return _single(panda.quaternion(self.relative(handle, to)[:3, :3]))

    def simGetObjectOrientation(self, handle, to):
        """Angles about x, y', z''."""
        r = self.relative(handle, to)[:3, :3]
        return _single([math.atan2(-r[1, 2], r[2, 2]), math.asin(r[0, 2]), math.atan2(-r[0, 1], r[0, 0])])

    def simGetObjectMatrix(self, handle, to):
        return _single(self.relative(handle, to)[:3])

    def simSetObjectPosition(self, handle, to, position):
        self.move(handle, to, panda.place(position, self.relative(handle, to)[:3, :3]))

    def simSetObjectQuaternion(self, handle, to, quaternion):
        self.move(handle, to, panda.place(self.relative(handle, to)[:3, 3], panda.rotation(quaternion)))

    def simSetObjectOrientation(self, handle, to, angles):
        turn = (
            panda.turn([1, 0, 0], angles[0])
            @ panda.turn([0, 1, 0], angles[1])
            @ panda.turn([0, 0, 1], angles[2])
        )
        self.move(handle, to, panda.place(self.relative(handle, to)[:3, 3], turn))

    def simSetObjectMatrix(self, handle, to, matrix):
        self.move(handle, to, np.vstack([np.reshape(matrix, (3, 4)), [0, 0, 0, 1]]))

    def simRotateAroundAxis(self, matrix, axis, position, angle):
        pose = np.vstack([np.reshape(matrix, (3, 4)), [0, 0, 0, 1]])
        there = panda.place(position)
        return list(
            (there @ panda.place((0, 0, 0), panda.turn(axis, angle)) @ np.linalg.inv(there) @ pose)[
                :3
            ].ravel()
        )

    def simResetDynamicObject(self, handle): ...

    def simGetModelProperty(self, handle):
        return 0 if self.things[handle].more.get("model") else self.sim.sim_modelproperty_not_model

    def simSetModelProperty(self, handle, value): ...

    def simGetExtensionString(self, handle, index, key):
        return ""

    def simRemoveObject(self, handle):
        del self.things[handle]

    def simRemoveModel(self, handle):
        for below in self.tree(handle):
            del self.things[below]

    def simLoadModel(self, path):
        """The objects that reach_target's code asks for."""
        if not path.endswith("reach_target.ttm"):
            raise RuntimeError("The call failed on the V-REP side. Return value: -1")
        base = self.add("reach_target", _DUMMY, -1, np.eye(4), model=True)
        self.add("boundary", _SHAPE, base, panda.place((0.05, 0.0, 0.3)), box=(0.2, 0.35, 0.2))
        for name in ("target", "distractor0", "distractor1"):
            self.add(
                name, _SHAPE, base, np.eye(4), box=(_RADIUS,) * 3, colour=[1.0] * 3, special=EVERY_PROPERTY
            )
        self.add_lamp("TaskLamp", base, on=1, diffuse=0.0)
        target = self.simGetObjectHandle("target")
        self.add("success", _PROXIMITY, target, np.eye(4))
        self.add("waypoint0", _DUMMY, target, panda.place((0, 0, 0), panda.turn([0, 1, 0], math.pi)))
        return base

    def simCreateDummy(self, size, colour):
        return self.add(f"Dummy{self.next}", _DUMMY, -1, np.eye(4))

    def simGetConfigurationTree(self, handle):
        kept = self.tree(handle)
        return {key: (self.things[key].pose.copy(), self.things[key].value) for key in kept}

    def simSetConfigurationTree(self, kept):
        for key in kept.keys() & self.things.keys():  # what has been removed since stays away
            thing, (pose, value) = self.things[key], kept[key]
            thing.pose, thing.value, thing.target = pose.copy(), value, value

    def simGetObjectFloatParameter(self, handle, parameter):
        sim, more = self.sim, self.things[handle].more
        bounds = {}
        for axis, name in enumerate("xyz"):
            half = more.get("box", (0, 0, 0))[axis]
            bounds[getattr(sim, f"sim_objfloatparam_objbbox_min_{name}")] = -half
            bounds[getattr(sim, f"sim_objfloatparam_objbbox_max_{name}")] = half
        if self.things[handle].kind == _JOINT:
            return 2.0  # the upper velocity limit
        if self.things[handle].kind == _VISION:
            angle = np.float32(math.radians(more["degrees"]))
            return {
                sim.sim_visionfloatparam_perspective_angle: float(angle),
                sim.sim_visionfloatparam_near_clipping: 0.01,
                sim.sim_visionfloatparam_far_clipping: 3.5,
            }[parameter]
        return bounds[parameter]

    # --- joints and paths ---
    def simGetJointPosition(self, handle):
        return _single(self.things[handle].value)[0]

    def simSetJointPosition(self, handle, value):
        self.things[handle].value = value

    def simSetJointTargetPosition(self, handle, value):
        assert math.isfinite(value)
        self.things[handle].target = value

    def simSetJointTargetVelocity(self, handle, value):
        self.things[handle].speed = value

    def simGetJointInterval(self, handle):
        if handle in self.fingers:
            return False, [0.0, 0.04]
        index = self.arm.index(handle)
        return False, [panda.LOW[index], panda.HIGH[index] - panda.LOW[index]]

    def simGetObjectInt32Parameter(self, handle, parameter):
        if parameter == self.sim.sim_visionintparam_render_mode:
            return self.things[handle].more["mode"]
        return 1 if self.things[handle].kind == _JOINT else self.things[handle].more["explicit"]

    def simSetObjectInt32Parameter(self, handle, parameter, value):
        if self.things[handle].kind == _VISION:
            size = [self.sim.sim_visionintparam_resolution_x, self.sim.sim_visionintparam_resolution_y]
            if parameter in size:
                self.things[handle].more["size"] = list(self.things[handle].more["size"])
                self.things[handle].more["size"][size.index(parameter)] = value
            if parameter == self.sim.sim_visionintparam_render_mode:
                self.things[handle].more["mode"] = value

    def simSetObjectFloatParameter(self, handle, parameter, value):
        assert parameter == self.sim.sim_visionfloatparam_perspective_angle
        self.things[handle].more["degrees"] = math.degrees(np.float32(value))

    def simGetIkGroupHandle(self, name):
        return 1

    def simGetCollectionHandle(self, name):
        return 2

    def simCheckCollision(self, first, second):
        return 0

    def simCheckIkGroup(self, group, joints):
        """One Jacobian's worth: only near poses are found."""
        found = panda.solve(self.angles(), self.world(self.goal), iterations=4)
        return (
            (self.sim.sim_ikresult_fail, [])
            if found is None
            else (self.sim.sim_ikresult_success, list(found))
        )

    def generateIkPath(self, group, joints, steps, pairs=None, options=None):
        """A straight line of the tip; empty if it cannot be followed."""
        begin, end, angles, path = self.world(self.tip), self.world(self.goal), self.angles(), [self.angles()]
        turn = panda.error(begin, end)[3:]
        for part in np.linspace(0, 1, steps)[1:]:
            way = panda.place(begin[:3, 3] + part * (end[:3, 3] - begin[:3, 3]))
            angle = np.linalg.norm(turn)
            way[:3, :3] = (np.eye(3) if angle < 1e-9 else panda.turn(turn, part * angle)) @ begin[:3, :3]
            angles = panda.solve(angles, way, iterations=10)
            if angles is None:
                return []
            path.append(angles)
        return list(np.concatenate(path))

    def simGetConfigForTipPose(self, group, joints, threshold, time, metric, pairs, options, low, high):
        start = np.random.RandomState(len(self.runs)).uniform(low, np.minimum(high, panda.HIGH))
        found = panda.solve(np.clip(start, panda.LOW, panda.HIGH), self.world(self.goal), iterations=20)
        return [] if found is None else list(found)

    def simExtCallScriptFunction(self, name, script, ints, floats, strings, buffer):
        assert name == "getNonlinearPath@PyRep", name
        path = np.linspace(self.angles(), floats[:7], 50)
        return [], list(path.ravel()), [], ""

    def simRMLPos(self, dofs, smallest, flags, now, limits, selection, target):
        self.runs[len(self.runs) + 1] = [now[0], target[0], limits[0]]
        return len(self.runs)

    def simRMLStep(self, handle, dt, dofs):
        run = self.runs[handle]
        run[0] = min(run[0] + run[2] * dt, run[1])
        return int(run[0] >= run[1]), [run[0], run[2], 0.0]

    def simRMLRemove(self, handle): ...

    def simAddDrawingObject(self, **arguments):
        return 1

    def simAddDrawingObjectItem(self, handle, item): ...

    # --- sensors ---
    def simCheckProximitySensor(self, sensor, entity):
        if self.things[sensor].name != "success":
            return 0, [0.0] * 3
        near = np.linalg.norm(self.world(sensor)[:3, 3] - self.world(entity)[:3, 3]) < 0.02
        return int(near), [0.0] * 3

    def simSetExplicitHandling(self, handle, value):
        self.things[handle].more["explicit"] = value

    def simGetExplicitHandling(self, handle):
        return self.things[handle].more.get("explicit", 0)


def install(sim):
    """Put a scene's methods in the place of the functions of their names."""
    scene = Scene(sim)
    for name in dir(Scene):
        if name.startswith("sim") or name == "generateIkPath":
            assert hasattr(sim, name), name
            setattr(sim, name, getattr(scene, name))
