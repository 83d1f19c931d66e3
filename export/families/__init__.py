"""The model families that can be exported, a module each (`prunevid.export.families.family.Family`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunevid.errors import PruneVidError
from prunevid.export.families import llava, llava_next_video, llava_onevision
from prunevid.export.families.family import Family

FAMILIES: tuple[Family, ...] = (llava_onevision, llava_next_video, llava)
"""All of them; no `config.json` is recognized by two."""


def family_of(data: Mapping[str, Any], where: str) -> Family:
    """The family of a `config.json`'s content. Raises PruneVidError where it is of none that is known."""
    found = [family for family in FAMILIES if family.recognizes(data)]
    if not found:
        known = ", ".join(repr(family.FAMILY) for family in FAMILIES)
        raise PruneVidError(f"{where} is a {repr(data.get('model_type'))[:80]} model: this exporter knows {known}")
    if len(found) > 1:
        names = " and ".join(family.FAMILY for family in found)
        raise PruneVidError(f"{where} could be of the families {names}: its config tells them apart by nothing")
    return found[0]
