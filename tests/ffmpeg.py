"""ffmpeg, from the package imageio-ffmpeg: it makes files that PyAV cannot, and says what a file shows."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np


def ffmpeg(*arguments: object) -> bytes:
    """Runs ffmpeg with these arguments; what it wrote to standard output."""
    return _run("error", arguments).stdout


def shown(path: Path, stream: str = "0:v:0") -> tuple[np.ndarray, np.ndarray]:
    """All frames that ffmpeg shows of a file, uint8 [T, H, W, 3], and their times in seconds, float64 [T]."""
    options = (
        "-i",
        path,
        "-map",
        stream,
        "-fps_mode",
        "passthrough",
        "-vf",
        "showinfo",
        "-c:v",
        "ppm",
        "-pix_fmt",
        "rgb24",
    )
    done = _run("info", (*options, "-f", "image2pipe", "-"))
    times = [float(time) for time in re.findall(rb"pts_time:(\S+)", done.stderr)]
    frames, data = [], done.stdout
    while data:
        header = re.match(rb"P6\s+(\d+)\s+(\d+)\s+255\s", data)
        assert header is not None
        width, height = int(header[1]), int(header[2])
        end = header.end() + 3 * width * height
        frames.append(np.frombuffer(data[header.end() : end], np.uint8).reshape(height, width, 3))
        data = data[end:]
    assert len(frames) == len(times)
    return np.stack(frames) if frames else np.empty((0, 0, 0, 3), np.uint8), np.array(times)


def _run(level: str, arguments: tuple[object, ...]) -> subprocess.CompletedProcess[bytes]:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-y", "-v", level, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done
