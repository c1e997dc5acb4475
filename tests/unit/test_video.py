import io

import av
import numpy as np
import pytest
import torch

from ai_wam.video import (
    FrameDecoder,
    VideoEncoding,
    VideoTable,
    VideoWriter,
    decode_frames,
    grid,
    iterate_video,
    overlay,
    to_uint8,
    triptych,
    write_video,
)


def scene(frames=12, h=48, w=64):
    """A shaded background with a sliding square; no two frames alike."""
    rows, columns = np.mgrid[:h, :w]
    background = np.stack([255 * columns / w, 255 * rows / h, 255 - 127 * (columns + rows) / w], axis=-1)
    video = np.repeat(background.clip(0, 255).astype(np.uint8)[None], frames, axis=0)
    for t in range(frames):
        video[t, 4 + t : 14 + t, 3 * t : 3 * t + 12] = (220, 20 * t % 255, 40)
    return video


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


@pytest.mark.parametrize(("encoding", "least"), [(VideoEncoding(), 38), (VideoEncoding(browser=True), 28)])
def test_lossy_round_trip_keeps_the_picture(encoding, least):
    video = scene()
    back = decode_frames(write_video(video, 20.0, encoding))
    assert back.shape == video.shape
    assert psnr(video, back) > least


@pytest.mark.parametrize("gop", [1, 5])
def test_lossless_is_exact(gop):
    video = np.random.default_rng(0).integers(0, 256, (7, 33, 47, 3), dtype=np.uint8)  # odd sizes too
    assert np.array_equal(
        decode_frames(write_video(video, 20.0, VideoEncoding(lossless=True, gop=gop))), video
    )


@pytest.mark.parametrize("browser", [False, True])
@pytest.mark.parametrize(
    "colour",
    [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128), (200, 30, 90)],
)
def test_colours_come_back_in_full_range(colour, browser):
    video = np.full((2, 32, 32, 3), colour, dtype=np.uint8)
    back = decode_frames(write_video(video, 10.0, VideoEncoding(browser=browser)))
    assert np.abs(back.astype(int) - video).max() <= 2


def test_the_file_names_its_colour_space():
    with av.open(io.BytesIO(write_video(scene(2), 10.0))) as container:
        context = container.streams.video[0].codec_context
        assert (context.pix_fmt, int(context.color_range), int(context.colorspace)) == ("yuv444p", 1, 5)


@pytest.mark.parametrize("gop", [1, 5, 50])
def test_chosen_frames_equal_those_of_the_whole_video(gop):
    data = write_video(scene(), 20.0, VideoEncoding(gop=gop))
    whole = np.stack(list(iterate_video(data)))
    chosen = [11, 0, 7, 7, 4]
    assert np.array_equal(decode_frames(data, chosen), whole[chosen])


def test_only_packets_from_the_key_frame_on_are_read():
    data, reads = write_video(scene(), 20.0, VideoEncoding(gop=5)), []
    table, decoder = VideoTable.of(data), FrameDecoder()
    assert table.keys == (0, 5, 10)

    def read(offset, size):
        reads.append(table.offsets.index(offset))
        return data[offset : offset + size]

    decoder.decode(table, read, [7])
    assert reads == [5, 6, 7]


def test_videos_of_different_kinds_share_a_decoder():
    decoder = FrameDecoder()
    for size in ((32, 48), (64, 64), (32, 48)):
        data = write_video(scene(3, *size), 20.0, VideoEncoding(lossless=True))
        table = VideoTable.of(data)
        for index in (2, 0):
            frame = decoder.decode(table, lambda at, n, data=data: data[at : at + n], [index])[0]
            assert np.array_equal(frame, scene(3, *size)[index])


def test_foreign_video_with_frames_out_of_order():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.options = 64, 48, "yuv420p", {"bf": "3", "g": "8"}
        for image in scene(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    data = buffer.getvalue()
    assert list(VideoTable.of(data).times) != sorted(VideoTable.of(data).times)  # the case that is tested
    whole = np.stack(list(iterate_video(data)))
    for index in range(20):
        assert np.array_equal(decode_frames(data, [index])[0], whole[index])


def test_bytes_depend_on_the_frames_alone():
    assert write_video(scene(), 20.0) == write_video(scene(), 20.0)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="even height and width, got 33 x 48"):
        VideoWriter((33, 48), 20.0, VideoEncoding(browser=True))
    with pytest.raises(ValueError, match="choose one of the two"):
        VideoEncoding(lossless=True, browser=True)
    with pytest.raises(ValueError, match="at least one frame"):
        write_video([], 20.0)
    with pytest.raises(ValueError, match=r"frame 1 is uint8 \(48, 60, 3\), expected uint8 \(48, 64, 3\)"):
        write_video([scene(1)[0], scene(1, w=60)[0]], 20.0)
    with pytest.raises(IndexError, match=r"\[12\] asked of a video of 12 frames"):
        decode_frames(write_video(scene(), 20.0), [12])
    with pytest.raises(ValueError, match="no readable video in 9 bytes"):
        decode_frames(b"not video")


