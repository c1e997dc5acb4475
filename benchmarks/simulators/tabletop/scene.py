"""MJCF of a whole scene: table, floor, lights, cameras, arm and a task's own bodies."""

from benchmarks.simulators.camera_moves import Mount
from benchmarks.simulators.tabletop import panda

TABLE_TOP = 0.752  # metres, RLBench's


def mjcf(
    bodies: str, assets: str, mounts: dict[str, Mount], size: tuple[int, int], timestep: float, shadows: bool
) -> str:
    """MJCF of the whole model.

    Args:
        bodies: MJCF of the task's bodies; their geoms collide by default with everything.
        assets: MJCF of materials they use.
        mounts: cameras by name; "wrist" goes into the hand.
        size: height and width of the pictures, pixels.
        timestep: of the physics, seconds.
        shadows: draw shadows and smooth edges; four to six times slower without a GPU.
    """
    fixed = "".join(_camera(name, mount) for name, mount in mounts.items() if name != "wrist")
    arm = panda.body().format(wrist_camera=_camera("wrist", mounts["wrist"]))
    samples, shadow_size = (4, 1024) if shadows else (0, 0)
    slices = min(8 + max(size) // 16, 28)  # of round shapes: in small pictures vertices cost most
    return f"""
<mujoco model="tabletop">
  <compiler angle="radian"/>
  <option timestep="{timestep:.9g}" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual>
    <global offwidth="{size[1]}" offheight="{size[0]}"/>
    <quality offsamples="{samples}" shadowsize="{shadow_size}" numslices="{slices}"
             numstacks="{slices // 2}" numquads="1"/>
    <headlight ambient="0.45 0.45 0.45" diffuse="0.25 0.25 0.25" specular="0 0 0"/>
    <map znear="0.01" zfar="20"/>
  </visual>
  <asset>
    <texture name="sky" type="skybox" builtin="flat" rgb1="0.82 0.86 0.9" rgb2="0.82 0.86 0.9"
             width="8" height="48"/>
    {assets}
  </asset>
  <default>
    <geom contype="2" conaffinity="3" friction="1 0.02 0.0005"/>
    {panda.defaults()}
    <default class="visual"><geom contype="0" conaffinity="0" mass="0"/></default>
  </default>
  <worldbody>
    <light directional="true" pos="0 0 3" dir="-0.25 0.2 -1" diffuse="0.45 0.45 0.45" specular="0.1 0.1 0.1"
           castshadow="{"true" if shadows else "false"}"/>
    <geom name="floor" class="visual" type="plane" size="4 4 0.1" rgba="0.55 0.57 0.6 1"/>
    <geom name="table" type="box" pos="0.2 0 {TABLE_TOP - 0.02}" size="0.6 0.7 0.02"
          rgba="0.66 0.63 0.6 1"/>
    <geom class="visual" type="box" pos="0.2 0 {(TABLE_TOP - 0.04) / 2}"
          size="0.1 0.1 {(TABLE_TOP - 0.04) / 2}" rgba="0.45 0.4 0.35 1"/>
    {fixed}
    {arm}
    {bodies}
  </worldbody>
  <actuator>{panda.actuators()}</actuator>
</mujoco>"""


def _camera(name: str, mount: Mount) -> str:
    axes = " ".join(f"{value:.9g}" for value in (*mount.right, *mount.up))
    position = " ".join(f"{value:.9g}" for value in mount.position)
    return f'<camera name="{name}" pos="{position}" xyaxes="{axes}" fovy="{mount.fov:.9g}"/>'
