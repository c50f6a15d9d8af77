from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from dse import catalogue
from dse.errors import NameUnknown, UserError, unknown


@pytest.fixture
def plugins(monkeypatch):
    """Announce made-up plug-ins beside the built-in ones."""
    real = catalogue.entry_points

    def install(**points):
        def entry_points(group):
            made = [EntryPoint(name, value, group) for name, value in points.items()]
            return [*real(group=group), *(made if group == catalogue.GROUPS["cost model"] else [])]

        monkeypatch.setattr(catalogue, "entry_points", entry_points)
        catalogue.listing.cache_clear()

    yield install
    catalogue.listing.cache_clear()


def test_hints_are_one_line():
    told = unknown("model", "llava-1.5-7", ["llava-1.5-7b"], "'dse models' lists all")
    assert told.hint == "did you mean 'llava-1.5-7b'? 'dse models' lists all"


def test_built_ins_are_found_by_name():
    assert set(catalogue.listing("cost model")) == {
        "analytical",
        "measured",
        "policy",
        "prior",
        "queueing",
        "serving",
        "simulated",
        "surrogate",
    }
    assert catalogue.cost_model("analytical").group == "hardware"
    assert catalogue.exporter("design").help
    assert {e.distribution for e in catalogue.listing("proposer").values()} == {"mfm-dse"}


def test_an_unknown_name_says_what_was_meant():
    with pytest.raises(NameUnknown) as error:
        catalogue.cost_model("analytcal")
    assert "did you mean 'analytical'?" in error.value.hint


def test_a_broken_plug_in_harms_no_other(plugins):
    plugins(broken="nowhere_to_be_found:MODELS")
    assert catalogue.cost_model("analytical").name == "analytical"
    with pytest.raises(UserError, match=r"broken.*cannot be loaded: nowhere_to_be_found:MODELS: ModuleNotFoundError"):
        catalogue.cost_model("broken")


def test_a_plug_in_whose_target_is_gone(plugins, monkeypatch):
    import costmodels

    monkeypatch.setitem(costmodels.COST_MODELS, "gone", "costmodels.nowhere:Gone")
    plugins()
    with pytest.raises(UserError, match="cannot be loaded"):
        catalogue.cost_model("gone")


def test_two_announcements_of_one_name_are_refused(plugins):
    plugins(analytical="costmodels.prior:Prior")
    with pytest.raises(UserError, match="announced by"):
        catalogue.listing("cost model")


def test_a_single_object_may_be_announced(plugins):
    plugins(other="costmodels.prior:Prior")
    assert catalogue.cost_model("other").group == "quality"
