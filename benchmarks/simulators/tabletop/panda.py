"""A Franka Panda with its hand: the public Denavit-Hartenberg table and limits, drawn with primitives."""

import math

import numpy as np

BASE = (-0.2687, 0.0, 0.752)  # RLBench's robot base, metres
JOINTS = tuple(f"joint{i}" for i in range(1, 8))
FINGERS = ("finger_left", "finger_right")
FINGER_TRAVEL = 0.04  # metres each finger moves between closed and open
FINGER_SPEED = 0.1  # m/s, data sheet
HOME = np.array([0.0, 0.1746, 0.0, -0.8727, 0.0, 1.2217, math.pi / 4])
MAX_SPEED = np.array([2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61])  # rad/s, data sheet
STIFFNESS = np.array([2000.0, 2000.0, 2000.0, 2000.0, 800.0, 800.0, 800.0])  # Nm/rad
DAMPING = STIFFNESS / 20  # Nm s/rad; the reference's velocity is fed forward, so damping costs no lag
# kg m^2, of the gears. A servo that saturates within one physics step chatters where the arm is near a
# singularity and its links' inertia vanishes: damping * physics step / inertia has to stay near 1 or below.
_ARMATURE = (0.5, 0.5, 0.5, 0.5, 0.2, 0.2, 0.2)
_LIMITS = (
    (-2.8973, 2.8973), (-1.7628, 1.7628), (-2.8973, 2.8973), (-3.0718, -0.0698),
    (-2.8973, 2.8973), (-0.0175, 3.7525), (-2.8973, 2.8973),
)  # fmt: skip
_TORQUE = (87, 87, 87, 87, 12, 12, 12)  # Nm, data sheet


def body() -> str:
    """MJCF of the arm: joints `joint1`-`joint7`, fingers, site `tip`, camera mount inside body `hand`.

    The tip frame is RLBench's Panda_tip: z out of the hand, y along the fingers' travel. `{wrist_camera}` is
    a placeholder for the rig's camera. Hand and fingers collide with objects; the other links do not.
    """
    joint = [_joint(*values) for values in zip(JOINTS, _LIMITS, _ARMATURE, strict=True)]
    return f"""
<body name="panda" gravcomp="1" pos="{BASE[0]} {BASE[1]} {BASE[2]}" childclass="panda">
  <geom class="shell" type="cylinder" fromto="0 0 0 0 0 0.06" size="0.09"/>
  <geom class="shell" fromto="0 0 0.06 0 0 0.2" size="0.06"/>
  <body name="link1" gravcomp="1" pos="0 0 0.333">{joint[0]}
    <geom class="shell" fromto="0 0 -0.12 0 0 -0.03" size="0.058"/>
    <body name="link2" gravcomp="1" quat="1 -1 0 0">{joint[1]}
      <geom class="knuckle" fromto="0 0 -0.055 0 0 0.055" size="0.058"/>
      <geom class="shell" fromto="0 -0.03 0 0 -0.18 0" size="0.055"/>
      <body name="link3" gravcomp="1" pos="0 -0.316 0" quat="1 1 0 0">{joint[2]}
        <geom class="shell" fromto="0 0 -0.1 0.06 0 -0.02" size="0.052"/>
        <body name="link4" gravcomp="1" pos="0.0825 0 0" quat="1 1 0 0">{joint[3]}
          <geom class="knuckle" fromto="0 0 -0.05 0 0 0.05" size="0.052"/>
          <geom class="shell" fromto="-0.02 0.02 0 -0.0825 0.11 0" size="0.05"/>
          <body name="link5" gravcomp="1" pos="-0.0825 0.384 0" quat="1 -1 0 0">{joint[4]}
            <geom class="shell" fromto="0 0 -0.27 0 0 -0.06" size="0.045"/>
            <body name="link6" gravcomp="1" quat="1 1 0 0">{joint[5]}
              <geom class="knuckle" fromto="0 0 -0.045 0 0 0.045" size="0.047"/>
              <geom class="shell" fromto="0.02 0 0 0.088 0 0" size="0.043"/>
              <body name="link7" gravcomp="1" pos="0.088 0 0" quat="1 1 0 0">{joint[6]}
                <geom class="knuckle" type="cylinder" fromto="0 0 0.03 0 0 0.105" size="0.04"/>
                <body name="hand" gravcomp="1" pos="0 0 0.107" quat="0.9238795325 0 0 -0.3826834324">
                  <geom class="hand" type="box" pos="0 0 0.032" size="0.03 0.1 0.032"/>
                  {{wrist_camera}}
                  <site name="tip" pos="0 0 0.1034" quat="0 0 0 1" group="4"/>
                  {_finger(FINGERS[0], "1 0 0 0")}{_finger(FINGERS[1], "0 0 0 1")}
                </body>
              </body>
            </body>
          </body>
        </body>
      </body>
    </body>
  </body>
</body>"""


def defaults() -> str:
    """MJCF default classes of the arm's parts; collision bits: 1 robot, 2 objects, never robot with robot."""
    return f"""
<default class="panda">
  <joint damping="1" axis="0 0 1"/>
  <default class="shell">
    <geom type="capsule" rgba="0.93 0.93 0.91 1" mass="1.2" contype="0" conaffinity="0"/>
  </default>
  <default class="knuckle">
    <geom type="capsule" rgba="0.62 0.65 0.68 1" mass="1.2" contype="0" conaffinity="0"/>
  </default>
  <default class="hand">
    <geom rgba="0.86 0.86 0.85 1" mass="0.6" contype="1" conaffinity="2"/>
  </default>
  <default class="finger">
    <joint type="slide" axis="0 1 0" range="0 {FINGER_TRAVEL}" armature="0.01" damping="2"/>
    <geom type="box" rgba="0.25 0.26 0.28 1" mass="0.03" contype="1" conaffinity="2" condim="4"
          friction="1.5 0.05 0.0005"/>
  </default>
</default>"""


def actuators() -> str:
    """MJCF of one position servo per joint and finger, in the order of `JOINTS` and `FINGERS`."""
    arm = "".join(
        f'<position name="{name}" joint="{name}" kp="{kp}" kv="{kv}" forcerange="-{torque} {torque}"/>'
        for name, kp, kv, torque in zip(JOINTS, STIFFNESS, DAMPING, _TORQUE, strict=True)
    )
    grip = "".join(
        f'<position name="{name}" joint="{name}" kp="600" kv="20" forcerange="-25 25"/>' for name in FINGERS
    )
    return arm + grip


def _joint(name: str, limits: tuple[float, float], armature: float) -> str:
    return f'<joint name="{name}" range="{limits[0]} {limits[1]}" armature="{armature}"/>'


def _finger(name: str, quaternion: str) -> str:
    return f"""
<body name="{name}" gravcomp="1" pos="0 0 0.0584" quat="{quaternion}" childclass="finger">
  <joint name="{name}"/>
  <geom name="{name}" pos="0 0.0075 0.033" size="0.0105 0.0075 0.021"/>
</body>"""
