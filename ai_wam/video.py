"""Videos as bytes, read frame by frame or whole, and pictures composed of them.

H.264 in MP4, one thread, no B-frames: the bytes depend on the frames alone. The default keeps full colour
resolution (4:4:4); `lossless` is exact; `browser` is the 4:2:0 that web pages play. Colours are stored as
BT.601 in limited range, and say so in the file, so that every player converts them back alike.
"""

import io
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import groupby
from math import ceil, sqrt
from typing import Any, Protocol, runtime_checkable

import av
import numpy as np
import torch
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from jaxtyping import Float, UInt8
from torch import Tensor

from ai_wam.errors import InvalidIndex, InvalidValue

_CODECS_KEPT = 16
_RATE_TOLERANCE = 0.01  # 29.97 frames a second are called 30
_PEDESTAL = 0.25  # an action image's blue background reaches this level without any point there


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


@runtime_checkable
class OpenFile(Protocol):
    """What FFmpeg needs of an open file, on this machine or in a store."""

    def read(self, size: int = -1, /) -> bytes:
        """So many bytes; all that are left for -1."""
        ...

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a place."""
        ...

    def tell(self) -> int:
        """The place."""
        ...


def iterate_video(source: bytes | str | OpenFile, begin: float = 0.0) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Every RGB frame of a video file (bytes, a path, or an open file), in order, from `begin` seconds on."""
    with av.open(io.BytesIO(source) if isinstance(source, bytes) else source) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        reformatter = VideoReformatter()
        first = begin - 0.5 / float(stream.average_rate or 1)  # times are rounded to the file's clock
        if begin and stream.time_base is not None:
            container.seek(int(begin / stream.time_base), stream=stream)  # to the key frame before it
        for frame in container.decode(stream):
            if not begin or frame.time >= first:
                yield _rgb(frame, reformatter)


@dataclass(frozen=True)
class VideoTable:
    """Where each frame's packet lies in a video file, in decoding order.

    Attributes:
        codec: FFmpeg's name of the decoder.
        extradata: the stream's headers.
        size: height and width.
        offsets: first byte of each packet.
        sizes: length of each packet in bytes.
        times: presentation time of each packet; frame i is the i-th smallest.
        keys: positions of the key frames, in decoding order.
        tick: seconds per unit of `times`.
    """

    codec: str
    extradata: bytes
    size: tuple[int, int]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    times: tuple[int, ...]
    keys: tuple[int, ...]
    tick: float

    def __len__(self) -> int:
        return len(self.offsets)

    @cached_property
    def shown(self) -> list[int]:
        """Presentation times, rising: entry i belongs to frame i."""
        return sorted(self.times)

    @cached_property
    def key_before(self) -> list[int]:
        """Position of the packet to start decoding at, for each frame."""
        positions = sorted(self.keys, key=lambda position: self.times[position]) or [0]
        key_times = [self.times[position] for position in positions]
        return [positions[max(0, bisect_right(key_times, time) - 1)] for time in self.shown]

    def check_times(self, hz: float | None = None) -> None:
        """Frames must follow one another evenly, so that frame i is what was seen at i / hz.

        Args:
            hz: frames per second; whatever the video says if left out.

        Raises:
            ValueError: a frame that is missing or comes twice, or another rate.
        """
        if len(self) < 2:
            return
        steps = np.diff(self.shown) * self.tick
        usual = float(np.median(steps))
        uneven = np.flatnonzero(np.abs(steps - usual) > 0.5 * usual + self.tick)  # times are whole ticks
        if len(uneven) or not usual:
            frame = int(uneven[0]) if len(uneven) else 0
            raise InvalidValue(
                f"frame {frame + 1} is shown {steps[frame]:.4g} s after frame {frame}, others follow after "
                f"{usual:.4g} s: frames are missing, or the rate varies; write the video again at one rate"
            )
        rate = len(steps) / float(steps.sum())
        if hz is not None and abs(rate / hz - 1) > _RATE_TOLERANCE:
            raise InvalidValue(
                f"frames are shown at {rate:.4g} a second, but the recording is said to have {hz:g}; "
                "correct that number, or write the video again at this rate"
            )

    @classmethod
    def of(cls, data: bytes) -> "VideoTable":
        """The table of a file.

        Raises:
            ValueError: no readable video in it.
        """
        try:
            with av.open(io.BytesIO(data)) as container:
                stream = container.streams.video[0]
                context = stream.codec_context
                if context is None:  # the header breaks off before it says how to decode
                    raise InvalidValue("its header is damaged")
                packets = [packet for packet in container.demux(stream) if packet.size]
                if not packets or any(packet.pts is None for packet in packets):
                    raise InvalidValue(f"{len(packets)} frames are there, not all with a time")
                if len(packets) < stream.frames:  # the header's count, 0 where it gives none
                    raise InvalidValue(
                        f"{len(packets)} frames are there, its header promises {stream.frames}"
                    )
                return cls(
                    codec=context.name,
                    extradata=bytes(context.extradata or b""),
                    size=(context.height, context.width),
                    offsets=tuple(int(packet.pos) for packet in packets),
                    sizes=tuple(packet.size for packet in packets),
                    times=tuple(int(packet.pts) for packet in packets),
                    keys=tuple(i for i, packet in enumerate(packets) if packet.is_keyframe),
                    tick=float(stream.time_base or 0),
                )
        except (FFmpegError, IndexError, ValueError) as error:
            raise InvalidValue(f"no readable video in {len(data)} bytes: {error}") from error


