"""Sensors: lines that tegrastats and nvidia-smi print, sysfs trees as boards have them, the sampling thread."""

from __future__ import annotations

import os
import stat
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from boards import ORIN_RAILS, board

from prunevid.runtime.machine import describe
from prunevid.runtime.profile.sensors.jetson import Jetson, find_jetson, parse_tegrastats, total_power
from prunevid.runtime.profile.sensors.nvidia_smi import parse_nvidia_smi
from prunevid.runtime.profile.sensors.telemetry import Telemetry, find_sensors

# Printed by boards and published by their owners, shortened where nothing is read.
AGX_ORIN_JETPACK_5 = (
    "10-16-2023 10:59:22 RAM 1205/30623MB (lfb 6429x4MB) SWAP 0/15311MB (cached 0MB) CPU [0%@729,0%@729,1%@729,0%@729] "
    "EMC_FREQ 0%@204 GR3D_FREQ 0%@114 GR3D2_FREQ 0%@114 NVJPG1 729 VIC_FREQ 729 APE 233 CV0@-256C CPU@43.5C "
    "Tdiode@32.5C SOC2@40.062C SOC0@40.5C GPU@38.156C VDD_GPU_SOC 4788mW/4788mW VDD_CPU_CV 798mW/798mW "
    "VIN_SYS_5V0 3842mW/3842mW NC 0mW/0mW VDDQ_VDD2_1V8AO 707mW/707mW NC 0mW/0mW"
)
ORIN_NANO_JETPACK_6 = (
    "09-21-2025 15:38:17 RAM 3645/7620MB (lfb 63x4MB) SWAP 236/3810MB (cached 0MB) CPU [1%@729,1%@729,4%@729,1%@729] "
    "EMC_FREQ 0%@204 GR3D_FREQ 0%@[305] NVDEC off NVJPG off NVJPG1 off VIC off OFA off APE 200 cpu@44.125C "
    "soc2@43.375C soc0@42.125C gpu@44.531C tj@44.531C VDD_IN 2957mW/2957mW VDD_CPU_GPU_CV 486mW/486mW "
    "VDD_SOC 1012mW/1012mW"
)
ORIN_NANO_JETPACK_7 = (
    "09-01-2026 09:25:18 RAM 5739/7546MB (lfb 1x2MB) SWAP 2047/2048MB (cached 209MB) CPU [72%@1728,75%@1728,88%@1728] "
    "GR3D_FREQ 33% cpu@50C/50C soc2@47.937C/47.937C gpu@48.75C/48.75C tj@50C/50C VDD_IN 9761mW/9761mW/9761mW "
    "VDD_CPU_GPU_CV 4238mW/4238mW/4238mW VDD_SOC 1825mW/1825mW/1825mW"
)
AGX_ORIN_JETPACK_7 = (
    "07-25-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201,10%@2201] EMC_FREQ 3%@3199 "
    "GR3D_FREQ 0%@[1300,1300] NVENC0 off NVDEC0 off APE 174 cpu@52.968C/52.968C"
)
THOR_JETPACK_7 = (
    "07-31-2026 14:45:55 RAM 86905/125772MB (lfb 368x4MB) CPU [12%@972,10%@972,off,33%@1890] cpu@39.812C tj@39.906C "
    "soc012@38.812C gpu@39.906C soc345@38.625C VDD_GPU 3561mW/3561mW VDD_CPU_SOC_MSS 7910mW/7910mW "
    "VIN_SYS_5V0 7620mW/7620mW VIN 26686mW/26686mW"
)


@pytest.mark.parametrize(
    ("line", "gpu_load", "rails", "total"),
    [
        (
            AGX_ORIN_JETPACK_5,
            0.0,
            {"VDD_GPU_SOC": 4.788, "VDD_CPU_CV": 0.798, "VIN_SYS_5V0": 3.842, "VDDQ_VDD2_1V8AO": 0.707},
            4.788 + 0.798 + 3.842,
        ),
        (ORIN_NANO_JETPACK_6, 0.0, {"VDD_IN": 2.957, "VDD_CPU_GPU_CV": 0.486, "VDD_SOC": 1.012}, 2.957),
        (ORIN_NANO_JETPACK_7, 0.33, {"VDD_IN": 9.761, "VDD_CPU_GPU_CV": 4.238, "VDD_SOC": 1.825}, 9.761),
        (AGX_ORIN_JETPACK_7, 0.0, {}, None),
        (
            THOR_JETPACK_7,
            None,
            {"VDD_GPU": 3.561, "VDD_CPU_SOC_MSS": 7.910, "VIN_SYS_5V0": 7.620, "VIN": 26.686},
            26.686,
        ),
        ("", None, {}, None),
    ],
)
def test_a_line_of_tegrastats(line: str, gpu_load: float | None, rails: dict[str, float], total: float | None) -> None:
    load, found = parse_tegrastats(line)
    assert load == gpu_load
    assert found == pytest.approx(rails)
    assert total_power(found) == (None if total is None else pytest.approx(total))


