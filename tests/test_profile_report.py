"""The profile's page in a real browser: every figure is the JSON's, nothing is fetched, nothing overflows a phone."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from boards import ORIN_RAILS, board

from prunevid.runtime import Pipeline, load
from prunevid.runtime.look import units
from prunevid.runtime.look.charts import Axis, Series, line_chart, ticks
from prunevid.runtime.profile import ProfileSettings, measure, profile
from prunevid.runtime.profile.operator_times import measure_operators
from prunevid.runtime.profile.records import ProfileResult
from prunevid.runtime.profile.report import to_html
from prunevid.runtime.profile.sensors.jetson import Jetson
from prunevid.runtime.profile.serialization import to_json
from prunevid.runtime.profile.terminal import print_result

CLIP = Path(__file__).parents[1] / "demo" / "clip.mp4"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCALES = {"": 1.0, "s": 1.0, "ms": 1e-3, "µs": 1e-6, "×": 1.0, "%": 0.01, "W": 1.0, "J": 1.0}
for prefix, scale in (("", 1.0), ("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12)):
    SCALES |= {f"{prefix}B": scale, f"{prefix}FLOP": scale}


@pytest.fixture(scope="module")
def pipeline(demo_bundle: Path) -> Pipeline:
    return load(demo_bundle, threads=2)


@pytest.fixture(scope="module")
def result(pipeline: Pipeline) -> ProfileResult:
    """One comparison, with operators."""
    settings = ProfileSettings((8,), runs=2, warmup=0, max_new_tokens=4)
    measured = profile(pipeline, CLIP, "how many objects move ?", settings)
    prune = pipeline.bundle.manifest.prune
    operators = measure_operators(
        pipeline.bundle, CLIP, "how many objects move ?", frames=4, prune=prune, max_new_tokens=2, threads=2
    )
    return replace(measured, operators=operators)


@pytest.fixture(scope="module")
def sweep(pipeline: Pipeline) -> ProfileResult:
    prune = pipeline.bundle.manifest.prune
    prunes = tuple(replace(prune, keep_ratio=ratio) for ratio in (0.2, 0.6))
    return profile(pipeline, CLIP, settings=ProfileSettings((2, 4), prunes, runs=1, warmup=0, max_new_tokens=3))


class _Page(html.parser.HTMLParser):
    """What a page holds: figures with their places, text, and the names of its elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.figures: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self._open: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "data":
            values = dict(attrs)
            self._open = [str(values["data-at"]), str(values["value"]), ""]

    def handle_endtag(self, tag: str) -> None:
        if tag == "data" and self._open:
            self.figures.append((self._open[0], self._open[1], self._open[2]))
            self._open = None

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._open:
            self._open[2] += data


