"""The multiview action-image tokenizer (`tokenizer`), and its parts: drawing, finding, fitting poses."""

from ai_wam.action_images.pose_sequences import DecodeStatus
from ai_wam.action_images.tokenizer import ActionImageTokenizer, DecodedActions, Spread, tool_points

__all__ = ["ActionImageTokenizer", "DecodeStatus", "DecodedActions", "Spread", "tool_points"]
