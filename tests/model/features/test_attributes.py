"""The attributes that a bundle reads: their features, their network and their place in the manifest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model.attribute_net import AttributeNet
from model.bundle import _attribute_json, _attribute_of
from model.engagement.attributes import attributes_of, is_value
from model.engagement.video import Video
from model.features.attributes import BOOLEANS, Attribute
from model.features.schema import Schema

ATTRIBUTES = (
    Attribute("hd", "boolean", BOOLEANS),
    Attribute("posts", "number", quantiles=(0.0, 10.0, 1000.0)),
    Attribute("regions", "list", ("AT", "DE"), separator="|"),
    Attribute("tongue", "category", ("de", "en", "en-US")),
)
SCHEMA = Schema(("view",), "views", 1, 1, attributes=ATTRIBUTES)
# Columns: two numbers (posts, length of regions), two masks, then the bags with a column for "unknown" first.
NUMBERS, MASKS, HD, REGIONS, TONGUE = slice(0, 2), slice(2, 4), slice(4, 7), slice(7, 10), slice(10, 14)


def features(**values: object) -> np.ndarray:
    return SCHEMA.attribute_features([Video("v", 0, attributes=attributes_of(values))])[0]


def test_every_kind_has_its_columns() -> None:
    row = features(hd=True, posts=505.0, regions=["DE", "AT", "XX"], tongue="en")
    assert row[NUMBERS].tolist() == pytest.approx([0.75, 2 / 8])
    assert row[MASKS].tolist() == [1, 1]
    assert row[HD].tolist() == [0, 0, 1]
    assert row[REGIONS].tolist() == [0, 0.5, 0.5]
    assert row[TONGUE].tolist() == [0, 0, 1, 0]


def test_what_is_missing_unknown_or_of_another_kind_is_masked() -> None:
    nothing = features()
    assert nothing[NUMBERS].tolist() == nothing[MASKS].tolist() == [0, 0]
    assert [nothing[bag].tolist() for bag in (HD, REGIONS, TONGUE)] == [[1, 0, 0], [1, 0, 0], [1, 0, 0, 0]]
    wrong = features(hd="yes", posts="many", regions=7.0, tongue=False, other="x")
    assert wrong.tolist() == nothing.tolist()
    assert features(tongue="fr")[TONGUE].tolist() == [1, 0, 0, 0]
    known_to_be_none = features(regions=[])
    assert known_to_be_none[REGIONS].tolist() == [1, 0, 0] and known_to_be_none[MASKS].tolist() == [0, 1]


def test_other_ways_to_write_a_value() -> None:
    assert features(regions="DE| AT |").tolist() == features(regions=["DE", "AT"]).tolist()
    assert features(tongue="de-CH").tolist() == features(tongue="de").tolist()
    assert features(posts=3).tolist() == features(posts=3.0).tolist()


def test_numbers_outside_the_training_range_stay_at_its_ends() -> None:
    assert [features(posts=x)[0] for x in (-5.0, 0.0, 1000.0, 1e15)] == [0, 0, 1, 1]


def test_limits_of_values() -> None:
    assert all(map(is_value, (True, 3, -1e15, "x" * 1024, [], ["x" * 256] * 512)))
    wrong = (float("nan"), float("inf"), 10**400, "x" * 1025, ["x"] * 513, ["x" * 257], [1], {"a": 1}, None)
    assert not any(map(is_value, wrong))


def test_the_manifest_keeps_every_attribute(tmp_path: Path) -> None:
    text = json.dumps([_attribute_json(attribute) for attribute in ATTRIBUTES])
    assert tuple(map(_attribute_of, json.loads(text))) == ATTRIBUTES
    with pytest.raises(ValueError, match="kind 'vector'"):
        _attribute_of({"name": "a", "kind": "vector"})


def test_the_mask_is_learned_although_no_value_is_missing() -> None:
    torch.manual_seed(0)
    net = AttributeNet(SCHEMA.attribute_layout)
    given = features(hd=True, posts=5.0, regions=["DE"], tongue="de")
    batch = torch.from_numpy(np.repeat(given[None], 200, axis=0))
    encoded = net(batch)
    assert encoded.shape == (200, net.dim)
    encoded.sum().backward()
    assert net.values.grad is not None
    unknown = [net.values.grad[bag.start].abs().sum() for bag in (HD, REGIONS, TONGUE)]
    assert min(unknown) > 0
    net.eval()
    assert torch.equal(net(batch)[0], net(batch[:1])[0])
    assert not torch.equal(net(batch[:1])[0], net(torch.from_numpy(features()[None]))[0])
