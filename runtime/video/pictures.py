"""Pictures as frames: one, a folder of them, or those of an animation that FFmpeg does not read."""

from __future__ import annotations

import mmap
import re
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prunevid.errors import PruneVidError
from prunevid.runtime.video.frames import FrameStack, SampledFrames, Shrink, check_dimensions, sample_indices
from prunevid.runtime.video.orientation import orientation_of_exif

__all__ = ["read_animation", "read_folder", "read_picture", "sniff_picture"]

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
_ORIENTATION, _BITS, _PHOTOMETRIC, _SUBFILE = 0x0112, 258, 262, 254  # TIFF tags
_WHITE_IS_ZERO, _REDUCED = 0, 1
# Pillow would print this beside the sentence that refuses the same picture: what is too large is said here.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Of a picture that is converted, at a time.
_BLOCK_PIXELS = 2**20


def sniff_picture(path: Path) -> str | None:
    """What kind of picture a file holds, whatever its name.

    Returns:
        "picture", "animation" (read by `read_animation`), or None for what is FFmpeg's: films, GIF, animated PNG, JPEGs
        one behind the other, and what is no picture.

    Raises:
        PruneVidError: The picture claims absurd dimensions.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            check_dimensions(image.width, image.height, str(path))
            if image.format == "JPEG":
                return None if _has_several_jpegs(path) else "picture"
            if image.format == "MPO" or getattr(image, "n_frames", 1) == 1:
                return "picture"
            return None if image.format == "PNG" else "animation"
    except Image.DecompressionBombError as error:
        raise PruneVidError(f"{path}: the image claims absurd dimensions ({error})") from error
    except PruneVidError:
        raise
    except Exception:  # Pillow raises anything for damaged headers: FFmpeg is to say what this is
        return None


def _has_several_jpegs(path: Path) -> bool:
    """Whether one JPEG ends where another begins: Motion JPEG, without a container."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(b"\xff\xd9\xff\xd8\xff") >= 0


def read_folder(folder: Path, count: int, shrink: Shrink | None) -> SampledFrames:
    """Samples the pictures in a folder, in natural order.

    Raises:
        PruneVidError: There are none, none is whole, they differ in size, or one cannot be shown as a frame.
    """
    pictures = [path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file()]
    pictures = [path for path in pictures if not path.name.startswith(".")]
    if not pictures:
        raise PruneVidError(
            f"{folder}: no images in this folder (JPEG, PNG, BMP, WebP or TIFF); give a folder of frames"
        )
    return _read(sorted(pictures, key=_natural_order), folder, count, shrink)


def read_picture(path: Path, shrink: Shrink | None) -> SampledFrames:
    """A picture as a video of one frame. Raises PruneVidError as `read_folder` does."""
    return _read([path], path, 1, shrink)


def _natural_order(path: Path) -> tuple[list[tuple[bool, str, tuple[Fraction, ...]]], str, str]:
    """Numbers in a name count as numbers, decimals too, but versions and dates as their parts.

    t0.25 comes before t0.5, and 1.9.0 before 1.10.0; signs are separators. Names that are equal so far are in the order
    of their characters.
    """
    parts = re.split(r"([0-9]+(?:[.,][0-9]+)*)", path.stem.casefold())
    key = [(bool(i % 2), *(_number(part) if i % 2 else (part, ()))) for i, part in enumerate(parts)]
    return key, path.stem, path.name


def _number(text: str) -> tuple[str, tuple[Fraction, ...]]:
    parts = re.split("[.,]", text)
    if len(parts) == 2:
        return "", (Fraction(".".join(parts)),)
    return "", tuple(Fraction(part) for part in parts)


def _read(pictures: list[Path], source: Path, count: int, shrink: Shrink | None) -> SampledFrames:
    """Reads the sampled pictures only; a damaged one gives way to the next whole one before the next sample."""
    indices = sample_indices(len(pictures), count).tolist()
    stack = FrameStack(str(source), len(indices), shrink)
    damaged = 0
    for index, end in zip(indices, [*indices[1:], len(pictures)], strict=True):
        for position in range(index, end):
            image = _read_picture(pictures[position])
            if image is None:
                damaged += 1
                continue
            _add(stack, image, float(position), str(pictures[position]))
            break
    if not len(stack):
        raise PruneVidError(f"{source}: all {damaged} images are damaged; record or copy them again")
    return stack.finish(damaged, decoded=len(stack))