@pytest.fixture
def no_tegrastats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")


@pytest.mark.usefixtures("no_tegrastats")
def test_an_orin_is_read_from_sysfs(tmp_path: Path) -> None:
    device = find_jetson(board(tmp_path, "NVIDIA Jetson AGX Orin Developer Kit", ORIN_RAILS, gpu_load=735))
    assert device is not None
    reading = device.read()
    assert reading.gpu_load == 0.735
    assert reading.rails_w == pytest.approx({"VDD_GPU_SOC": 4.78272, "VDD_CPU_CV": 0.79712, "VIN_SYS_5V0": 3.81216})
    assert reading.power_w == pytest.approx(9.392)
    assert reading.memory_bytes == (64331412 - 60568780) * 1024
    assert device.memory_total_bytes == 64331412 * 1024
    assert device.notes == []
    (tmp_path / "sys/devices/platform/gpu.0/load").write_text("12\n")
    assert device.read().gpu_load == 0.012


@pytest.mark.usefixtures("no_tegrastats")
def test_a_thor_has_its_board_input_and_no_gpu_load(tmp_path: Path) -> None:
    rails = {"VDD_GPU": (12_040, 640), "VDD_CPU_SOC_MSS": (12_040, 960), "VIN_SYS_5V0": (5_088, 1_740)}
    root = board(tmp_path, "NVIDIA Jetson AGX Thor Developer Kit", rails, gpu_load=None, vin_uw=26_686_000)
    device = Jetson(root)
    assert device.read().power_w == 26.686
    assert device.read().rails_w["VDD_GPU"] == pytest.approx(7.7056)
    assert device.read().gpu_load is None
    assert device.notes == ["This Jetson shows no GPU load, neither in sysfs nor in tegrastats."]


@pytest.mark.usefixtures("no_tegrastats")
def test_what_no_source_shows_is_named(tmp_path: Path) -> None:
    first, second = Jetson(board(tmp_path / "a", "NVIDIA Jetson Orin Nano", {}, gpu_load=None)).notes
    assert "GPU load" in first
    assert "power," in second
    partial = Jetson(board(tmp_path / "b", "NVIDIA Jetson AGX Orin", {"VDD_CPU_CV": (5_000, 1)}, gpu_load=0))
    (note,) = partial.notes
    assert "power of the whole module" in note
    assert partial.read().power_w is None


def test_other_machines_are_no_jetson(tmp_path: Path) -> None:
    assert find_jetson(tmp_path) is None
    board(tmp_path, "Raspberry Pi 5 Model B Rev 1.0", {}, gpu_load=None)
    assert find_jetson(tmp_path) is None
    assert "jetson" not in describe(root=tmp_path)


def test_tegrastats_fills_in_what_sysfs_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "tegrastats"
    program.parent.mkdir()
    program.write_text(
        f"#!/bin/sh\necho $$ > {tmp_path}/pid\nwhile true; do echo '{ORIN_NANO_JETPACK_7}'; sleep 0.05; done\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    device = Jetson(board(tmp_path / "root", "NVIDIA Jetson Orin Nano", {}, gpu_load=500))
    try:
        reading = device.read()
        assert reading.gpu_load == 0.5  # sysfs comes first
        assert reading.rails_w == {"VDD_IN": 9.761, "VDD_CPU_GPU_CV": 4.238, "VDD_SOC": 1.825}
        assert reading.power_w == 9.761
        assert device.notes == []
    finally:
        device.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_tegrastats_that_ends_at_once_is_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "tegrastats"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    device = Jetson(board(tmp_path / "root", "NVIDIA Jetson Orin Nano", {}, gpu_load=None))
    device.close()
    assert len(device.notes) == 2


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        (
            "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025\n",
            "R36.4.3 (JetPack 6)",
        ),
        (
            "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64, DATE: Fri Aug 22 2025\n",
            "R38.2.0 (JetPack 7)",
        ),
        ("# R99 (release), REVISION: 1.0, GCID: 1\n", "R99.1.0"),
        ("", "unknown"),
    ],
)
def test_a_jetson_says_what_it_is(tmp_path: Path, release: str, expected: str) -> None:
    root = board(tmp_path, "NVIDIA Jetson AGX Orin Developer Kit", {}, gpu_load=None)
    (root / "etc").mkdir()
    (root / "etc/nv_tegra_release").write_text(release)
    machine = describe(root=root)
    assert machine["jetson"] == "NVIDIA Jetson AGX Orin Developer Kit"
    assert machine["jetson linux"] == expected
    assert "onnxruntime" in machine["packages"]


