"""From a generated canvas to poses: the geometric decoder and a learned one."""
