"""`ai-wam label`: recordings without actions into shards with actions, read off their videos by a model."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ai_wam.cli.load_task import digest, load_task
from ai_wam.episodes import EpisodeSource
from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import as_path, write_json
from ai_wam.video import VideoEncoding
from datamodules.shards.convert_source import OnBadEpisode, left_out_lines, write_shards
from datamodules.shards.parallel_writing import Workers
from datamodules.shards.reader import ShardSet
from tasks.labeled_source import PLAN, LabeledSource

REPORT = "labels.json"


def label(
    ckpt_path: str,
    out: str,
    shards: str | None = None,
    source: EpisodeSource | None = None,
    min_confidence: float = 0.2,
    min_share: float = 0.9,
    sampling_steps: int | None = None,
    batch_size: int = 8,
    episodes_per_shard: int = 64,
    ray: int = 0,
    gpus: float = 0.0,
    lossless: bool = False,
    gop: int = 1,
    on_error: OnBadEpisode = "raise",
) -> None:
    """Label every frame of every episode and print how much was kept.

    An episode of which too few frames are sure is written without actions, and trains as video only. A
    finished folder is never written again; an interrupted one resumes at the first missing shard.

    Args:
        ckpt_path: a model that was trained on the annotation plan.
        out: folder of the labeled shards; made if missing.
        shards: folder of the shards to be labeled; either this or `source`.
        source: any other recordings: `--source datamodules.sources.folder.FolderSource --source.path
            recordings`, or another source of docs/sources.md.
        min_confidence: of the decoder (1 = exact), below which a frame is not sure.
        min_share: of sure frames, below which an episode gets no actions.
        sampling_steps: of the model; the checkpoint's own if left out.
        batch_size: windows per forward pass.
        episodes_per_shard: episodes in all shards but the last.
        ray: workers of a Ray cluster that label instead of this process (extra `ray`).
        gpus: of every Ray worker.
        lossless: keep every pixel exactly, at about ten times the size.
        gop: frames from one key frame to the next.
        on_error: "skip" leaves out episodes that cannot be read or are malformed, and lists them at the end.
    """
    if (shards is None) == (source is None):
        raise InvalidValue("give either --shards FOLDER or --source; one of them, not both")
    recordings = ShardSet(shards) if shards is not None else source
    assert recordings is not None
    changes = [] if sampling_steps is None else [f"sampling.steps={sampling_steps}"]
    task = load_task(ckpt_path, *changes, plan=PLAN)
    known = {"file": Path(ckpt_path).name, "sha256": digest(ckpt_path), "steps": task.sampling.steps}
    on_gpu = gpus > 0 if ray else torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    labeled = LabeledSource(recordings, task, known, min_confidence, min_share, batch_size, device)
    encoding = VideoEncoding(lossless=lossless, gop=gop)
    workers = Workers(0, ray, gpus)
    index = write_shards(labeled, out, episodes_per_shard, workers, encoding, on_error=on_error)
    report = summary(ShardSet(out))
    write_json(as_path(out) / REPORT, report)
    print("\n".join([_table(out, report), *left_out_lines(index)]))


def summary(labeled: ShardSet) -> dict[str, Any]:
    """Confidence of the labels of a folder, and the share that was kept."""
    headers = [labeled.header(index) for index in range(len(labeled))]
    labels = [header.labels for header in headers if header.labels is not None]
    confidence = np.concatenate([each.confidence for each in labels])
    disagreement = np.concatenate([each.disagreement_px[each.valid] for each in labels])
    thresholds = [0.05, 0.1, 0.2, 0.3, 0.5, 0.7]
    return {
        "episodes": len(headers),
        "episodes_kept": sum(header.provenance["labels"]["kept"] for header in headers),
        "frames": len(confidence),
        "frames_valid": sum(int(each.valid.sum()) for each in labels),
        "confidence_median": float(np.median(confidence)),
        "disagreement_px_median": float(np.median(disagreement)) if len(disagreement) else None,
        "frames_above": {f"{level:g}": float((confidence >= level).mean()) for level in thresholds},
    }


def _table(out: str, report: dict[str, Any]) -> str:
    kept, episodes = report["episodes_kept"], report["episodes"]
    disagreement = report["disagreement_px_median"]
    lines = [
        f"{out}: {kept} of {episodes} episodes kept with actions = {kept / episodes:.0%}, the rest without",
        f"  {report['frames_valid']} of {report['frames']} frames have a measured pose; median confidence "
        f"{report['confidence_median']:.2f}"
        + ("" if disagreement is None else f", views disagree by {disagreement:.2f} pixels"),
        "  share of frames above a confidence: "
        + ", ".join(f"{level} {share:.0%}" for level, share in report["frames_above"].items()),
    ]
    return "\n".join(lines)
