"""A contact sheet of a folder of shards: some episodes, all views, action images over them."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from ai_wam.action_images import ActionImageTokenizer
from ai_wam.cameras import CropResize
from ai_wam.files.atomic import AnyPath, atomic_file
from ai_wam.utils.counted import counted
from ai_wam.video import overlay
from datamodules.checks.inspection import chosen_frames, fitted_cameras
from datamodules.shards.reader import ShardSet

_PAPER, _INK, _FAINT = (250, 250, 248), (30, 32, 36), (120, 124, 130)
_CAPTION = 1000  # characters of a caption that are measured; more never fit
_MARGIN, _GAP, _GROUP, _LINE, _HEAD = 24, 4, 16, 18, 48


def contact_sheet(
    shards: ShardSet,
    episodes: Sequence[int],
    tokenizer: ActionImageTokenizer,
    cell: int = 144,
    columns: int = 3,
) -> Image.Image:
    """A row per episode: each view at a few moments, with its action image where actions were recorded.

    Args:
        shards: the set.
        episodes: which of its episodes.
        tokenizer: draws the action images.
        cell: height and width of a picture, pixels.
        columns: moments of each view.
    """
    views = list(dict.fromkeys(view for index in episodes for view in shards.episodes[index].views))
    block = columns * (cell + _GAP) - _GAP
    width = 2 * _MARGIN + len(views) * (block + _GROUP) - _GROUP
    row = cell + 2 * _LINE + _GROUP
    sheet = Image.new("RGB", (width, 2 * _MARGIN + _HEAD + len(episodes) * row - _GROUP), _PAPER)
    draw, font, bold = ImageDraw.Draw(sheet), ImageFont.load_default(12), ImageFont.load_default(16)
    total = sum(entry.frames / entry.hz for entry in shards.episodes)
    title = f"{shards.folder.name}: {counted(len(shards), 'episode')}, {total / 60:.1f} min"
    draw.text((_MARGIN, _MARGIN - 8), title, _INK, bold)
    for number, view in enumerate(views):
        draw.text((_MARGIN + number * (block + _GROUP), _MARGIN + _LINE), view, _FAINT, font)
    for number, index in enumerate(episodes):
        top = _MARGIN + _HEAD + number * row
        entry, header = shards.episodes[index], shards.header(index)
        draw.text((_MARGIN, top), f"{entry.key}   {entry.frames / entry.hz:.1f} s", _INK, font)
        caption = _shortened(" | ".join(header.instructions), font, width - 2 * _MARGIN)
        draw.text((_MARGIN, top + _LINE - 3), caption, _FAINT, font)
        for place, pictures in zip(
            views, _pictures(shards, index, views, tokenizer, cell, columns), strict=True
        ):
            left = _MARGIN + views.index(place) * (block + _GROUP)
            for column, picture in enumerate(pictures):
                at = (left + column * (cell + _GAP), top + 2 * _LINE)
                sheet.paste(Image.fromarray(picture), at)
    return sheet


def write_contact_sheet(
    path: AnyPath, shards: ShardSet, episodes: Sequence[int], tokenizer: ActionImageTokenizer, rows: int = 8
) -> None:
    """Write the sheet of up to `rows` of some episodes, evenly spread over them, as PNG."""
    sheet = contact_sheet(shards, [episodes[i] for i in chosen_frames(len(episodes), rows)], tokenizer)
    with atomic_file(path) as stream:
        sheet.save(stream, "PNG")


def _pictures(
    shards: ShardSet,
    index: int,
    views: Sequence[str],
    tokenizer: ActionImageTokenizer,
    cell: int,
    columns: int,
) -> list[UInt8[np.ndarray, "n h w 3"]]:
    """Pictures of some moments of an episode by view; empty for a view it lacks."""
    entry, header, size = shards.episodes[index], shards.header(index), (cell, cell)
    frames = chosen_frames(entry.frames, columns)
    cameras = fitted_cameras(shards, index, size, frames)
    found = []
    for view in views:
        if view not in entry.views:
            found.append(np.zeros((0, cell, cell, 3), np.uint8))
            continue
        images = torch.from_numpy(shards.images(index, view, frames)).permute(0, 3, 1, 2)
        scene = CropResize(entry.views[view], size).images(images) / 127.5 - 1
        drawn = torch.full_like(scene, -1)
        if header.actions is not None:
            actions = torch.from_numpy(header.actions[frames])[None]
            drawn = 2 * tokenizer.encode(actions, cameras[view][None, None], size)[0, 0].movedim(0, 1) - 1
        found.append(overlay(scene, drawn))
    return found


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    text, whole = text[:_CAPTION], text
    if font.getlength(text) <= width and text == whole:
        return text
    while text and font.getlength(text + " ...") > width:
        text = text[:-1]
    return text.rstrip() + " ..."