class FrameDecoder:
    """Decodes chosen frames of many videos.

    One codec is kept per kind of stream, as opening one costs more than decoding a frame. Not to be shared
    between threads.
    """

    def __init__(self) -> None:
        self._codecs: OrderedDict[tuple[str, bytes], Any] = OrderedDict()
        self._reformatter = VideoReformatter()

    def decode(
        self, table: VideoTable, read: Callable[[int, int], bytes], indices: Sequence[int]
    ) -> UInt8[np.ndarray, "n h w 3"]:
        """RGB frames of a video; only the packets from the key frame before them are read.

        Args:
            table: where the packets are.
            read: gives so many bytes from such an offset of the file.
            indices: frame numbers from 0, in any order, repeats allowed.

        Raises:
            IndexError: a frame the video does not have.
            ValueError: packets that cannot be decoded.
        """
        wanted = sorted(set(indices))
        if not wanted or wanted[0] < 0 or wanted[-1] >= len(table):
            raise InvalidIndex(
                f"frames {list(indices)} asked of a video of {len(table)} frames (0..{len(table) - 1})"
            )
        codec = self._codec(table)
        try:
            pictures = {i: _rgb(f, self._reformatter) for i, f in _decode_sorted(codec, table, read, wanted)}
        except FFmpegError as error:
            raise InvalidValue(f"frames {wanted} cannot be decoded: {error}") from error
        finally:
            codec.flush_buffers()
        missing = [i for i in wanted if i not in pictures]
        if missing:
            raise InvalidValue(f"frames {missing} are missing from the video's packets")
        return np.stack([pictures[i] for i in indices])

    def _codec(self, table: VideoTable) -> Any:
        key = (table.codec, table.extradata)
        if key not in self._codecs:
            codec: Any = av.CodecContext.create(table.codec, "r")
            codec.extradata = table.extradata or None
            codec.thread_count = 1
            self._codecs[key] = codec
            if len(self._codecs) > _CODECS_KEPT:
                self._codecs.popitem(last=False)
        self._codecs.move_to_end(key)
        return self._codecs[key]


def decode_frames(data: bytes, indices: Sequence[int] | None = None) -> UInt8[np.ndarray, "n h w 3"]:
    """RGB frames of a video file, all if `indices` is left out; errors as in `FrameDecoder.decode`."""
    table = VideoTable.of(data)
    chosen = range(len(table)) if indices is None else indices
    return FrameDecoder().decode(table, lambda offset, size: data[offset : offset + size], chosen)