def browse(path: Path, folder: Path, *options: str) -> str:
    """The document as a browser has it after loading the page."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder / 'browser'}"),
        *("--virtual-time-budget=2000", *options, "--dump-dom", path.as_uri()),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def at(data: Any, place: str) -> Any:
    return reduce(lambda found, key: found[int(key) if isinstance(found, list) else key], place.split("/")[1:], data)


def read(text: str) -> float:
    """The number that a reader of the page sees."""
    found = re.fullmatch(r"(-?[\d,.]+)\s?(\S*)", text.replace("\N{NO-BREAK SPACE}", " "))
    assert found, text
    return float(found[1].replace(",", "")) * SCALES[found[2]]


@pytest.mark.parametrize("kind", ["result", "sweep"])
def test_every_figure_in_the_browser_is_that_of_the_json(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    measured: ProfileResult = request.getfixturevalue(kind)
    path = tmp_path / "report.html"
    path.write_text(to_html(measured), encoding="utf-8")
    page = _Page(browse(path, tmp_path))
    data = json.loads(to_json(measured))
    for place, value, text in page.figures:
        assert float(value) == at(data, place), place
        assert read(text) == pytest.approx(float(value), rel=0.006, abs=1e-8), (place, text)
    shown = {place for place, _, _ in page.figures}
    for index, variant in enumerate(data["variants"]):
        assert f"/variants/{index}/first_token/median_s" in shown
        assert f"/variants/{index}/tokens/kept" in shown
        for number in range(len(variant["stages"])):
            assert {f"/variants/{index}/stages/{number}/time/{s}" for s in ("median_s", "p90_s", "p99_s")} <= shown
    for number, graph in enumerate(data["operators"]):
        assert {f"/operators/{number}/slowest/{place}/total_s" for place in range(len(graph["slowest"]))} <= shown
    words = " ".join(page.words)
    for word in (measured.machine["packages"], measured.machine["processor"], "clip.mp4", measured.question):
        assert word in words


@pytest.mark.parametrize("kind", ["result", "sweep"])
def test_a_page_needs_nothing_else(kind: str, request: pytest.FixtureRequest) -> None:
    text = to_html(request.getfixturevalue(kind))
    page = _Page(text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not re.search(r"""https?:|url\(|@import|\bsrc=|\bhref=|\son\w+=""", text)
    assert "default-src 'none'" in text


@pytest.mark.parametrize("kind", ["result", "sweep"])
def test_a_phone_shows_it_without_scrolling_sideways(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(to_html(request.getfixturevalue(kind)), encoding="utf-8")
    # A headless window is no narrower than some 500 pixels; a frame is as narrow as it is told to be.
    frame = tmp_path / "frame.html"
    frame.write_text(
        '<iframe src="report.html" width="390" height="800" style="border:0"></iframe><p id="widths"></p><script>'
        'onload = () => { const root = document.querySelector("iframe").contentDocument.documentElement;'
        'document.getElementById("widths").textContent = root.clientWidth + " of " + root.scrollWidth }</script>'
    )
    document = browse(frame, tmp_path, "--allow-file-access-from-files", "--window-size=600,900")
    found = re.search(r'id="widths">(\d+) of (\d+)<', document)
    assert found, document[:500]
    assert int(found[1]) == int(found[2]) <= 390


def test_text_from_outside_stays_text(result: ProfileResult, tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script> & \"quotes\" 'here' {{ 7 * 7 }}"
    changed = replace(
        result,
        question=hostile,
        video=f"/videos/{hostile.replace('/', '')}.mp4",
        bundle=hostile,
        machine={**result.machine, "processor": hostile},
        notes=(hostile,),
    )
    text = to_html(changed)
    assert "<script" not in text
    assert "{{ 7 * 7 }}" in text
    assert hostile in " ".join(_Page(text).words)
    if CHROMIUM:
        path = tmp_path / "report.html"
        path.write_text(text, encoding="utf-8")
        assert "script" not in _Page(browse(path, tmp_path)).tags
    with (tmp_path / "table.txt").open("w+") as file:
        print_result(changed, file)
        file.seek(0)
        assert "alert(1)" in file.read()


def test_a_jetson_adds_power_load_and_memory(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    root = board(tmp_path, "NVIDIA Jetson AGX Orin Developer Kit", ORIN_RAILS, gpu_load=None)
    monkeypatch.setattr(measure, "find_sensors", lambda backend: Jetson(root))
    result = profile(pipeline, CLIP, settings=ProfileSettings((8,), runs=6, warmup=0, max_new_tokens=4))
    assert result.notes == ("This Jetson shows no GPU load, neither in sysfs nor in tegrastats.",)
    assert result.memory.device_total_bytes == 64331412 * 1024
    assert result.memory.device_peak_bytes == (64331412 - 60568780) * 1024
    uses = [variant.device for variant in result.variants if variant.device]
    assert uses
    for variant, use in zip(result.variants, uses, strict=False):
        assert use.power_mean_w == pytest.approx(9.392)
        assert use.gpu_load is None
        assert use.rails_w["VDD_CPU_CV"] == pytest.approx(0.79712)
        assert use.energy_j == pytest.approx(9.392 * variant.end_to_end.median_s)
    page = _Page(to_html(result))
    words = " ".join(page.words)
    assert "device memory in use at the peak" in words
    assert "memory of the device in use" in words
    if len(uses) == 2:  # each ran long enough for a look at the sensors
        assert "/variants/0/device/energy_j" in {place for place, _, _ in page.figures}
        assert "VDD_CPU_CV, mean" in words
    with (tmp_path / "table.txt").open("w+") as file:
        print_result(result, file)
        file.seek(0)
        assert "device memory: 3.85 GB in use at the peak, of 65.9 GB" in file.read()


@pytest.mark.parametrize(
    ("stop", "unit", "labels"),
    [
        (0.23, "seconds", ["0 ms", "100 ms", "200 ms", "300 ms"]),
        (1.9e8, "bytes", ["0 MB", "50 MB", "100 MB", "150 MB", "200 MB"]),
        (3136, "count", ["0", "1,000", "2,000", "3,000", "4,000"]),
        (0.9, "share", ["0 %", "50 %", "100 %"]),
        (0.0, "seconds", ["0 s", "0.5 s", "1 s"]),
    ],
)
def test_axes_have_round_numbers(stop: float, unit: str, labels: list[str]) -> None:
    found = ticks(stop, unit)
    assert [text for _, text in found] == labels
    assert found[0][0] == 0
    assert found[-1][0] >= stop


def test_a_chart_draws_its_points_where_they_belong() -> None:
    chart = line_chart("t", [Series("a", "pruned", [(0, 0.0), (5, 10.0), (10, 5.0)])], Axis(0, 10, [(5, "x")]), "count")
    assert 'd="M0.0 1000.0L500.0 0.0L1000.0 500.0"' in chart
    assert '<span style="left:50.00%">x</span>' in chart


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.seconds(85.34e-6), "85.3 µs"),
        (units.seconds(0.01234), "12.3 ms"),
        (units.seconds(1.625), "1.62 s"),
        (units.seconds(-0.5e-3), "-500 µs"),
        (units.seconds(1234.5), "1234 s"),
        (units.data(999), "999 B"),
        (units.data(3_720_192), "3.72 MB"),
        (units.flops(2_600_468_480), "2.60 GFLOP"),
        (units.rate(0.0241), "0.0241"),
        (units.ratio(4.3149), "4.31×"),
        (units.percent(0.0849), "8.49 %"),
        (units.count(3136), "3,136"),
    ],
)
def test_figures_have_three_digits_and_a_unit(text: str, expected: str) -> None:
    assert text == expected
