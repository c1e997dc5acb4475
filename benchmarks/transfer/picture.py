"""A picture of what a policy saw at some points of its sweep, with its success there."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ai_wam.files.atomic import atomic_file

_ENLARGED, _COLUMNS, _GAP, _LABEL = 2, 4, 12, 30  # pixels, but for the first two
_PAPER, _INK = (255, 255, 255), (40, 44, 52)


def write_picture(file: Path, seen: Sequence[tuple[str, Path]]) -> None:
    """Write a PNG: first pictures of tests in rows, a label over each.

    Args:
        file: to be written.
        seen: labels, and pictures of one size.
    """
    tiles = [(label, _read(picture)) for label, picture in seen]
    w, h = tiles[0][1].size
    columns, rows = min(_COLUMNS, len(tiles)), -(-len(tiles) // _COLUMNS)
    size = columns * (w + _GAP) + _GAP, rows * (h + _LABEL + _GAP) + _GAP
    sheet, font = Image.new("RGB", size, _PAPER), ImageFont.load_default(size=19)
    draw = ImageDraw.Draw(sheet)
    for index, (label, tile) in enumerate(tiles):
        x = _GAP + index % _COLUMNS * (w + _GAP)
        y = _GAP + index // _COLUMNS * (h + _LABEL + _GAP)
        draw.text((x, y), label, fill=_INK, font=font)
        sheet.paste(tile, (x, y + _LABEL))
    with atomic_file(file) as stream:
        sheet.save(stream, "PNG", optimize=True)


def _read(picture: Path) -> Image.Image:
    with Image.open(picture) as opened:
        small = opened.convert("RGB")
    return small.resize((small.width * _ENLARGED, small.height * _ENLARGED), Image.Resampling.NEAREST)
