"""The list of model families: who recognizes a config, and what every family has."""

from __future__ import annotations

import pytest

from prunevid.errors import PruneVidError
from prunevid.export import families
from prunevid.export.catalog import shipped_config
from prunevid.export.families import family_of
from prunevid.models import KNOWN


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_model_is_of_one_family(name: str) -> None:
    config = shipped_config(KNOWN[name])
    assert [family.recognizes(config) for family in families.FAMILIES].count(True) == 1
    assert KNOWN[name].family == family_of(config, name).FAMILY


def test_families_have_names_of_their_own_and_templates_their_tokens() -> None:
    names = [family.FAMILY for family in families.FAMILIES]
    assert len(set(names)) == len(names)
    for family in families.FAMILIES:
        assert {family.CHAT.video_token, family.CHAT.end} <= family.CHAT.special_tokens.keys()
        assert all(token in family.CHAT.template for token in (family.CHAT.video_token, family.CHAT.end))


@pytest.mark.parametrize("config", [{}, {"model_type": "gpt2"}, {"model_type": ["x" * 1000]}])
def test_a_config_of_no_family_is_refused_by_what_it_says(config: dict[str, object]) -> None:
    with pytest.raises(PruneVidError, match=r"^it is a .{1,80} model: this exporter knows ('\w+'(, )?)+$"):
        family_of(config, "it")


def test_a_config_of_two_families_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "FAMILIES", families.FAMILIES * 2)
    with pytest.raises(PruneVidError, match="of the families llava_onevision and llava_onevision"):
        family_of({"model_type": "llava_onevision"}, "it")
