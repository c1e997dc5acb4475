"""Writes the pictures of docs/concepts.md: `python -m benchmarks.report.concept_pictures docs`.

One shows a demonstration's pictures over its action images, view by view; the other which segments each plan
has and what is given of them, from the plans themselves.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from ai_wam.canvas import Kind, Segment, plan
from ai_wam.episodes import Episode
from benchmarks.report.rollout_picture import demonstration, frames_with_actions

PLANS = ("policy", "joint", "labeling", "annotation", "action_conditioned", "video_only", "cross_view")
_VIEWS = ("front", "left_shoulder")
_LATENT_FRAMES = 3
_COLOURS = {Kind.VIDEO: "#4f7cac", Kind.ACTION: "#c05746"}
_LIGHT = 0.3  # opacity of what is generated


def action_images(episode: Episode, count: int = 4) -> Figure:
    """A demonstration at a few times: pictures in the upper rows, its action images below.

    Args:
        episode: with actions.
        count: columns.
    """
    whole = torch.from_numpy(frames_with_actions(episode))
    size = whole.shape[2] // 3
    rows = [
        whole[:, v * size : (v + 1) * size, k * size : (k + 1) * size]
        for k in (0, 1)
        for v in range(len(_VIEWS))
    ]
    chosen = np.linspace(0, len(whole) - 1, count).round().astype(int)
    figure = Figure(figsize=(2 * count, 8), layout="constrained")
    axes = figure.subplots(len(rows), count, squeeze=False)
    names = [f"{what}\n{view}" for what in ("picture", "action image") for view in _VIEWS]
    for row, (frames, name) in enumerate(zip(rows, names, strict=True)):
        for column, frame in enumerate(chosen):
            _picture(
                axes[row][column], frames[frame].numpy(), f"{frame / episode.hz:.1f} s" if row == 0 else ""
            )
        axes[row][0].set_ylabel(name)
    return figure


def plans(names: Sequence[str] = PLANS) -> Figure:
    """The canvas of every plan, for two views and three latent frames.

    Args:
        names: plans, from top to bottom.
    """
    figure = Figure(figsize=(8, 0.62 * len(names) + 0.7), layout="constrained")
    axes: Axes = figure.subplots()
    for row, name in enumerate(names):
        left = 0.0
        for segment in plan(name).segments(2, _LATENT_FRAMES):
            left = _segment(axes, segment, left, row)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(-0.2, 4 * (_LATENT_FRAMES + 0.5))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    handles = [
        Patch(color=_COLOURS[kind], alpha=alpha, label=f"{kind.value}, {what}")
        for kind in Kind
        for what, alpha in (("given", 1.0), ("generated", _LIGHT))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _segment(axes: Axes, segment: Segment, left: float, row: int) -> float:
    """Draw a segment's latent frames; gives where the next one begins."""
    for frame in range(segment.length):
        given = frame < segment.given
        box = Rectangle(
            (left + frame, row - 0.3),
            0.92,
            0.6,
            color=_COLOURS[segment.kind],
            alpha=1.0 if given else _LIGHT,
            lw=0,
        )
        axes.add_patch(box)
    axes.text(left, row + 0.45, f"{segment.kind.value} {segment.view}", fontsize=7, color="0.4", va="center")
    return left + segment.length + 0.4


def _picture(axes: Axes, pixels: np.ndarray, title: str) -> None:
    axes.imshow(pixels)
    axes.set_title(title, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])


def main() -> None:
    """Write both pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="folder")
    out: Path = parser.parse_args().out
    shown = demonstration("pick_up_cup", _VIEWS, 160)
    action_images(shown).savefig(out / "concepts_action_images.png", dpi=90)
    plans().savefig(out / "concepts_plans.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
