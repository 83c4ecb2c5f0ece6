"""Weights move between models of other sizes: grids are resized, positions cut, the rest must fit; a decoder starts
from the fusion layers; and the report says so."""

from __future__ import annotations

import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from oracles import draw

from jaxvl.models.hyper_albef import adapt as adapt_model
from jaxvl.models.hyper_albef import decoder_renames
from jaxvl.models.transfer import Report, adapt, lacking
from jaxvl.models.vit import resize_positions


def layer(seed: int, *parts: str) -> dict:
    return {part: {"kernel": draw(2, 2, seed=seed + i)} for i, part in enumerate(parts)}


def trained() -> dict:
    """A pre-trained model in miniature: two fusion layers, one with a hypergraph."""
    parts = ("attention", "cross_attention", "ffn")
    return {
        "text_encoder": {"embeddings": {"position": {"embedding": draw(6, 2)}}},
        "fusion_encoder": {"layers_0": layer(1, *parts), "layers_1": layer(4, *parts, "hypergraph")},
        "mlm_head": {"bias": draw(5)},
        "temp": np.float32(0.05),
    }


def with_decoder(depth: int) -> dict:
    layers = {f"layers_{i}": layer(50 + 3 * i, "attention", "cross_attention", "ffn") for i in range(depth)}
    decoder = {
        "embeddings": {"position": {"embedding": draw(6, 2, seed=9)}},
        "mlm_head": {"bias": draw(5, seed=9)},
    }
    return {**trained(), "temp": np.float32(0.07), "text_decoder": decoder | layers}


def test_equal_trees_are_taken_whole():
    got, report = adapt(trained(), trained())
    np.testing.assert_array_equal(got["mlm_head"]["bias"], trained()["mlm_head"]["bias"])
    assert len(report.taken) == 10 and report.resized == report.fresh == report.unused == ()
    assert str(report) == "10 tensors taken"


def test_grids_are_resized():
    loaded = {"visual_encoder": {"pos_embed": draw(1, 10, 4)}}
    got, report = adapt(loaded, {"visual_encoder": {"pos_embed": draw(1, 17, 4, seed=1)}})
    want = resize_positions(loaded["visual_encoder"]["pos_embed"], grid=4)
    np.testing.assert_array_equal(got["visual_encoder"]["pos_embed"], want)
    assert report.resized == ("visual_encoder/pos_embed",) and report.taken == ()


@pytest.mark.parametrize("length", [4, 9])
def test_text_positions_are_cut_or_completed(length):
    loaded, fresh = draw(6, 2), draw(length, 2, seed=1)
    trees = [{"text_encoder": {"embeddings": {"position": {"embedding": x}}}} for x in (loaded, fresh)]
    got, report = adapt(*trees)
    got = got["text_encoder"]["embeddings"]["position"]["embedding"]
    np.testing.assert_array_equal(got[:6], loaded[:length])
    np.testing.assert_array_equal(got[6:], fresh[6:])
    assert len(report.resized) == 1


@pytest.mark.parametrize("name", ["bridge/token_type", "modality"])
def test_a_second_image_starts_with_the_type_of_the_first(name):
    trees = [unflatten_dict({f"{name}/embedding": draw(rows, 4)}, sep="/") for rows in (2, 3)]
    got, report = adapt(*trees)
    rows = flatten_dict(got, sep="/")[f"{name}/embedding"]
    np.testing.assert_array_equal(rows, draw(2, 4)[[0, 1, 1]])
    assert report.resized == (f"{name}/embedding",)
    with pytest.raises(ValueError, match="loaded shape"):  # elsewhere rows mean something else
        adapt({"text_encoder": trees[0]}, {"text_encoder": trees[1]})


def test_missing_tensors_stay_fresh_and_surplus_is_reported():
    got, report = adapt(
        {"a": {"kernel": draw(2)}, "b": draw(1)}, {"a": {"kernel": draw(2, seed=1), "bias": draw(3)}}
    )
    np.testing.assert_array_equal(got["a"]["bias"], draw(3))
    np.testing.assert_array_equal(got["a"]["kernel"], draw(2))
    assert (report.taken, report.fresh, report.unused) == (("a/kernel",), ("a/bias",), ("b",))
    assert str(report) == "1 tensors taken\n1 fresh: a/bias (1)\n1 unused: b (1)"