def to_uint8(video: Float[Tensor, "*n 3 h w"]) -> UInt8[np.ndarray, "*n h w 3"]:
    """Video in [-1, 1] as pictures, channels last; values outside are clipped."""
    levels = (video.detach().float().cpu() + 1) * 127.5
    return levels.round().clamp(0, 255).to(torch.uint8).movedim(-3, -1).contiguous().numpy()


def overlay(
    observation: Float[Tensor, "*n 3 h w"], action_images: Float[Tensor, "*n 3 h w"]
) -> UInt8[np.ndarray, "*n h w 3"]:
    """The points of action images painted over what the camera saw; both in [-1, 1].

    What the background level of the blue channel (the gripper's openness) can explain is left transparent.
    """
    level = (action_images.detach().float().cpu() + 1) / 2
    colour = ((level - _PEDESTAL) / (1 - _PEDESTAL)).clamp(0, 1)
    opacity = colour.amax(dim=-3, keepdim=True)
    scene = (observation.detach().float().cpu() + 1) / 2
    return to_uint8((scene * (1 - opacity) + colour) * 2 - 1)


def triptych(
    observation: Float[Tensor, "v 3 t h w"], action_images: Float[Tensor, "v 3 t h w"]
) -> UInt8[np.ndarray, "t vh w3 3"]:
    """Observation, action images and their overlay side by side, one row per view; both in [-1, 1]."""
    scene, actions = observation.movedim(1, 2), action_images.movedim(1, 2)  # v t 3 h w
    columns = np.concatenate(
        [to_uint8(scene), to_uint8(actions), overlay(scene, actions)], axis=-2
    )  # v t h 3w 3
    return np.concatenate(list(columns), axis=1)


def grid(videos: Sequence[np.ndarray], columns: int | None = None) -> UInt8[np.ndarray, "t gh gw 3"]:
    """Videos of one frame size on one sheet, row by row.

    Shorter ones hold their last frame; empty cells are black.

    Args:
        videos: uint8 "t h w 3", of any lengths.
        columns: cells per row; a nearly square sheet if left out.

    Raises:
        ValueError: no video, or frames of different sizes.
    """
    sizes = {video.shape[1:] for video in videos}
    if len(sizes) != 1:
        raise InvalidValue(
            f"grid: the videos must be at least one, all of one frame size; got {sorted(sizes)}"
        )
    longest = max(len(video) for video in videos)
    columns = columns or ceil(sqrt(len(videos)))
    held = [np.concatenate([video, np.repeat(video[-1:], longest - len(video), axis=0)]) for video in videos]
    held += [np.zeros_like(held[0])] * (-len(held) % columns)
    rows = [np.concatenate(held[i : i + columns], axis=2) for i in range(0, len(held), columns)]
    return np.concatenate(rows, axis=1)


def _decode_sorted(
    codec: Any, table: VideoTable, read: Callable[[int, int], bytes], wanted: Sequence[int]
) -> Iterator[tuple[int, Any]]:
    """Frame number and decoded frame of each wanted number, rising; one run per key frame needed."""
    for key, run in groupby(wanted, key=table.key_before.__getitem__):
        yield from _decode_run(codec, table, read, key, set(run))
        codec.flush_buffers()


def _decode_run(
    codec: Any, table: VideoTable, read: Callable[[int, int], bytes], position: int, left: set[int]
) -> Iterator[tuple[int, Any]]:
    """Decode from the packet at `position` until the frames `left` have appeared."""
    while left:
        packet: Any = None  # an empty packet drains what the codec still holds
        if position < len(table):
            packet = av.Packet(read(table.offsets[position], table.sizes[position]))
            packet.pts = table.times[position]
        for frame in codec.decode(packet):
            index = bisect_left(table.shown, frame.pts)
            if index in left:
                left.discard(index)
                yield index, frame
        if packet is None:
            return
        position += 1


def _rgb(frame: Any, reformatter: Any) -> UInt8[np.ndarray, "h w 3"]:
    return np.asarray(reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray())
