"""Videos as bytes: `writing`, `reading`, `orientation` (display matrices) and `layout` (overlays, grids)."""

from ai_wam.video.layout import grid, overlay, to_uint8, triptych
from ai_wam.video.reading import FrameDecoder, OpenFile, VideoTable, decode_frames, iterate_video
from ai_wam.video.writing import VideoEncoding, VideoWriter, write_video

__all__ = [
    "FrameDecoder",
    "OpenFile",
    "VideoEncoding",
    "VideoTable",
    "VideoWriter",
    "decode_frames",
    "grid",
    "iterate_video",
    "overlay",
    "to_uint8",
    "triptych",
    "write_video",
]
