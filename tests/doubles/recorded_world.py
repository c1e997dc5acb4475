"""Answers as the RLBench adapter did over the genuine Python sources."""

import json
from pathlib import Path

import numpy as np

RECORDING = json.loads((Path(__file__).parents[1] / "fixtures" / "rlbench_reach_target.json").read_text())


class World:
    def __init__(self, **settings):
        self.settings, self.taken = settings, 0

    def reset(self, task, variation, seed, attempts, shift):
        assert shift == {}
        assert (task, variation, seed) == (RECORDING["task"], RECORDING["variation"], RECORDING["seed"])
        self.taken = 0
        reply = {name: np.array(RECORDING[name]) for name in ("pose", "actions")}
        return {
            **reply,
            "instructions": RECORDING["instructions"],
            "change": RECORDING["change"],
            "state": np.zeros(3),
            "distractors": np.empty((0, 8)),
        }

    def step(self, action):
        wanted = RECORDING["actions"][self.taken]
        np.testing.assert_allclose(np.abs(action @ wanted), np.dot(wanted, wanted), rtol=1e-5)
        self.taken += 1
        solved = self.taken == len(RECORDING["actions"])
        return {"outcome": "reached", "success": solved, "terminate": solved, "pose": np.array(wanted)}

    def observe(self, cameras):
        size = self.settings["image_size"]
        return {
            name: {
                "image": np.zeros((*size, 3), np.uint8),
                "intrinsics": np.array(RECORDING["cameras"][name]["intrinsics"]),
                "extrinsics": np.array(RECORDING["cameras"][name]["extrinsics"]),
            }
            for name in cameras
        }
