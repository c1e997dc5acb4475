"""LeRobot v2.1: a file per episode; Euler angles and a gripper that counts how far it is closed."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from source_fixtures.lerobot import (
    LENGTHS,
    TASKS,
    VIEWS,
    encode,
    info,
    rows,
    side_files,
    table,
    true_episodes,
)
from source_fixtures.truth import Truth, euler_xyz

DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"


def write(root: Path) -> Truth:
    """The whole data set."""
    truth = true_episodes([np.arange(length) % 2 for length in LENGTHS])
    side_files(root)
    content = info("v2.1", DATA, VIDEO, 7, total_videos=len(LENGTHS) * len(VIEWS), total_chunks=1)
    (root / "meta" / "info.json").write_text(json.dumps(content, indent=4))
    tasks = [{"task_index": i, "task": task} for i, task in enumerate(TASKS)]
    episodes = [
        {"episode_index": i, "tasks": [TASKS[i]], "length": length} for i, length in enumerate(LENGTHS)
    ]
    for name, lines in (("tasks", tasks), ("episodes", episodes)):
        (root / "meta" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "data" / "chunk-000").mkdir(parents=True)
    for number, episode in enumerate(truth):
        closed = 0.085 * (1 - episode.actions[:, 7])
        state = np.column_stack([episode.actions[:, :3], euler_xyz(len(closed)), closed])
        where = {"episode_chunk": 0, "episode_index": number}
        pq.write_table(table(rows(number, state, sum(LENGTHS[:number]))), root / DATA.format(**where))
        for key, name in VIEWS.items():
            encode(root / VIDEO.format(video_key=key, **where), episode.images[name], "libx264")
    settings = {
        "rotation": "observation.state[3:6]",
        "rotation_as": "euler_xyz",
        "openness": "observation.state[6]",
        "closed_and_open": [0.085, 0.0],
    }
    return Truth({"path": str(root), **settings}, truth, levels=8.0, notes={"prefix": "observation.images."})
