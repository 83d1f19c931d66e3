"""The pixel side of a checkpoint: what its processor files ask for, of which every key is obeyed or refused by name.

Which file wins, and what a missing key means, is as transformers has it; a family's `ProcessorFormat` says it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunevid.bundle.sections.preprocessing import Preprocessing
from prunevid.errors import PruneVidError
from prunevid.export.checkpoint.json_files import find_file, read_json
from prunevid.export.checkpoint.schema import (
    FLAG,
    Section,
    anything,
    conform,
    either,
    list_of,
    number,
    one_of,
    only,
    optional,
    positive,
    refuse,
    text,
    whole,
)
from prunevid.export.families.family import ProcessorFormat
from prunevid.validation import Rule, is_number

_NESTED = "processor_config.json"
# What the classes assume for a key that is missing.
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# PIL's numbers; transformers' torch processors do the other filters in another way, or not at all.
_RESAMPLING = {2: "bilinear", 3: "bicubic"}

_SIDE = whole(1, 4096)
_SIDES = either(_SIDE, Rule("an object of height and width", lambda value: isinstance(value, dict)))
_OFF = one_of(False, None)
_THREE = either(number(-1e6, 1e6), list_of(number(-1e6, 1e6), 3, 3))
_SECTION = Section(
    {
        "do_resize": only(one_of(True), "the vision tower takes frames of one size"),
        "size": _SIDES,
        "default_to_square": optional(FLAG),
        "resample": Rule("2 (bilinear) or 3 (bicubic)", lambda value: type(value) is int and value in _RESAMPLING),
        "do_center_crop": optional(FLAG),
        "crop_size": optional(_SIDES),
        "do_rescale": optional(FLAG),
        "rescale_factor": optional(positive(1e6)),
        "do_normalize": optional(FLAG),
        "image_mean": optional(_THREE),
        "image_std": optional(_THREE),
        "do_sample_frames": only(_OFF, "which frames are shown is up to the run"),
        # What changes nothing: frames are RGB already, padding is for images' tiles, and the rest for the caller.
        "do_convert_rgb": optional(FLAG),
        "do_pad": optional(FLAG),
        "data_format": one_of("channels_first", None),
        **dict.fromkeys(
            (
                "auto_map",
                "device",
                "disable_grouping",
                "feature_extractor_type",
                "fps",
                "image_grid_pinpoints",
                "image_processor_type",
                "input_data_format",
                "num_frames",
                "pad_size",
                "processor_class",
                "return_metadata",
                "return_tensors",
                "video_metadata",
                "video_processor_type",
                "_valid_processor_keys",
            ),
            anything(),
        ),
    },
    closed=True,
)


def read_preprocessing(checkpoint: Path, processor: ProcessorFormat, size: int, patches: int) -> Preprocessing:
    """Preprocessing as the checkpoint's processor files have it.

    Args:
        checkpoint: Its folder.
        processor: Which files those are, and what their classes assume.
        size: Side of the frames that the vision tower takes, in pixels.
        patches: How many patches it cuts them into.

    Raises:
        PruneVidError: There is no such file, or it asks for something else than the runtime does.
    """
    data, where = _find(checkpoint, processor, patches)
    known = conform(data, _SECTION, where)
    _check_class(known, processor, where)
    for key in processor.refused:
        if known.get(key):
            raise refuse(where, key, known[key], "false or null: frames are not padded")
    center_crop = _crops(known, processor, size, where)
    # To transformers, a step that is null is one not to take, and a value that is null is none at all.
    mean, std, rescale = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1.0
    if known.get("do_normalize", True):
        mean = _three(known.get("image_mean", _CLIP_MEAN), "image_mean", where)
        std = _three(known.get("image_std", _CLIP_STD), "image_std", where)
        if min(std) <= 0:
            raise refuse(where, "image_std", known["image_std"], "three numbers above 0")
    if known.get("do_rescale", True):
        rescale = known.get("rescale_factor", 1 / 255)
        if rescale is None:
            raise refuse(where, "rescale_factor", rescale, "a number above 0, unless do_rescale is false")
    return Preprocessing(size, mean, std, float(rescale), _RESAMPLING[known.get("resample", 3)], center_crop)


def _find(checkpoint: Path, processor: ProcessorFormat, patches: int) -> tuple[dict[str, Any], str]:
    """What the file that wins says, and where that is."""
    if nested := find_file(checkpoint, _NESTED):
        data = read_json(nested)
        counted = data.get("num_image_tokens")
        if counted is not None and counted != patches:
            raise refuse(str(nested), "num_image_tokens", counted, f"{patches}, the patches that config.json describes")
        if (section := data.get(processor.section)) is not None:
            if not isinstance(section, dict):
                raise refuse(str(nested), processor.section, section, "an object")
            return section, f"{nested}: {processor.section}"
    for name in processor.files:
        if file := find_file(checkpoint, name):
            return read_json(file), str(file)
    raise PruneVidError(
        f"the checkpoint {checkpoint} says nowhere how frames become pixel values: save its processor there "
        f"({processor.files[0]})"
    )


def _check_class(known: dict[str, Any], processor: ProcessorFormat, where: str) -> None:
    key = "video_processor_type" if known.get("video_processor_type") is not None else "image_processor_type"
    name = known.get(key)
    if name is not None and not (text(200).fits(name) and name.startswith(processor.classes)):
        raise refuse(where, key, name, f"a processor of {processor.called}: others take further steps")


def _crops(known: dict[str, Any], processor: ProcessorFormat, size: int, where: str) -> bool:
    """Whether frames keep their aspect ratio and are cropped.

    Raises PruneVidError for what makes no square of `size` of a frame, or in another way.
    """
    sides = known.get("size", processor.size)
    if is_number(sides):
        sides = dict.fromkeys(("height", "width") if known.get("default_to_square") else ("shortest_edge",), sides)
    cropping = known.get("do_center_crop", processor.crop is not None)
    if cropping:  # sides are cut off, or padded where there is too little
        cut = known.get("crop_size", processor.crop)
        _check_square(dict.fromkeys(("height", "width"), cut) if is_number(cut) else cut, "crop_size", size, where)
        if "shortest_edge" in sides:
            for key, value in sides.items():
                if (key, value) != ("shortest_edge", size):
                    allowed = f"{size}, as the vision tower of config.json has it"
                    allowed = allowed if key == "shortest_edge" else "absent: the shortest edge says it all"
                    raise refuse(where, f"size[{key[:40]!r}]", value, allowed)
            return True
    for key, value in sides.items():
        if key not in ("height", "width"):
            raise refuse(
                where,
                f"size[{key[:40]!r}]",
                value,
                f"absent: frames become squares of {size} pixels, whatever their shape",
            )
    _check_square(sides, "size", size, where)
    return False


def _check_square(sides: dict[str, Any] | None, key: str, size: int, where: str) -> None:
    height, width = (sides.get("height"), sides.get("width")) if sides else (None, None)
    if (height, width) != (size, size) or set(sides or ()) != {"height", "width"}:
        shown = f"{height!r} x {width!r}"[:80]
        raise PruneVidError(
            f"{where}: {key} must be {size} x {size}, as the vision tower of config.json has it, not {shown}"
        )


def _three(values: Any, key: str, where: str) -> tuple[float, float, float]:
    """One number per channel; a single one is all three."""
    if values is None:
        raise refuse(where, key, values, "three numbers, unless do_normalize is false")
    red, green, blue = values if isinstance(values, (list, tuple)) else [values] * 3
    return float(red), float(green), float(blue)