def _add(stack: FrameStack, image: NDArray[np.uint8], timestamp_s: float, where: str) -> None:
    if stack.size is not None and image.shape[:2] != stack.size:
        raise PruneVidError(
            f"{where}: {image.shape[1]} x {image.shape[0]} pixels, but the frames before "
            f"it have {stack.size[1]} x {stack.size[0]}; the frames of a video must have one size"
        )
    stack.add(image, timestamp_s)


def _read_picture(path: Path) -> NDArray[np.uint8] | None:
    """A picture as RGB, uint8 [H, W, 3], upright; None where it is damaged."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            check_dimensions(image.width, image.height, str(path))
            frames = getattr(image, "n_frames", 1)
            if image.format != "MPO" and frames > 1:
                raise PruneVidError(f"{path}: this has {frames} frames or pages, not one; give that file alone")
            return _upright(image, str(path))
    except PermissionError as error:
        raise PruneVidError(f"{path}: no permission to read this file") from error
    except Image.DecompressionBombError as error:
        raise PruneVidError(f"{path}: the image claims absurd dimensions ({error})") from error
    except (PruneVidError, MemoryError):
        raise
    except Exception:  # Pillow raises anything for damaged files
        return None


def read_animation(path: Path, count: int, shrink: Shrink | None) -> SampledFrames:
    """Samples the frames of an animated WebP or the pages of a TIFF, without those that are only smaller copies.

    Raises:
        PruneVidError: They differ in size, a page cannot be shown as a frame, or the file is damaged.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            pages = [index for index in range(getattr(image, "n_frames", 1)) if not _is_copy(image, index)]
            chosen = sample_indices(len(pages), count).tolist()
            stack = FrameStack(str(path), len(chosen), shrink)
            first: int | None = None
            for rank in chosen:
                image.seek(pages[rank])
                check_dimensions(image.width, image.height, str(path))
                pixels = _upright(image, str(path))
                start = image.info.get("timestamp", 1000 * rank)  # in milliseconds
                first = start if first is None else first
                _add(stack, pixels, (start - first) / 1000, f"{path}, page {pages[rank] + 1}")
            return stack.finish(0, decoded=len(stack))
    except (PruneVidError, MemoryError):
        raise
    except PermissionError as error:
        raise PruneVidError(f"{path}: no permission to read this file") from error
    except Exception as error:  # Pillow raises anything for damaged files
        raise PruneVidError(f"{path}: a frame of this animation is damaged; record or copy it again") from error


def _is_copy(image: Image.Image, index: int) -> bool:
    if image.format != "TIFF":
        return False
    image.seek(index)
    return bool(int(_tag(image, _SUBFILE, 0)) & _REDUCED)


def _upright(image: Image.Image, where: str) -> NDArray[np.uint8]:
    """The pixels as RGB, uint8 [H, W, 3], turned and mirrored as the picture's metadata says.

    An alpha channel is left out, as ffmpeg and transformers do: what is stored under it is shown.
    """
    image.load()
    table = _levels(image)
    if table is None and image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"):
        raise PruneVidError(
            f"{where}: pixels of the kind {image.mode!r} say not which value is black and which is white; save the "
            "picture with 8 or 16 unsigned bits per channel"
        )
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _BLOCK_PIXELS // image.width)
    for top in range(0, image.height, rows):
        block = image.crop((0, top, image.width, min(top + rows, image.height)))
        values = np.asarray(block.convert("RGB")) if table is None else table[np.asarray(block)][..., None]
        pixels[top : top + rows] = values
    # After loading: Pillow turns TIFFs itself.
    return orientation_of_exif(image.getexif().get(_ORIENTATION)).apply(pixels)


def _levels(image: Image.Image) -> NDArray[np.uint8] | None:
    """What the values of a grey picture with up to 16 bits become: uint8 [65536]; None where it is none such."""
    if not image.mode.startswith("I;16") and not (image.mode == "I" and image.format == "PNG"):
        return None
    highest = 2 ** min(16, int(_tag(image, _BITS, 16))) - 1
    levels: NDArray[np.uint8] = np.minimum((np.arange(65536) * 255 + highest // 2) // highest, 255).astype(np.uint8)
    if _tag(image, _PHOTOMETRIC, 1) == _WHITE_IS_ZERO:
        levels = np.uint8(255) - levels
    return levels


def _tag(image: Image.Image, tag: int, default: int) -> int:
    """A number from a TIFF's directory; the default for other pictures and where it is missing."""
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)
