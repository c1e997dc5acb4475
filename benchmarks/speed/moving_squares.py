"""Small drawn episodes, for measurements and tests of everything that reads or writes episodes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ai_wam.episodes import Episode, Frame, View

_INSTRUCTIONS = ("follow the square", "go after the square", "track it")


@dataclass(frozen=True)
class MovingSquares:
    """Small drawn episodes with true geometry: a coloured square slides over a shaded background.

    Attributes:
        episodes: number of them.
        frames: of the shortest episode; others have up to two more.
        size: height and width.
        hz: frames per second.
        views: camera names; one called "wrist" moves, the others stand still.
        actions: whether actions are recorded.
    """

    episodes: int = 4
    frames: int = 20
    size: tuple[int, int] = (64, 64)
    hz: float = 20.0
    views: tuple[str, ...] = ("front", "left_shoulder")
    actions: bool = True

    def __len__(self) -> int:
        return self.episodes

    def __getitem__(self, index: int) -> Episode:
        key = f"squares-{index:04d}"
        provenance = {"source": "moving squares", "number": index}
        return Episode(key, self._frames(index), _INSTRUCTIONS, self.hz, provenance)

    def _frames(self, index: int) -> Iterator[Frame]:
        draw = np.random.default_rng(index)
        colour, begin = draw.integers(0, 256, 3, dtype=np.uint8), draw.uniform(0, 0.5, 2)
        for number in range(self.frames + index % 3):
            place = (begin + 0.01 * number) % 0.75
            views = {name: self._view(i, name, number, place, colour) for i, name in enumerate(self.views)}
            action = np.array([*place, 0.8, 0.0, 1.0, 0.0, 0.0, number % 2])
            yield Frame(views, action if self.actions else None, number / self.hz)

    def _view(self, order: int, name: str, number: int, place: np.ndarray, colour: np.ndarray) -> View:
        h, w = self.size
        rows, columns = np.arange(h)[:, None], np.arange(w)[None]
        shade = (80 + 60 * order + 40 * rows / h + 40 * columns / w).clip(0, 255)
        image = np.repeat(shade[..., None], 3, axis=2).astype(np.uint8)
        top, left = (place * self.size).astype(int)
        image[top : top + h // 4, left : left + w // 4] = colour
        pose = np.diag([1.0, -1.0, -1.0, 1.0])  # looks down
        pose[:3, 3] = [0.1 * order + (0.01 * number if name == "wrist" else 0.0), 0.0, 1.5]
        return View(image, np.array([[w, 0, w / 2], [0, w, h / 2], [0, 0, 1.0]]), pose)
