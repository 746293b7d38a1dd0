"""A partner is equal on the axis asked for as far as its widths allow, and in nothing else by chance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from octavo.cli import app
from octavo.configuration import parse_section, read_yaml
from octavo.errors import OctavoError
from octavo.forecast.matching import MATCHED_QUANTITIES, MatchedQuantity, Rules, match, quantity, shapes, write_partner
from octavo.models.architecture import Architecture
from octavo.models.catalogue import read_architecture, with_vocabulary


@pytest.mark.parametrize("axis", MATCHED_QUANTITIES)
@pytest.mark.parametrize("name", ["llama-3.1-8b", "deepseekmoe-16b"])
def test_no_other_width_is_nearer(name: str, axis: MatchedQuantity) -> None:
    model = read_architecture(name)
    pair = match(model, axis, Rules(multiple=64, experts=16, top_k=4, shared=1, tolerance=0.1), 4096)
    partner = pair.partner
    assert (partner.experts is None) == (model.experts is not None)
    width = partner.feed_forward_size or (partner.experts and partner.experts.size) or 0
    assert width % 64 == 0
    off = abs(quantity(partner, axis, 4096) - quantity(model, axis, 4096))
    for other in (width - 64, width + 64):
        if other:
            if partner.experts is None:
                near = partner.model_copy(update={"feed_forward_size": other})
            else:
                experts = partner.experts.model_copy(update={"size": other, "shared_size": other})
                near = partner.model_copy(update={"experts": experts})
            assert abs(quantity(near, axis, 4096) - quantity(model, axis, 4096)) >= off


def test_active_parameters_by_hand() -> None:
    """Six of 64 experts and two shared ones of 512 are a dense width of 4,096; what is left is 24 routers of 64."""
    model = with_vocabulary(read_architecture("node-dense"))
    pair = match(model, "active_parameters", Rules(multiple=64, experts=64, top_k=6, shared=2), 4096)
    assert pair.partner.experts is not None
    assert (pair.partner.experts.size, pair.partner.experts.shared_size) == (512, 1024)
    assert pair.found - pair.wanted == 24 * 2048 * 64
    assert pair.mismatch == pytest.approx(24 * 2048 * 64 / pair.wanted)


def test_a_deeper_partner_is_narrower() -> None:
    model = read_architecture("deepseek-v2-lite")
    same, deeper = (match(model, "active_parameters", Rules(64, layers=layers), 4096).partner for layers in (None, 40))
    assert (same.layers, deeper.layers) == (27, 40)
    assert (deeper.feed_forward_size or 0) < (same.feed_forward_size or 0)


def test_what_is_not_asked_for_is_searched_from_the_usual_on() -> None:
    """In active parameters the usual shape of 24 layers, 64 experts, 6 per token will do. In total parameters, with
    widths of at least 512, it is four times too large; 8 experts in 21 layers are within 2 %."""
    model = with_vocabulary(read_architecture("node-dense"))
    usual = match(model, "active_parameters", Rules(multiple=64), 4096).partner
    assert usual.experts is not None
    assert (usual.layers, usual.experts.count, usual.experts.top_k) == (24, 64, 6)
    with pytest.raises(OctavoError, match=r"no partner .* within 2\.0% in total_parameters; the nearest is \+"):
        match(model, "total_parameters", Rules(multiple=512, experts=64, top_k=6, layers=24), 4096)
    found = match(model, "total_parameters", Rules(multiple=512), 4096)
    assert abs(found.mismatch) <= 0.02
    assert found.partner.experts is not None
    assert (found.partner.layers, found.partner.experts.count) == (21, 8)


def test_what_is_asked_for_is_kept() -> None:
    model = with_vocabulary(read_architecture("node-dense"))
    rules = Rules(multiple=64, experts=32, top_k=4, leading_dense_layers=1, layers=26)
    partner = match(model, "active_parameters", rules, 4096).partner
    assert partner.experts is not None
    assert (partner.layers, partner.experts.leading_dense_layers) == (26, 1)
    assert (partner.experts.count, partner.experts.top_k) == (32, 4)
    assert partner.feed_forward_size == model.feed_forward_size  # of the leading dense layer


def test_the_depth_is_searched_last() -> None:
    """24 layers first, then 23 and 25, 22 and 26, 21 and 27: within an eighth."""
    own = shapes(read_architecture("node-dense"), Rules(multiple=64))
    depths = list(dict.fromkeys(shape.layers for shape in own))
    assert depths == [24, 23, 25, 22, 26, 21, 27]


def test_a_partner_that_cannot_be() -> None:
    """The nearest that was found is in the message."""
    with pytest.raises(OctavoError, match=r"no partner of llama-3\.1-8b.*the nearest is .*4096 experts of 64"):
        match(read_architecture("llama-3.1-8b"), "total_parameters", Rules(64, experts=4096, top_k=1), 4096)


def test_the_file_reads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = match(read_architecture("deepseek-v2-lite"), "flops_per_token", Rules(multiple=64), 4096)
    monkeypatch.setenv("OCTAVO_ROOT", str(tmp_path))
    (tmp_path / "configs/models").mkdir(parents=True)
    path = write_partner(pair, "partner")
    again = parse_section({"name": "partner", **read_yaml(path)}, Architecture, path)
    assert again.model_copy(update={"name": pair.partner.name}) == pair.partner
    with pytest.raises(OctavoError, match="there already"):
        write_partner(pair, "partner")


@pytest.mark.parametrize("name", ["../partner", "/tmp/partner", "", ".hidden", "a/b"])
def test_a_name_is_no_path(name: str) -> None:
    pair = match(read_architecture("deepseek-v2-lite"), "active_parameters", Rules(multiple=64), 4096)
    with pytest.raises(OctavoError, match="no name of a model"):
        write_partner(pair, name)


def test_the_verb() -> None:
    arguments = ["match", "node-dense", "--by", "active_parameters"]
    record = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert record["partner"]["vocabulary_size"] is None  # the tokenizer's, as in the model
    assert record["quantities"]["active_parameters"]["partner"] > record["quantities"]["active_parameters"]["model"]
    text = CliRunner().invoke(app, arguments).stdout
    assert "residual mismatch in active_parameters: +0.311%" in text
    refused = CliRunner().invoke(app, ["match", "node-dense", "--by", "luck"]).exception
    assert isinstance(refused, OctavoError)
