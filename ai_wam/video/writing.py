"""Videos as bytes, written frame by frame or whole.

H.264 in MP4, one thread, no B-frames: the bytes depend on the frames alone. The default keeps full colour
resolution (4:4:4); `lossless` is exact; `browser` is the 4:2:0 that web pages play. Colours are stored as
BT.601 in limited range, and say so in the file, so that every player converts them back alike.
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from jaxtyping import UInt8

from ai_wam.errors import InvalidValue


@dataclass(frozen=True)
class VideoEncoding:
    """How frames are compressed.

    Attributes:
        crf: constant rate factor of x264, 0 (best) to 51.
        lossless: exact RGB instead, about ten times the size; `crf` has no say then.
        browser: 4:2:0 for web pages, which halves the colour resolution and needs even sizes.
        gop: frames from one key frame to the next; 1 makes every frame readable on its own.
    """

    crf: int = 18
    lossless: bool = False
    browser: bool = False
    gop: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.crf <= 51 or self.gop < 1:
            raise InvalidValue(f"{self}: crf must lie in 0..51 and gop be at least 1")
        if self.lossless and self.browser:
            raise InvalidValue(f"{self}: browsers play no lossless RGB video; choose one of the two")

    @property
    def codec(self) -> tuple[str, str, dict[str, str]]:
        """Encoder, pixel format and options as FFmpeg names them."""
        common = {"bf": "0", "sc_threshold": "0"}  # regular key frames, decoding order = showing order
        if self.lossless:
            return "libx264rgb", "rgb24", {"qp": "0", **common}
        return "libx264", "yuv420p" if self.browser else "yuv444p", {"crf": str(self.crf), **common}


class VideoWriter:
    """Encodes frames as they come, so that an episode never lies in memory uncompressed."""

    def __init__(self, size: tuple[int, int], hz: float, encoding: VideoEncoding | None = None) -> None:
        """Open an encoder.

        Args:
            size: height and width in pixels.
            hz: frames per second.
            encoding: how to compress; 4:4:4 with every frame a key frame if left out.

        Raises:
            ValueError: sizes or rates that cannot be encoded.
        """
        self.size, self.encoding = size, encoding or VideoEncoding()
        h, w = size
        if h < 1 or w < 1 or not hz > 0:
            raise InvalidValue(f"VideoWriter: size {size} must be positive and hz {hz} above 0")
        if self.encoding.browser and (h % 2 or w % 2):
            raise InvalidValue(
                f"VideoWriter: browser video needs an even height and width, got {h} x {w}; pad or crop"
            )
        codec, self._format, options = self.encoding.codec
        self._buffer = io.BytesIO()
        self._container = av.open(self._buffer, "w", format="mp4")
        self._stream: Any = self._container.add_stream(codec, rate=Fraction(hz).limit_denominator(10_000))
        self._stream.height, self._stream.width, self._stream.pix_fmt = h, w, self._format
        self._stream.options, self._stream.gop_size = options, self.encoding.gop
        self._stream.codec_context.thread_count = 1
        if not self.encoding.lossless:
            self._stream.codec_context.colorspace = int(Colorspace.ITU601)
            self._stream.codec_context.color_range = int(ColorRange.MPEG)
        self._reformatter = VideoReformatter()
        self.frames = 0

    def add(self, frame: UInt8[np.ndarray, "h w 3"]) -> None:
        """Append one RGB frame of the writer's size."""
        if frame.shape != (*self.size, 3) or frame.dtype != np.uint8:
            raise InvalidValue(
                f"VideoWriter: frame {self.frames} is {frame.dtype} {frame.shape}, expected uint8 "
                f"{(*self.size, 3)}"
            )
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        if not self.encoding.lossless:
            picture = self._reformatter.reformat(
                picture,
                format=self._format,
                dst_colorspace=Colorspace.ITU601,
                dst_color_range=ColorRange.MPEG,
                threads=1,
            )
        picture.pts = self.frames
        picture.time_base = 1 / self._stream.codec_context.framerate
        self._container.mux(self._stream.encode(picture))
        self.frames += 1

    def finish(self) -> bytes:
        """Close the encoder; gives the file.

        Raises:
            ValueError: no frame was added.
        """
        if not self.frames:
            raise InvalidValue("VideoWriter: a video needs at least one frame, got none")
        self._container.mux(self._stream.encode())
        self._container.close()
        return self._buffer.getvalue()


def write_video(frames: Iterable[np.ndarray], hz: float, encoding: VideoEncoding | None = None) -> bytes:
    """The frames as an MP4 file.

    Args:
        frames: uint8 "t h w 3", or an iterable of "h w 3".
        hz: frames per second.
        encoding: how to compress; see `VideoEncoding`.
    """
    writer: VideoWriter | None = None
    for frame in frames:
        writer = writer or VideoWriter((frame.shape[0], frame.shape[1]), hz, encoding)
        writer.add(frame)
    if writer is None:
        raise InvalidValue("write_video: a video needs at least one frame, got none")
    return writer.finish()