@pytest.mark.parametrize(
    ("path", "loaded", "fresh"),
    [("kernel", (2, 3), (2, 4)), ("pos_embed", (1, 5, 3), (1, 5, 4)), ("pos_embed", (1, 6, 3), (1, 10, 3))],
)
def test_other_shapes_are_refused(path, loaded, fresh):
    with pytest.raises(ValueError, match=r"visual_encoder/\w+: loaded|not 1 \+ a square grid"):
        adapt({"visual_encoder": {path: draw(*loaded)}}, {"visual_encoder": {path: draw(*fresh)}})


@pytest.mark.parametrize(
    ("weights", "lost"),
    [
        (
            (),
            [
                "visual_encoder/norm/bias",
                "fusion_encoder/layers_0/cross_attention/key/bias",
                "text_encoder/x",
            ],
        ),
        (("text",), ["text_encoder/x"]),
        (("vision",), ["visual_encoder/norm/bias"]),
        (("vision", "text"), ["visual_encoder/norm/bias", "text_encoder/x"]),
    ],
)
def test_what_a_source_must_not_lack(weights, lost):
    optional = (
        "fusion_encoder/layers_1/hypergraph/theta/kernel",
        "fusion_encoder/layers_1/hg_fusion/gate/bias",
        "visual_encoder/adapter/kernel",
        "mlm_head/bias",
        "temp",
        "text_decoder/layers_0/ffn/up/bias",
    )
    needed = (
        "visual_encoder/norm/bias",
        "fusion_encoder/layers_0/cross_attention/key/bias",
        "text_encoder/x",
    )
    assert list(lacking(Report((), (), optional + needed, ()), weights)) == lost


def test_types_are_those_of_the_model():
    got, _ = adapt({"a": draw(2).astype(np.float16)}, {"a": draw(2)})
    assert got["a"].dtype == np.float32


@pytest.mark.parametrize("stacked", ["loaded", "fresh"])
def test_scanned_models_are_compared_layer_by_layer(stacked):
    single = {"layers_0": {"kernel": draw(2)}, "layers_1": {"kernel": draw(2, seed=1)}}
    stack = {"layers_0_2": {"kernel": np.stack([draw(2), draw(2, seed=1)])}}
    zero = {"layers_0": {"kernel": np.zeros(2)}, "layers_1": {"kernel": np.zeros(2)}}
    if stacked == "loaded":
        got, want = adapt(stack, zero)[0], single
    else:
        got, want = adapt(single, {"layers_0_2": {"kernel": np.zeros((2, 2))}})[0], stack
    np.testing.assert_array_equal(np.stack(list(flat(got))), np.stack(list(flat(want))))


def flat(tree: dict):
    for key in sorted(tree):
        yield from flat(tree[key]) if isinstance(tree[key], dict) else [tree[key]]


def test_a_decoder_starts_from_the_fusion_layers():
    got, report = adapt_model(trained(), with_decoder(depth=2))
    decoder, source = got["text_decoder"], trained()
    for i in (0, 1):
        for part in ("attention", "cross_attention", "ffn"):
            want = source["fusion_encoder"][f"layers_{i}"][part]["kernel"]
            np.testing.assert_array_equal(decoder[f"layers_{i}"][part]["kernel"], want)
    np.testing.assert_array_equal(decoder["mlm_head"]["bias"], source["mlm_head"]["bias"])
    assert report.fresh == report.unused == ()


def test_a_deeper_decoder_keeps_its_last_layers_fresh():
    _, report = adapt_model(trained(), with_decoder(depth=3))
    assert [path.split("/")[1] for path in report.fresh] == ["layers_2"] * 3


def test_a_trained_decoder_is_kept():
    """Even where it is shorter: its missing layer is fresh, not a fusion layer."""
    loaded = with_decoder(depth=1)
    got, report = adapt_model(loaded, with_decoder(depth=2))
    want = loaded["text_decoder"]["layers_0"]["ffn"]["kernel"]
    np.testing.assert_array_equal(got["text_decoder"]["layers_0"]["ffn"]["kernel"], want)
    assert [path.split("/")[1] for path in report.fresh] == ["layers_1"] * 3
    assert ("mlm_head", "text_decoder/mlm_head") in decoder_renames(1)
