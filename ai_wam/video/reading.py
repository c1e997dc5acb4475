"""Videos read as a player shows them: upright, hidden frames left out, damage refused.

Files that a person recorded carry more than pictures. A display matrix says which way is up, an edit list
hides frames that only serve to decode later ones. FFmpeg replaces what a damaged packet does not give by
something similar; here that is an error.
"""

import io
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby
from typing import Any, Protocol, runtime_checkable

import av
import numpy as np
from av.codec.context import Flags
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from ai_wam.errors import InvalidIndex, InvalidValue
from ai_wam.video.orientation import Turn

_CODECS_KEPT = 16
_RATE_TOLERANCE = 0.01  # 29.97 frames a second are called 30
_STRICT = {"err_detect": "explode"}  # a damaged packet is an error of the decoder
_EXACT = int(Flags.unaligned)  # otherwise FFmpeg cuts off less than the file says, for aligned memory
_UPRIGHT = Turn()


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


@contextmanager
def _opened(source: bytes | str | OpenFile) -> Iterator[tuple[Any, Any]]:
    """The container and its one video; cover pictures do not count.

    Raises:
        ValueError: no video, several, or pixels that are not square.
    """
    with av.open(io.BytesIO(source) if isinstance(source, bytes) else source) as container:
        cover = av.stream.Disposition.attached_pic
        streams = [each for each in container.streams.video if not each.disposition & cover]
        if len(streams) != 1:
            raise InvalidValue(
                f"it holds {len(streams)} videos, expected one; keep one of them (ffmpeg -i IN -map 0:v:0 "
                "-c copy OUT keeps the first)"
            )
        stream: Any = streams[0]
        if stream.codec_context is None:  # the header breaks off before it says how to decode
            raise InvalidValue("its header is damaged")
        if stream.sample_aspect_ratio not in (None, 0, 1):
            raise InvalidValue(
                f"its pixels are {stream.sample_aspect_ratio} as wide as high, so a player stretches it; "
                "write it again with square pixels (ffmpeg -vf scale=iw*sar:ih,setsar=1)"
            )
        stream.thread_type = "NONE"
        stream.codec_context.options = _STRICT
        stream.codec_context.flags |= _EXACT
        yield container, stream