def test_damaged_packets_are_an_error():
    data = write_video(scene(), 20.0)
    table = VideoTable.of(data)
    with pytest.raises(ValueError, match=r"frames \[3\]"):
        FrameDecoder().decode(table, lambda offset, size: b"", [3])
    with pytest.raises(ValueError, match=r"frames \[3\]"):
        FrameDecoder().decode(table, lambda offset, size: b"\xff" * size, [3])


def test_to_uint8_rounds_and_clips():
    video = torch.tensor([-2.0, -1.0, 0.0, 1.0, 1.5])[:, None, None, None].expand(5, 3, 2, 2)
    assert to_uint8(video)[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]
    assert to_uint8(video).shape == (5, 2, 2, 3)


def test_overlay_shows_points_and_nothing_of_the_background_level():
    observation = torch.full((1, 3, 8, 8), -0.5)
    actions = torch.full((1, 3, 8, 8), -1.0)
    actions[:, 2] = 2 * 0.25 - 1  # an open gripper's level
    actions[:, 0, 4, 4] = 1.0
    picture = overlay(observation, actions)
    assert picture[0, 4, 4].tolist() == [255, 0, 0]
    picture[0, 4, 4] = picture[0, 0, 0]
    assert (picture == to_uint8(observation)).all()


def test_triptych_and_grid_lay_out_cells():
    observation, actions = torch.zeros(2, 3, 4, 8, 10), -torch.ones(2, 3, 4, 8, 10)
    observation[1] = 1
    sheet = triptych(observation, actions)
    assert sheet.shape == (4, 16, 30, 3)
    assert sheet[0, 0, [0, 10, 20], 0].tolist() == [128, 0, 128]
    assert sheet[0, 8, [0, 10, 20], 0].tolist() == [255, 0, 255]
    short, long = np.full((1, 4, 6, 3), 9, np.uint8), np.full((3, 4, 6, 3), 7, np.uint8)
    board = grid([short, long, long])
    assert board.shape == (3, 8, 12, 3)
    assert board[2, [0, 0, 4, 4], [0, 6, 0, 6], 0].tolist() == [9, 7, 7, 0]
    with pytest.raises(ValueError, match="one frame size"):
        grid([short, np.zeros((1, 5, 6, 3), np.uint8)])


def foreign_video(path, images, **options):
    """As another program writes it: frames that refer to later ones, few key frames, headers first."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=15, options={"bf": "2", "g": "12", **options})
        stream.height, stream.width, stream.pix_fmt = images.shape[1], images.shape[2], "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def counting_frames(count):
    """Grey levels that tell the frame's number."""
    return np.stack([np.full((32, 48, 3), 20 + 5 * number, np.uint8) for number in range(count)])


@pytest.mark.parametrize("first", [0, 1, 11, 12, 13, 29])
def test_reading_may_begin_anywhere(tmp_path, first):
    images = counting_frames(30)
    foreign_video(tmp_path / "a.mp4", images)
    found = list(iterate_video(str(tmp_path / "a.mp4"), first / 15))
    assert len(found) == 30 - first
    assert [round((frame.mean() - 20) / 5) for frame in found] == list(range(first, 30))


def test_a_video_that_is_cut_off_is_named(tmp_path):
    """Its header is whole and promises more frames than follow."""
    foreign_video(tmp_path / "a.mp4", np.random.default_rng(0).integers(0, 255, (30, 32, 48, 3), np.uint8))
    data = (tmp_path / "a.mp4").read_bytes()
    with pytest.raises(ValueError, match=r"\d+ frames are there, its header promises 30"):
        VideoTable.of(data[: len(data) // 2])


@pytest.mark.parametrize("what", ["cut off", "overwritten"])
def test_a_damaged_header_is_a_value_error(what):
    """MP4 keeps its tables at the end, in `moov`: wherever they break off, the error is the same."""
    data = write_video(np.zeros((5, 32, 32, 3), np.uint8), 10.0)
    begin, refused = data.index(b"moov"), 0
    for place in range(begin, len(data) - 16, 3):
        broken = data[:place] if what == "cut off" else data[:place] + bytes(16) + data[place + 16 :]
        try:
            assert len(VideoTable.of(broken)) == 5
        except ValueError:
            refused += 1
    assert refused > 50


def test_a_video_without_frames_is_refused():
    data = write_video(np.zeros((5, 32, 32, 3), np.uint8), 10.0)
    place = data.index(b"stsz") + 12  # number of samples
    with pytest.raises(ValueError, match="no readable video"):
        VideoTable.of(data[:place] + bytes(4) + data[place + 4 :])
