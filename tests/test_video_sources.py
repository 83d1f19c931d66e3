"""What is no file is refused by name, and no file reaches another one or an address."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from ffmpeg import ffmpeg
from videos import read_number, write_video

from prunevid.errors import PruneVidError
from prunevid.runtime.video.sources import read_frames


@pytest.mark.parametrize(
    "source",
    [
        "rtsp://camera/stream",
        "RTSP://camera/stream",
        "rtsp:/camera/stream",
        Path("rtsp://camera/stream"),
        "rtsps://user:secret@camera/1",
        "http://host/a.mp4",
        "https://host/a.mp4?x=1",
        Path("https://host/a.mp4"),
        "udp://@239.0.0.1:1234",
        "tcp://host:1",
        "rtmp://host/live",
        "srt://host:1",
        "rtp:host",
        "hls+http://host/a.m3u8",
        "concat:a.mp4|b.mp4",
        "concatf:list",
        "data:video/mp4;base64,AAAA",
        "pipe:",
        "pipe:0",
        "fd:0",
        "subfile,,start,0,end,0,,:a.mp4",
        "crypto:a.mp4",
        "lavfi:testsrc",
        "v4l2:/dev/video0",
        "s3://bucket/a.mp4",
    ],
)
def test_addresses_are_not_files(source: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PruneVidError) as error:
        read_frames(source, 4)
    message = str(error.value)
    assert "\n" not in message
    assert "secret" not in message
    if not str(source).startswith("subfile,"):
        assert "streams are not files" in message


@pytest.mark.parametrize("source", ["file:///a.mp4", "file:a.mp4", "FILE:/a.mp4"])
def test_file_addresses_are_not_paths(source: str) -> None:
    with pytest.raises(PruneVidError, match="give the path of the video itself"):
        read_frames(source, 4)


def test_names_that_look_like_addresses_are_files_where_there_are_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(Path("a.mp4"), 3)
    for name in ("pipe:0", "concat:a.mp4|a.mp4", "data:", "-", "12:30", "%d.mp4", "a b'\"\\.mp4", "\udcff.mp4"):
        Path(name).write_bytes(Path("a.mp4").read_bytes())
        assert read_number(read_frames(name, 1).frames[0]) == 0
        assert read_number(read_frames(os.fsencode(tmp_path / name).decode(errors="surrogateescape"), 1).frames[0]) == 0
    for name in ("take:two.mp4", "12:31", "pipes"):
        with pytest.raises(PruneVidError, match="no such file"):
            read_frames(name, 1)
    with pytest.raises(PruneVidError, match="is empty"):
        read_frames("", 1)


def test_devices_pipes_and_sockets(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    (tmp_path / "link.mp4").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe.mp4", tmp_path / "s", tmp_path / "link.mp4", Path("/dev/null")):
        with pytest.raises(PruneVidError, match="neither a file nor a folder, but a device, pipe or socket"):
            read_frames(path, 1)
    listener.close()


def _playlists(folder: Path, port: int) -> list[Path]:
    """Files that name a film beside them, and an address."""
    texts = []
    for target in ("a.ts", str(folder / "a.ts"), f"http://127.0.0.1:{port}/a.ts"):
        texts += [
            f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9.0,\n{target}\n#EXT-X-ENDLIST\n",
            f"ffconcat version 1.0\nfile '{target}'\n",
            "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
            f"a=control:{target}\nm=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
            '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
            'mediaPresentationDuration="PT1S" profiles="urn:mpeg:dash:profile:isoff-main:2011"><Period><AdaptationSet '
            f'mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>{target}</BaseURL></Representation>'
            "</AdaptationSet></Period></MPD>",
            f"[Reference]\nRef1={target}\n",
            f'<ASX version="3.0"><ENTRY><REF HREF="{target}"/></ENTRY></ASX>',
            f'<?xml version="1.0"?><smil><body><video src="{target}"/></body></smil>',
        ]
    suffixes = (".m3u8", ".ffconcat", ".sdp", ".mpd", ".asf", ".wmv", ".mp4")
    paths = [folder / f"{index}{suffixes[index % 7]}" for index in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return paths


def test_no_file_reaches_another_one_or_an_address(tmp_path: Path) -> None:
    write_video(tmp_path / "a.ts", 5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        for path in _playlists(tmp_path, server.getsockname()[1]):
            for named in (path, path.rename(path.with_suffix(".mp4"))):
                if named.exists():
                    with pytest.raises(PruneVidError, match="not a video that can be read"):
                        read_frames(named, 2)
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_movie_whose_media_lie_in_another_file(tmp_path: Path) -> None:
    from mp4 import change_boxes

    path = write_video(tmp_path / "a.mp4", 5)
    other = (tmp_path / "a.mp4").rename(tmp_path / "media.mov")
    path.write_bytes(other.read_bytes())
    target = os.fsencode(other)
    alias = b"\0\0\0\0alis" + bytes(4) + bytes(150) + b"\0\x12" + len(target).to_bytes(2, "big") + target + b"\xff\xff"
    reference = (len(alias) + 4).to_bytes(4, "big") + alias[4:]

    def change(names: tuple[bytes, ...], content: bytes) -> bytes:
        if names[-1] == b"dinf":
            dref = bytes(4) + (1).to_bytes(4, "big") + reference
            return (len(dref) + 8).to_bytes(4, "big") + b"dref" + dref
        return content

    change_boxes(path, change)
    data = path.read_bytes()
    media = data.index(b"mdat") + 4
    path.write_bytes(data[:media] + bytes(data.index(b"moov") - 4 - media) + data[data.index(b"moov") - 4 :])
    with pytest.raises(PruneVidError):
        read_frames(path, 2)


# Shapes and sizes


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (17, 31), (1, 200), (200, 1), (1081, 33)])
def test_odd_sizes(size: tuple[int, int], tmp_path: Path) -> None:
    height, width = size
    raw = tmp_path / "raw"
    frames = np.random.default_rng(0).integers(0, 256, (4, height, width, 3), np.uint8)
    raw.write_bytes(frames.tobytes())
    options = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-i", raw)
    ffmpeg(*options, "-c:v", "copy", tmp_path / "a.nut")
    np.testing.assert_array_equal(read_frames(tmp_path / "a.nut", 9).frames, frames)
