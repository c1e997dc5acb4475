"""LeRobot v3.0: two episodes in one parquet file and in one AV1 video per camera, as LeRobot packs them."""

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from source_fixtures.truth import (
    FRONT,
    SIDE,
    SIZE,
    HandCamera,
    TrueEpisode,
    Truth,
    pictures,
    pixels,
    poses,
    tool_positions,
)

FPS, LENGTHS = 10, (7, 5)
VIEWS = {"observation.images.top": "top", "observation.images.hand": "hand"}
TASKS = ("pick up the cup", "close the drawer")
CODECS = {"libsvtav1": {"g": "2", "crf": "30", "svtav1-params": "lp=1"}, "libx264": {"g": "2", "crf": "18"}}


def encode(path: Path, images: np.ndarray, codec: str) -> None:
    """As LeRobot's encoder: 4:2:0, a key frame at every second picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=FPS, options=CODECS[codec])
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def hand_cameras(length: int, shift: float) -> list[HandCamera]:
    positions = tool_positions(length, shift)
    return [SIDE.moved(position - positions[0]) for position in positions]


def entry(cameras: list[HandCamera], inverse: bool = False) -> dict[str, Any]:
    """An entry of the side file: one matrix for a still camera, else one per frame."""
    matrices = [c.world_from_camera for c in cameras]
    matrices = [np.linalg.inv(m) for m in matrices] if inverse else matrices
    listed = [m.tolist() for m in matrices]
    pose = listed[0] if len(listed) == 1 else listed
    key = "world_to_camera" if inverse else "camera_to_world"
    return {"K": cameras[0].intrinsics.tolist(), "size": list(SIZE), key: pose}


def side_files(root: Path) -> None:
    """The still camera for all, and a file for each episode, since the hand moves."""
    folder = root / "meta" / "cameras"
    folder.mkdir(parents=True)
    for number, length in enumerate(LENGTHS):
        cameras = {"top": entry([FRONT]), "hand": entry(hand_cameras(length, number), inverse=True)}
        (folder / f"episode_{number:06d}.json").write_text(json.dumps(cameras))


def info(version: str, data: str, video: str, state: int, **more: Any) -> dict[str, Any]:
    video_feature = {"dtype": "video", "shape": [*SIZE, 3], "names": ["height", "width", "channels"]}
    single = {"shape": [1], "names": None}
    return {
        "codebase_version": version,
        "robot_type": "franka",
        "total_episodes": len(LENGTHS),
        "total_frames": sum(LENGTHS),
        "total_tasks": len(TASKS),
        "chunks_size": 1000,
        "fps": FPS,
        "splits": {"train": f"0:{len(LENGTHS)}"},
        "data_path": data,
        "video_path": video,
        "features": {
            **dict.fromkeys(VIEWS, video_feature),
            "observation.state": {"dtype": "float32", "shape": [state], "names": None},
            "action": {"dtype": "float32", "shape": [state], "names": None},
            "timestamp": {"dtype": "float32", **single},
            **{
                key: {"dtype": "int64", **single}
                for key in ("frame_index", "episode_index", "index", "task_index")
            },
        },
        **more,
    }


def rows(number: int, state: np.ndarray, begin: int) -> dict[str, Any]:
    """Columns of an episode; `action` is the next state, so that reading the wrong column shows."""
    length = len(state)
    return {
        "observation.state": state.astype(np.float32).tolist(),
        "action": np.roll(state, -1, axis=0).astype(np.float32).tolist(),
        "timestamp": (np.arange(length) / FPS).astype(np.float32).tolist(),
        "frame_index": list(range(length)),
        "episode_index": [number] * length,
        "index": list(range(begin, begin + length)),
        "task_index": [number] * length,
    }


def table(columns: dict[str, Any]) -> pa.Table:
    width = len(columns["action"][0])
    types = {"timestamp": pa.float32(), "observation.state": pa.list_(pa.float32(), width)}
    types["action"] = types["observation.state"]
    return pa.table({key: pa.array(value, types.get(key, pa.int64())) for key, value in columns.items()})


def true_episodes(openness: list[np.ndarray]) -> list[TrueEpisode]:
    found = []
    for number, length in enumerate(LENGTHS):
        tool = poses(length, number)
        where = {
            "top": pixels(FRONT, tool[:, :3]),
            "hand": pixels(hand_cameras(length, number), tool[:, :3]),
        }
        images = {"top": pictures(length, number), "hand": pictures(length, number + 4)}
        actions = np.column_stack([tool, openness[number]])
        found.append(
            TrueEpisode(f"episode_{number:06d}", float(FPS), (TASKS[number],), actions, where, images)
        )
    return found


def write(root: Path) -> Truth:
    """The whole data set."""
    truth = true_episodes([np.linspace(0, 1, length) for length in LENGTHS])
    data, video = (
        "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    )
    side_files(root)
    content = info("v3.0", data, video, 8, data_files_size_in_mb=100, video_files_size_in_mb=500)
    (root / "meta" / "info.json").write_text(json.dumps(content, indent=4))
    begins = np.concatenate([[0], np.cumsum(LENGTHS)])
    parts = [rows(i, t.actions, int(begins[i])) for i, t in enumerate(truth)]
    joined = {key: [value for part in parts for value in part[key]] for key in parts[0]}
    (root / "data" / "chunk-000").mkdir(parents=True)
    pq.write_table(table(joined), root / data.format(chunk_index=0, file_index=0))
    episodes: list[dict[str, Any]] = []
    for number, length in enumerate(LENGTHS):
        row = {"episode_index": number, "tasks": [TASKS[number]], "length": length}
        row |= {"data/chunk_index": 0, "data/file_index": 0}
        row |= {"dataset_from_index": int(begins[number]), "dataset_to_index": int(begins[number + 1])}
        for key in VIEWS:
            times = {"from_timestamp": begins[number] / FPS, "to_timestamp": begins[number + 1] / FPS}
            places = {"chunk_index": 0, "file_index": 0, **times}
            row |= {f"videos/{key}/{name}": value for name, value in places.items()}
        episodes.append({**row, "stats/action/min": [0.0] * 8})
    (root / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    tasks = pa.table({"task_index": list(range(len(TASKS))), "__index_level_0__": list(TASKS)})
    pq.write_table(tasks, root / "meta" / "tasks.parquet")  # as pandas writes an index without a name
    pq.write_table(
        pa.Table.from_pylist(episodes), root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    )
    for key, name in VIEWS.items():
        whole = np.concatenate([episode.images[name] for episode in truth])
        encode(root / video.format(video_key=key, chunk_index=0, file_index=0), whole, "libsvtav1")
    return Truth({"path": str(root)}, truth, levels=8.0, notes={"prefix": "observation.images."})
