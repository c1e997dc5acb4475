"""A tabletop suite in MuJoCo: a Panda arm and primitives, in RLBench's world frame, cameras and actions."""