def test_a_machine_names_the_release_of_every_backend_that_is_installed() -> None:
    found, named = describe()["packages"], (each.metadata["Name"] for each in metadata.distributions())
    installed = {name.replace("_", "-") for name in named}
    for package in ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13"):
        assert (f"{package} " in found) == (package in installed)


def test_the_thread_sees_memory_grow_and_sensors_change(tmp_path: Path) -> None:
    root = board(tmp_path, "NVIDIA Jetson AGX Orin", ORIN_RAILS, gpu_load=100)
    with Telemetry(Jetson(root)) as telemetry:
        while len(telemetry.timeline().device) < 2:
            time.sleep(0.01)
        grown = np.ones(40 * 2**20)
        (root / "sys/devices/platform/gpu.0/load").write_text("900\n")
        while telemetry.timeline().device[-1].gpu_load != 0.9:
            time.sleep(0.01)
    timeline = telemetry.timeline()
    assert max(timeline.rss_bytes) - timeline.rss_bytes[0] > 0.9 * grown.nbytes
    assert list(timeline.rss_time_s) == sorted(timeline.rss_time_s)
    assert len(timeline.rss_time_s) > len(timeline.device)
    assert timeline.device[0].power_w == pytest.approx(9.392)
    assert timeline.sampling_s > 0
    seen = len(timeline.rss_bytes)
    time.sleep(0.2)
    assert len(telemetry.timeline().rss_bytes) == seen  # it ended with the block


def test_without_proc_there_is_no_memory_and_no_failure(tmp_path: Path) -> None:
    with Telemetry(None, statm=tmp_path / "none") as telemetry:
        time.sleep(0.1)
    assert telemetry.timeline().rss_bytes == ()
    assert telemetry.timeline().device == ()


@pytest.mark.parametrize(
    ("line", "expected", "total"),
    [
        ("1204, 81559, 37, 128.45\n", (1204 * 2**20, 0.37, 128.45), 81559 * 2**20),
        ("1204, 8192, [N/A], [N/A]\n", (1204 * 2**20, None, None), 8192 * 2**20),
        ("[N/A], [N/A], 96, 41.27\n", (None, 0.96, 41.27), None),
        ("No devices were found\n", (None, None, None), None),
        ("", (None, None, None), None),
    ],
)
def test_a_line_of_nvidia_smi(line: str, expected: tuple[float | None, ...], total: int | None) -> None:
    reading, memory = parse_nvidia_smi(line)
    assert (reading.memory_bytes, reading.gpu_load, reading.power_w) == expected
    assert memory == total


def test_a_card_is_looked_at_only_where_the_backend_runs_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/options\necho '1204, 81559, 37, [N/A]'\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert find_sensors("ort-cpu") is None
    assert not (tmp_path / "options").exists()
    sensors = find_sensors("tensorrt")
    assert sensors is not None
    try:
        assert "--id=2 " in (tmp_path / "options").read_text()
        assert sensors.memory_total_bytes == 81559 * 2**20
        assert sensors.read().gpu_load == 0.37
        assert list(sensors.notes) == ["This card shows no power in nvidia-smi."]
    finally:
        sensors.close()
    program.write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    assert find_sensors("tensorrt") is None


def test_a_gpu_that_shares_the_memory_of_the_machine_is_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '[N/A], [N/A], 96, 41.27'\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    sensors = find_sensors("tensorrt-rtx")
    assert sensors is not None
    try:
        assert (sensors.read().gpu_load, sensors.read().power_w) == (0.96, 41.27)
        assert sensors.read().memory_bytes is sensors.memory_total_bytes is None
        assert list(sensors.notes) == ["This card shows no memory in nvidia-smi."]
    finally:
        sensors.close()
