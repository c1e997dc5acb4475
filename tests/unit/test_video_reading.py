"""Videos as people have them, turned, trimmed, damaged: what counts is what a player shows."""

import io
import random
import struct

import av
import numpy as np
import pytest

from ai_wam.video import VideoTable, decode_frames, iterate_video

SIDE = (48, 80)  # height and width


def stored_video(codec="libx264", frames=12, pixels="yuv420p", change=None, options=None, streams=1):
    """A video of moving blocks, by FFmpeg alone; `change` sees the stream before anything is written."""
    rng = np.random.default_rng(0)
    blocks = np.kron(rng.integers(0, 256, (6, 10, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        tracks = [container.add_stream(codec, rate=10, options=options or {}) for _ in range(streams)]
        for track in tracks:
            track.height, track.width, track.pix_fmt = *SIDE, pixels
            track.codec_context.thread_count = 1
            if change is not None:
                change(track)
        for track in tracks:
            for number in range(frames):
                picture = av.VideoFrame.from_ndarray(np.roll(blocks, 3 * number, 1), format="rgb24")
                container.mux(track.encode(picture))
            container.mux(track.encode())
    return buffer.getvalue()


def played(data):
    """Pictures as FFmpeg decodes them, without any turn."""
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def assert_shown(data, expected):
    """Both ways of reading, and what the table says of them."""
    table = VideoTable.of(data)
    assert len(table) == len(expected)
    assert table.size == expected[0].shape[:2]
    for pictures in (list(iterate_video(data)), decode_frames(data)):
        assert np.array_equal(np.stack(pictures), np.stack(expected))
    last = len(expected) - 1
    assert np.array_equal(decode_frames(data, [last, 0]), np.stack([expected[last], expected[0]]))


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_a_display_rotation_is_applied(degrees):
    """FFmpeg's rotation counts counterclockwise, as NumPy's does."""
    data = stored_video(change=lambda stream: stream.set_display_rotation(degrees))
    assert_shown(data, [np.rot90(picture, degrees // 90) for picture in played(data)])


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [((-1, 0, 0, 1), np.fliplr), ((1, 0, 0, -1), np.flipud), ((0, 1, 1, 0), lambda p: p.transpose(1, 0, 2))],
)
def test_a_display_matrix_may_mirror(matrix, shown):
    """A front camera's does."""
    a, b, c, d = (65536 * value for value in matrix)

    def mirror(stream):
        stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])

    data = stored_video(change=mirror)
    assert_shown(data, [shown(picture) for picture in played(data)])


def test_a_turn_by_other_than_quarters_is_refused():
    data = stored_video(change=lambda stream: stream.set_display_rotation(30))
    with pytest.raises(ValueError, match="other than quarters; write it again upright"):
        VideoTable.of(data)
    with pytest.raises(ValueError, match="other than quarters"):
        next(iterate_video(data))


@pytest.mark.parametrize("options", [{"g": "10", "bf": "0"}, {"g": "10", "bf": "2"}])
def test_frames_that_an_edit_list_hides_are_not_shown(options):
    """What a lossless trim writes: packets from the key frame on, and from which time they are shown."""
    whole, first = stored_video(frames=30, options=options), 15
    buffer = io.BytesIO()
    settings = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    with (
        av.open(io.BytesIO(whole)) as source,
        av.open(buffer, "w", format="mp4", options=settings) as trimmed,
    ):
        stream = source.streams.video[0]
        copy, per_frame = trimmed.add_stream_from_template(stream), round(1 / (10 * stream.time_base))
        begin = next(p.pts for p in source.demux(stream) if p.is_keyframe) + 10 * per_frame
        source.seek(0)
        for packet in source.demux(stream):
            if packet.size and packet.pts >= begin:
                packet.pts -= begin + 5 * per_frame
                packet.dts -= begin + 5 * per_frame
                packet.stream = copy
                trimmed.mux(packet)
    data = buffer.getvalue()
    assert VideoTable.of(data).hidden
    assert_shown(data, played(whole)[first:])


@pytest.mark.parametrize(
    ("codec", "pixels", "options"),
    [
        ("libx264", "yuv420p", {}),
        ("libx264", "yuv420p", {"g": "4", "bf": "3"}),
        ("libx264", "yuv420p10le", {}),
        ("mpeg4", "yuv420p", {}),
        ("mjpeg", "yuvj420p", {}),
        ("libvpx-vp9", "yuv420p", {}),
    ],
)
def test_chosen_frames_are_those_of_the_whole_video(codec, pixels, options):
    """MPEG-4 reads beyond a packet's end, which has to be zeros."""
    data = stored_video(codec, pixels=pixels, options=options, frames=40)
    assert_shown(data, played(data))


@pytest.mark.parametrize("intra", [False, True])
def test_frames_behind_the_end_of_an_edit_list_are_not_missing(intra):
    """As a phone trims the end: the header counts all frames, the list says how long to play."""
    options = {"g": "1"} if intra else {"g": "10", "bf": "2"}
    data = bytearray(stored_video(frames=30, options=options))
    whole, entry = played(bytes(data)), data.index(b"elst") + 12  # behind its type, version and count
    data[entry : entry + 4] = struct.pack(">I", 500)  # in the movie's time scale, milliseconds
    assert_shown(bytes(data), whole[:5])


def test_a_file_that_breaks_off_lacks_frames(tmp_path):
    """Its index lies in front, so all frames are announced."""
    whole, path = stored_video(frames=30, options={"g": "10"}), tmp_path / "index_first.mp4"
    with (
        av.open(io.BytesIO(whole)) as source,
        av.open(path, "w", options={"movflags": "faststart"}) as copied,
    ):
        stream = copied.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                copied.mux(packet)
    with pytest.raises(ValueError, match="frames are there, its header promises 30"):
        VideoTable.of(path.read_bytes()[: len(whole) * 2 // 3])


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"g": "10", "bf": "3"}),
        ("libx264", {"g": "10", "bf": "3", "x264-params": "open-gop=1:b-adapt=0:scenecut=0"}),
        ("libx265", {"x265-params": "keyint=10:open-gop=1:bframes=4:b-adapt=0:scenecut=0:log-level=none"}),
        ("mpeg4", {"g": "12", "bf": "2"}),
    ],
)
def test_reading_begins_at_the_frame_of_that_time(codec, options):
    """A key frame may be stored before the pictures that are shown ahead of it."""
    data = stored_video(codec, frames=40, options=options)
    whole, table = played(data), VideoTable.of(data)
    for number, time in enumerate(table.shown):
        pictures = iterate_video(data, begin=time * table.tick)
        for expected in whole[number : number + 2]:
            assert np.array_equal(next(pictures), expected)


def test_what_the_stream_cuts_off_the_left_is_not_shown():
    """FFmpeg leaves pixels at the left where memory would not be aligned.

    Without B-frames, with which x264 compresses the same frames differently from time to time.
    """
    data = stored_video(options={"bf": "0", "x264-params": "crop-rect=6,4,0,0"})
    whole = played(stored_video(options={"bf": "0"}))
    assert_shown(data, [picture[4:, 6:] for picture in whole])


@pytest.mark.parametrize("options", [{"g": "10"}, {"profile": "baseline"}])
def test_damage_is_an_error_and_not_another_picture(options):
    """FFmpeg replaces what cannot be decoded; H.264 has no checksum, so a few pass."""
    data = stored_video(frames=30, options=options)
    table, accepted = VideoTable.of(data), 0
    for seed in range(20):
        rng, damaged = random.Random(seed), bytearray(data)
        packet = rng.randrange(len(table.offsets))
        begin = rng.randrange(table.offsets[packet], table.offsets[packet] + max(1, table.sizes[packet] - 16))
        damaged[begin : begin + 16] = rng.randbytes(16)
        for read in (decode_frames, iterate_video):
            try:
                accepted += len(list(read(bytes(damaged)))) > 0
            except (ValueError, av.FFmpegError):
                continue
    assert accepted <= 2


def test_a_file_with_two_videos_needs_a_choice():
    with pytest.raises(ValueError, match="it holds 2 videos, expected one; keep one of them"):
        VideoTable.of(stored_video(streams=2))


def test_pixels_that_are_not_square_are_refused():
    """A player stretches them, so K of the stored pictures is not that of the shown ones."""

    def stretch(stream):
        stream.codec_context.sample_aspect_ratio = 2

    data = stored_video(change=stretch)
    with pytest.raises(ValueError, match=r"2 as wide as high.*square pixels"):
        VideoTable.of(data)
