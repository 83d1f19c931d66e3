"""A page of a video's maps: one HTML file that needs nothing else, to move through frames and point at patches."""

from __future__ import annotations

import base64
import io
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from prunevid.runtime.look.style import DYNAMIC, STATIC, heat, token_colours
from prunevid.runtime.show.header import caption
from prunevid.runtime.show.maps import TokenMaps
from prunevid.runtime.show.panels import VIEWS, heat_opacity

_JPEG_QUALITY = 85


def draw_page(maps: TokenMaps) -> str:
    """The page as HTML. What comes from outside (question, answer, names) is escaped."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    names = ("visual tokens", "after merging", "kept for the answer")
    return template.render(
        maps=maps,
        stages=[
            {"name": name, "static": static, "dynamic": dynamic}
            for name, (static, dynamic) in zip(names, maps.counts, strict=True)
        ],
        views=[(view, *caption(maps, view)) for view in VIEWS],
        ramp=[_hex(colour) for colour in heat(np.linspace(0, 1, 6))],
        static=_hex(np.array(STATIC)),
        dynamic=_hex(np.array(DYNAMIC)),
        data=_data(maps),
    )


def _data(maps: TokenMaps) -> dict[str, Any]:
    """What the page's script draws from: per frame the picture and its patches' tokens, per token all about it."""
    attention = maps.of_tokens(maps.attention)
    strength = np.sqrt(attention)
    static = maps.of_tokens(maps.static)
    return {
        "side": maps.side,
        "pictures": [_data_uri(frame) for frame in maps.frames],
        "segment": maps.segment.tolist(),
        "token": maps.token.tolist(),
        "size": maps.sizes.tolist(),
        "static": static.tolist(),
        "kept": maps.of_tokens(maps.kept).tolist(),
        "attention": [round(float(value), 4) for value in attention],
        "colour": [_hex(colour) for colour in token_colours(static)],
        "heat": [_hex(colour) for colour in heat(strength)],
        "heatOpacity": [round(float(value), 3) for value in heat_opacity(strength)],
    }


def _data_uri(frame: np.ndarray) -> str:
    """A frame uint8 [H, W, 3] as the address of a picture."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _hex(colour: np.ndarray) -> str:
    return "#{:02x}{:02x}{:02x}".format(*(round(float(part)) for part in colour))