def iterate_video(source: bytes | str | OpenFile, begin: float = 0.0) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Every RGB frame that a player shows of a video file, in order and upright.

    Args:
        source: bytes, a path, or an open file.
        begin: seconds to start at.

    Raises:
        ValueError: several videos in one file, or a frame that is damaged.
        FFmpegError: what else cannot be decoded.
    """
    with _opened(source) as (container, stream):
        reformatter, turn = VideoReformatter(), None
        for frame in _frames_from(container, stream, begin) if begin else container.decode(stream):
            turn = Turn.of(frame) if turn is None else turn
            yield turn.apply(_rgb(frame, reformatter))


def _frames_from(container: Any, stream: Any, begin: float) -> Iterator[Any]:
    """Decoded frames from `begin` seconds on.

    Seeking goes by decoding times, and may end at a key frame that is shown after `begin`, or whose leading
    pictures cannot be decoded without those before it; then it is tried again from further back.
    """
    half = 0.5 / float(stream.average_rate or 1)  # times are rounded to the file's clock
    start = 0.0 if stream.start_time is None else float(stream.start_time * stream.time_base)
    back = 0.0
    while True:
        at = max(start, begin - back)
        container.seek(int(at / stream.time_base), stream=stream)
        frames = (frame for frame in container.decode(stream) if frame.time >= begin - half)
        try:
            first = next(frames, None)
        except FFmpegError:
            if at == start:
                raise
        else:
            if at == start or (first is not None and first.time <= begin + half):
                break
        back = 2 * back + 1
    yield from () if first is None else chain([first], frames)


@dataclass(frozen=True)
class VideoTable:
    """Where each frame's packet lies in a video file, in decoding order.

    Attributes:
        codec: FFmpeg's name of the decoder.
        extradata: the stream's headers.
        size: height and width as shown.
        offsets: first byte of each packet.
        sizes: length of each packet in bytes.
        times: presentation time of each packet; frame i is the i-th smallest of those shown.
        keys: positions of the key frames, in decoding order.
        tick: seconds per unit of `times`.
        hidden: positions of packets that an edit list hides: decoded for later frames, not shown.
        turn: of each picture before it is shown.
    """

    codec: str
    extradata: bytes
    size: tuple[int, int]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    times: tuple[int, ...]
    keys: tuple[int, ...]
    tick: float
    hidden: frozenset[int] = frozenset()
    turn: Turn = _UPRIGHT

    def __len__(self) -> int:
        return len(self.offsets) - len(self.hidden)

    @cached_property
    def shown(self) -> list[int]:
        """Presentation times, rising: entry i belongs to frame i."""
        return sorted(time for position, time in enumerate(self.times) if position not in self.hidden)

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
    def of(cls, data: bytes, upright: bool = False) -> "VideoTable":
        """The table of a file.

        Args:
            data: the file.
            upright: known to need no turning, as what `VideoWriter` wrote; saves decoding a picture.

        Raises:
            ValueError: no readable video in it, or several.
        """
        try:
            with _opened(data) as (container, stream):
                packets = [packet for packet in container.demux(stream) if packet.size]
                _check_packets(packets, _promised(data, stream, packets))
                context = stream.codec_context
                turn = _UPRIGHT if upright else _turn(packets)
                return cls(
                    codec=context.name,
                    extradata=bytes(context.extradata or b""),
                    size=turn.size((context.height, context.width)),
                    offsets=tuple(int(packet.pos) for packet in packets),
                    sizes=tuple(packet.size for packet in packets),
                    times=tuple(int(packet.pts) for packet in packets),
                    keys=tuple(i for i, packet in enumerate(packets) if packet.is_keyframe),
                    tick=float(stream.time_base or 0),
                    hidden=frozenset(i for i, packet in enumerate(packets) if packet.is_discard),
                    turn=turn,
                )
        except (FFmpegError, IndexError, ValueError) as error:
            raise InvalidValue(f"no readable video in {len(data)} bytes: {error}") from error


def _promised(data: bytes, stream: Any, packets: Sequence[Any]) -> int:
    """Frames that the header says there are, 0 where it says none.

    Those behind the end of an edit list count in an MP4's header, and are not in FFmpeg's index.
    """
    promised, indexed = int(stream.frames), len(stream.index_entries)
    shown = sum(not packet.is_discard for packet in packets)
    if not len(packets) == indexed < promised or shown < 2:  # a single frame is left where times are damaged
        return promised
    with av.open(io.BytesIO(data), options={"ignore_editlist": "1"}) as whole:
        complete = len(whole.streams[stream.index].index_entries) == promised
    return indexed if complete else promised


def _check_packets(packets: Sequence[Any], promised: int) -> None:
    """Every frame must be there."""
    if not packets or any(packet.pts is None for packet in packets):
        raise InvalidValue(f"{len(packets)} frames are there, not all with a time")
    if len(packets) < promised:
        raise InvalidValue(f"{len(packets)} frames are there, its header promises {promised}")
    if all(packet.is_discard for packet in packets):
        raise InvalidValue(f"an edit list hides all {len(packets)} frames")


def _turn(packets: Sequence[Any]) -> Turn:
    """Of the first picture; all of a file are turned alike."""
    frames = (frame for packet in packets for frame in packet.decode())
    first = next(frames, None)
    return _UPRIGHT if first is None else Turn.of(first)


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
        codec: Any = None
        try:
            codec = self._codec(table)
            found = _decode_sorted(codec, table, read, wanted)
            pictures = {i: table.turn.apply(_rgb(frame, self._reformatter)) for i, frame in found}
        except (FFmpegError, InvalidValue) as error:
            raise InvalidValue(f"frames {wanted} cannot be decoded: {error}") from error
        finally:
            if codec is not None:
                codec.flush_buffers()
        missing = [i for i in wanted if i not in pictures]
        if missing:
            raise InvalidValue(f"frames {missing} are missing from the video's packets")
        return np.stack([pictures[i] for i in indices])

    def _codec(self, table: VideoTable) -> Any:
        key = (table.codec, table.extradata)
        if key not in self._codecs:
            codec: Any = av.CodecContext.create(table.codec, "r")
            codec.options = _STRICT
            codec.flags |= _EXACT
            codec.extradata = table.extradata or None
            codec.thread_count = 1
            codec.open()
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
        if position < len(table.offsets):
            packet = _packet(read(table.offsets[position], table.sizes[position]), table.sizes[position])
            packet.pts = table.times[position]
        for frame in codec.decode(packet):
            index = bisect_left(table.shown, frame.pts)  # of a hidden frame too, whose time is not there
            if index in left and table.shown[index] == frame.pts:
                left.discard(index)
                yield index, frame
        if packet is None:
            return
        position += 1


def _packet(data: bytes, size: int) -> Any:
    """With zeros behind the data, which decoders read ahead; `av.Packet(data)` has none."""
    if len(data) != size:
        raise InvalidValue(f"a packet of {size} bytes breaks off after {len(data)}")
    packet = av.Packet(size)
    packet.update(data)
    return packet


def _rgb(frame: Any, reformatter: Any) -> UInt8[np.ndarray, "h w 3"]:
    if frame.is_corrupt:
        raise InvalidValue(f"the frame at {frame.time or 0:.3f} s is damaged")
    return np.asarray(reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray())
