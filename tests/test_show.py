"""What `prunevid show` derives from a video and draws: held against the oracle, and looked at as a user would."""

from __future__ import annotations

import html
import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from commands import prunevid, refused
from drawn import configs, videos
from hypothesis import given, settings
from models import structured_features
from PIL import Image
from PIL.GifImagePlugin import GifImageFile

from prunevid import PruneConfig, PruneVidError, merge_tokens, select_tokens
from prunevid.methods.prunevid import static_group, static_positions
from prunevid.runtime import Pipeline, load
from prunevid.runtime.look.style import drawable, font, shortened, token_colours, wrapped
from prunevid.runtime.show.animation import FRAME_MS, LAST_FRAME_MS
from prunevid.runtime.show.maps import TokenMaps, display_frames, map_tokens, observe, static_patches
from prunevid.runtime.show.output import save
from prunevid.runtime.show.panels import Panels
from prunevid.runtime.show.sheet import draw_sheet

Array = npt.NDArray[Any]

ROOT = Path(__file__).parents[1]
CLIP = ROOT / "demo" / "clip.mp4"
QUESTION = json.loads((ROOT / "demo" / "clip.json").read_text())["questions"][0]["question"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

prove = settings(derandomize=True, deadline=None, max_examples=100)


def make_maps(
    frames: int = 8, side: int = 4, size: tuple[int, int] = (96, 160), cuts: tuple[int, ...] = (4,), **texts: str
) -> TokenMaps:
    """Maps of a made-up video whose frames are plain grey, so that all that is drawn comes from the maps."""
    config = PruneConfig(min_cluster_tokens=2)
    merged = merge_tokens(structured_features(frames, side * side, 16, seed=1, cuts=cuts), config)
    scores = np.random.default_rng(2).random(len(merged.tokens)).astype(np.float32)
    kept = select_tokens(scores, merged.group, config)
    grey = np.full((frames, *size, 3), 160, np.uint8)
    named = {"question": "Why?", "answer": "Because.", "title": "made up"} | texts
    return map_tokens(grey, merged.patch_to_token, merged.segments, scores, kept, layer=3, **named)


@pytest.fixture(scope="module")
def pipeline(demo_bundle: Path) -> Pipeline:
    return load(demo_bundle, threads=2)


@pytest.fixture(scope="module")
def demo_maps(pipeline: Pipeline) -> TokenMaps:
    return observe(pipeline, CLIP, QUESTION)


# --- what is derived ---------------------------------------------------------------------------------------


@prove
@given(videos(), configs())
def test_static_patches_are_the_oracles(video: Array, config: PruneConfig) -> None:
    merged = merge_tokens(video, config)
    found = static_patches(merged.patch_to_token, merged.segments)
    expected = static_positions(video, merged.segments, config.static_threshold)[merged.segments]
    np.testing.assert_array_equal(found, expected)
    first = np.searchsorted(merged.segments, merged.segments)
    groups = np.array([static_group(int(frame), int(s)) for frame, s in zip(first, merged.segments, strict=True)])
    np.testing.assert_array_equal(found, merged.group[merged.patch_to_token] == groups[:, None])


@prove
@given(videos(), configs())
def test_every_patch_belongs_to_one_token_and_shares_what_it_is(video: Array, config: PruneConfig) -> None:
    side = math.isqrt(video.shape[1])
    merged = merge_tokens(video[:, : side**2], config)
    scores = np.random.default_rng(0).random(len(merged.tokens))
    kept = select_tokens(scores, merged.group, config)
    frames = np.zeros((len(video), 2, 2, 3), np.uint8)
    maps = map_tokens(
        frames, merged.patch_to_token, merged.segments, scores, kept, question="", answer="", layer=0, title=""
    )
    assert maps.side == side
    assert maps.sizes.sum() == maps.token.size
    assert maps.sizes.min() >= 1
    for patches in (maps.static, maps.kept, maps.attention):
        np.testing.assert_array_equal(maps.of_tokens(patches)[maps.token], patches)
    np.testing.assert_array_equal(np.unique(maps.token[maps.kept]), kept)
    assert [sum(stage) for stage in maps.counts] == [maps.token.size, len(merged.tokens), len(kept)]
    assert maps.attention.max() == 1
    np.testing.assert_allclose(maps.of_tokens(maps.attention) * scores.max(), scores, rtol=1e-6)


def test_frames_that_were_not_merged_have_nothing_static(pipeline: Pipeline) -> None:
    maps = observe(pipeline, CLIP, QUESTION, frames=5, prune=False)
    assert not maps.static.any()
    assert maps.kept.all()
    np.testing.assert_array_equal(maps.token.ravel(), np.arange(maps.token.size))
    assert maps.retained == 1


def test_a_frame_that_is_no_square_of_tokens_is_refused() -> None:
    with pytest.raises(PruneVidError, match="7 tokens"):
        map_tokens(
            np.zeros((1, 2, 2, 3), np.uint8), np.arange(7)[None], np.zeros(1, np.int64), np.ones(7, np.float32),
            np.arange(2), question="", answer="", layer=0, title="",
        )  # fmt: skip


@pytest.mark.parametrize(("height", "width"), [(100, 100), (90, 160), (160, 90), (20, 200), (400, 40)])
def test_frames_are_drawn_in_their_shape_within_limits(height: int, width: int) -> None:
    shown = display_frames(np.zeros((2, height, width, 3), np.uint8))
    assert max(shown.shape[1:3]) == 480
    assert shown.shape[2] / shown.shape[1] == pytest.approx(min(max(width / height, 0.5), 2.4), rel=0.01)


# --- what a session tells ----------------------------------------------------------------------------------


def test_a_session_tells_what_it_selects_by(pipeline: Pipeline) -> None:
    session = pipeline.open(CLIP)
    scores, kept = session.attend(QUESTION)
    assert session.prune is not None
    np.testing.assert_array_equal(kept, select_tokens(scores, session.video.group, session.prune))
    assert ((scores > 0) & (scores <= 1)).all()
    other, _ = session.attend("how many objects move left?")
    assert not np.array_equal(scores, other)
    again, _ = session.attend(QUESTION)
    np.testing.assert_array_equal(scores, again)


def test_looking_does_not_change_the_answer(pipeline: Pipeline) -> None:
    session = pipeline.open(CLIP)
    session.attend("how many objects move left?")
    answer = session.ask(QUESTION)
    assert answer.token_ids == pipeline.ask(CLIP, QUESTION).token_ids
    assert {"vision", "prefix", "question"} <= set(answer.timings.stages)


def test_looking_ends_an_answer_that_is_being_read(pipeline: Pipeline) -> None:
    session = pipeline.open(CLIP)
    stream = session.stream(QUESTION)
    pieces = iter(stream)
    next(pieces)
    session.attend("how many objects move left?")
    with pytest.raises(PruneVidError, match="newer question"):
        list(pieces)


def test_the_maps_of_the_clip_are_the_chains(pipeline: Pipeline, demo_maps: TokenMaps) -> None:
    session = pipeline.open(CLIP)
    scores, kept = session.attend(QUESTION)
    answer = session.ask(QUESTION)
    np.testing.assert_array_equal(demo_maps.token, session.video.patch_to_token)
    np.testing.assert_array_equal(np.unique(demo_maps.token[demo_maps.kept]), kept)
    assert demo_maps.answer == answer.text
    counts = answer.token_counts
    assert [sum(stage) for stage in demo_maps.counts] == [counts.visual, counts.merged, counts.kept]
    assert scores[demo_maps.token][demo_maps.attention == 1].max() == scores.max()
    # All three kinds of patches are there, or the picture shows nothing.
    assert 0 < demo_maps.static.mean() < 1
    assert 0 < demo_maps.kept.mean() < 1


# --- what is drawn -----------------------------------------------------------------------------------------


def centres(panel: Image.Image, side: int) -> Array:
    """Colours [N, 3] in the middle of each patch of a panel."""
    pixels = np.asarray(panel).astype(int)
    rows, columns = (((np.arange(side) + 0.5) * length / side).astype(int) for length in pixels.shape[:2])
    return pixels[np.ix_(rows, columns)].reshape(-1, 3)


def test_panels_mean_what_the_maps_say() -> None:
    maps = make_maps()
    assert 0 < maps.static.mean() < 1
    assert 0 < maps.kept.mean() < 1
    panels = Panels(maps, (320, 192))
    for frame in range(len(maps.frames)):
        merged, attention, kept = (
            centres(panels.draw(view, frame), maps.side) for view in ("merged", "attention", "kept")
        )
        token = maps.token[frame]
        for patch in range(len(token)):
            np.testing.assert_array_equal((merged == merged[patch]).all(axis=1), token == token[patch])
        red, blue = merged[:, 0], merged[:, 2]
        np.testing.assert_array_equal(blue > red, maps.static[frame])
        np.testing.assert_array_equal(kept.sum(axis=1) > 300, maps.kept[frame])
        np.testing.assert_array_equal(centres(panels.draw("frame", frame), maps.side), 162)
        brightest_last = np.argsort(maps.attention[frame], kind="stable")
        # Red grows with heat all the way; the step is what rounding to levels may cost.
        assert (np.diff(attention[brightest_last, 0]) >= -4).all()


# Linear light as eyes without the red, or the green, receptor see it (Vienot, Brettel and Mollon 1999).
_DICHROMATS = {
    "protan": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    "deutan": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
}


@pytest.mark.parametrize("kind", _DICHROMATS)
def test_red_green_blind_eyes_tell_static_from_dynamic(kind: str) -> None:
    colours = np.concatenate([token_colours(np.full(200, is_static)) for is_static in (True, False)])
    seen = (colours / 255.0) ** 2.2 @ np.array(_DICHROMATS[kind]).T
    yellow, blue = seen[:, 0], seen[:, 2]
    assert (blue > 1.2 * yellow)[:200].all()
    assert (yellow > 1.2 * blue)[200:].all()


def test_a_static_token_looks_the_same_in_all_its_frames() -> None:
    maps = make_maps()
    panels = Panels(maps, (320, 192))
    colours = [centres(panels.draw("merged", frame), maps.side) for frame in range(len(maps.frames))]
    static = maps.static[0]
    assert static.any()
    np.testing.assert_array_equal(colours[0][static], colours[1][static])


@pytest.mark.parametrize(
    ("frames", "side", "size"), [(1, 14, (480, 480)), (3, 4, (480, 240)), (16, 8, (480, 480)), (40, 14, (270, 480))]
)
def test_a_sheet_stays_sensible(frames: int, side: int, size: tuple[int, int]) -> None:
    sheet = draw_sheet(make_maps(frames, side, size, cuts=()))
    assert sheet.width == 1800
    assert sheet.height < 2600


def test_an_animation_has_a_frame_for_every_frame(tmp_path: Path) -> None:
    maps = make_maps()
    save(maps, tmp_path / "maps.gif")
    with Image.open(tmp_path / "maps.gif") as animation:
        assert isinstance(animation, GifImageFile)
        assert animation.n_frames == len(maps.frames)
        durations, marks = [], []
        for frame in range(animation.n_frames):
            animation.seek(frame)
            durations.append(animation.info["duration"])
            pixels = np.asarray(animation.convert("RGB")).astype(int)
            # The timeline's row is the one where the present frame is nearly white over the width of a tick.
            ticks = (pixels.min(axis=2) > 220)[-80:].sum(axis=1).argmax()
            marks.append(np.flatnonzero((pixels.min(axis=2) > 220)[-80:][ticks]).mean())
    assert durations == [FRAME_MS] * (len(maps.frames) - 1) + [LAST_FRAME_MS]
    assert marks == sorted(marks)
    assert np.ptp(marks) > 600


def test_text_stays_within_its_lines() -> None:
    text = "What does the person do with a " + "very" * 60 + " long word?"
    rows = wrapped(text, 20, 200)
    assert all(font(20).getlength(row) <= 200 for row in rows)
    assert "".join(rows).replace(" ", "") == text.replace(" ", "")
    assert shortened(rows, 3)[:2] == rows[:2]
    assert shortened(rows, 3)[2].endswith("...")
    assert shortened(rows, len(rows)) == rows


def test_text_beyond_the_font_is_replaced_not_dropped() -> None:
    assert drawable("Où est  l’été?\n日本 ok\x07") == "Ou est l'ete? ?? ok"


# --- the page ----------------------------------------------------------------------------------------------

HOSTILE = "</script><script>alert('1')</script> & <b>\"bold\"</b> {{ 7 * 7 }}"


def page_data(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_a_page_needs_nothing_and_escapes_everything(tmp_path: Path) -> None:
    save(make_maps(question=HOSTILE, answer=HOSTILE, title=HOSTILE), tmp_path / "maps.html")
    page = (tmp_path / "maps.html").read_text(encoding="utf-8")
    assert page.count("<script") == 2
    assert "<b>&#34;" not in page
    assert page.count(html.escape(HOSTILE).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")) == 4
    # The only addresses are those of the pictures in it, and SVG's name, which nothing loads.
    assert set(re.findall(r"https?://[^\"]*", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<link|@import|<iframe|src=\"", page)
    assert "default-src 'none'" in page


def test_a_pages_data_is_the_maps(demo_maps: TokenMaps, tmp_path: Path) -> None:
    save(demo_maps, tmp_path / "maps.html")
    data = page_data((tmp_path / "maps.html").read_text(encoding="utf-8"))
    token = np.array(data["token"])
    np.testing.assert_array_equal(token, demo_maps.token)
    for name in ("static", "kept"):
        np.testing.assert_array_equal(np.array(data[name])[token], getattr(demo_maps, name))
    np.testing.assert_allclose(np.array(data["attention"])[token], demo_maps.attention, atol=1e-4)
    np.testing.assert_array_equal(data["size"], demo_maps.sizes)
    assert len(data["pictures"]) == len(demo_maps.frames)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_the_numbers(demo_maps: TokenMaps, tmp_path: Path) -> None:
    save(demo_maps, tmp_path / "maps.html")
    frame, patch = 2, int(np.flatnonzero(demo_maps.static[2])[0])
    dom = browse(tmp_path, f"maps.html#frame={frame + 1}&patch={patch}")

    def text(identity: str) -> str:
        found = re.search(rf'id="{identity}"[^>]*>([^<]*)<', dom)
        assert found, identity
        return html.unescape(found[1])

    token = demo_maps.token[frame, patch]
    within = (demo_maps.token == token).any(axis=1)
    assert text("question") == demo_maps.question
    assert text("answer") == demo_maps.answer
    assert text("where") == f"frame {frame + 1} of {len(demo_maps.frames)}, scene {demo_maps.segment[frame] + 1}"
    details = text("details")
    assert f"token {token}, static, {demo_maps.sizes[token]} patches in {within.sum()} frames." in details
    assert f"Attention {100 * demo_maps.attention[frame, patch]:.1f} % of the highest" in details
    assert details.endswith("kept." if demo_maps.kept[frame, patch] else "dropped.")
    counts = [int(number) for number in re.findall(r"<b>(\d+)</b>", dom)]
    assert counts == [sum(stage) for stage in demo_maps.counts]
    buttons = re.findall(r'<button type="button" aria-label="Frame \d+"([^>]*)>', dom)
    assert ['class="has"' in attributes for attributes in buttons] == within.tolist()
    # What was drawn over the kept view: nothing where a patch is kept.
    view = dom[dom.index('id="kept"') : dom.index('id="controls"')]
    drawn = re.findall(r'<rect [^>]*fill="([^"]*)"', view)
    assert [fill == "transparent" for fill in drawn] == demo_maps.kept[frame].tolist()


def browse(folder: Path, page: str) -> str:
    """The document as it stands after its script ran in headless Chromium."""
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000",
        "--dump-dom", f"{folder.as_uri()}/{page}",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


# --- the command -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".PNG", ".gif", ".html"])
def test_show_writes_a_file_and_says_what_is_in_it(
    demo_bundle: Path, demo_maps: TokenMaps, tmp_path: Path, ending: str
) -> None:
    output = tmp_path / f"maps{ending}"
    result = prunevid(
        "show", str(demo_bundle), "--video", str(CLIP), "--question", QUESTION, "--output", str(output)
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    visual, merged, kept = (sum(stage) for stage in demo_maps.counts)
    assert f"{visual} -> {merged} -> {kept} visual tokens" in result.stdout
    assert result.stdout.strip().endswith(f"answer: {demo_maps.answer}")
    assert [file.name for file in tmp_path.iterdir()] == [output.name]
    if ending == ".html":
        assert page_data(output.read_text(encoding="utf-8"))["side"] == demo_maps.side
    else:
        with Image.open(output) as picture:
            picture.load()
            assert picture.format == ending[1:].upper()


def test_settings_and_frames_reach_the_picture(demo_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "maps.html"
    options = ("--frames", "5", "--static-threshold", "2", "--cluster-ratio", "1", "--keep-ratio", "0.5")
    result = prunevid(
        "show", str(demo_bundle), "--video", str(CLIP), "--question", QUESTION, "--output", str(output), *options
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    data = page_data(output.read_text(encoding="utf-8"))
    assert not any(data["static"])
    assert np.bincount(data["size"]).tolist() == [0, 5 * data["side"] ** 2]
    assert sum(data["kept"]) == len(data["kept"]) / 2


@pytest.fixture
def nowhere(tmp_path: Path) -> Callable[..., str]:
    """Runs show on a bundle that does not exist: only what is said before looking at it comes out."""

    def run(output: str, video: str = "no.mp4") -> str:
        arguments = ("--video", video, "--question", "Why?", "--output", output)
        return refused(prunevid("show", str(tmp_path / "no bundle"), *arguments))

    return run


def test_outputs_that_cannot_be_are_refused_before_any_work(nowhere: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for output, expected in (
        ("maps.jpg", "must be a .png, .gif or .html file"),
        ("maps", "must be a .png, .gif or .html file"),
        ("folder.png", "exists and is not a file"),
        ("missing/maps.png", "there is no folder"),
        ("m" * 300 + ".png", "name too long"),
    ):
        assert expected in nowhere(str(tmp_path / output))
    assert "there is no bundle" in nowhere(str(tmp_path / "maps.png"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.png"]


def test_the_video_is_not_overwritten(nowhere: Callable[..., str], tmp_path: Path) -> None:
    video = tmp_path / "clip.gif"
    video.write_bytes(b"a video")
    assert "would overwrite the video" in nowhere(str(video), str(video))
    assert video.read_bytes() == b"a video"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_refused(nowhere: Callable[..., str], tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "no permission" in nowhere(str(tmp_path / "maps.png"))


def test_a_full_disk_leaves_nothing_and_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "maps.html"
    output.write_text("old")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(PruneVidError, match="No space left"):
        save(make_maps(), output)
    assert [path.name for path in tmp_path.iterdir()] == ["maps.html"]
    assert output.read_text() == "old"


def test_bad_questions_are_refused(demo_bundle: Path, tmp_path: Path) -> None:
    arguments = ("--video", "no.mp4", "--output", str(tmp_path / "maps.png"))
    assert "question" in refused(prunevid("show", str(demo_bundle), "--question", " ", *arguments))
    assert list(tmp_path.iterdir()) == []


def test_letters_that_the_font_lacks_are_announced(tiny_bundle: Callable[[str, str], Path], tmp_path: Path) -> None:
    arguments = ("--video", str(CLIP), "--question", "何?", "--frames", "2")
    bundle = str(tiny_bundle("qwen2", "ort"))
    result = prunevid("show", bundle, *arguments, "--output", str(tmp_path / "maps.png"))
    assert result.returncode == 0, result.stderr
    assert "only Latin letters" in result.stderr
