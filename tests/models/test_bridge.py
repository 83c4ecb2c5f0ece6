"""Bridges are the formulas that they name; to cross-modal layers image tokens are a set and text padding is nothing."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from oracles import draw, lengths_mask, seeded

from jaxvl.models.bridge import Bridge, BridgeFusion
from jaxvl.models.pair_options import CROSS
from jaxvl.types import Encoded

TEXT, IMAGE, MASK = draw(3, 2, 7, 16), draw(3, 2, 5, 16, seed=1), lengths_mask(7, 7, 4, 1)


class Both(nn.Module):
    """A fusion of two taps from end to end."""

    order: str = "pre"
    kind: str = "add"
    remat: str | None = None

    def setup(self):
        options = {**CROSS, "depth": 2, "heads": 2, "mlp": 32, "order": self.order, "bridge": self.kind}
        self.fusion = BridgeFusion(options, taps=2, width=16, images=2, remat=self.remat)

    def __call__(self, text, mask, image, first=False):
        text = self.fusion.bridge.record("text", tuple(text[:, i] for i in range(2)))
        image = self.fusion.bridge.record("image", tuple(image[:, i] for i in range(2)))
        primed = self.fusion.prime_text(Encoded(text), mask)
        other = self.fusion.prime_image(Encoded(image), image_type=2)
        return self.fusion.join(primed, mask, other, image_index=None, train=False, first=first)


@partial(jax.jit, static_argnums=0, static_argnames=("first",))
def run(module, params, *args, **kwargs):
    with jax.default_matmul_precision("highest"):
        return module.apply({"params": params}, *args, **kwargs)


def norm(x: np.ndarray, p: dict) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / centred.std(-1, keepdims=True) * p["scale"] + p["bias"]


class Next(nn.Module):
    """The input of the second layer from a record and the output of the first."""

    kind: str

    @nn.compact
    def __call__(self, record, z):
        bridge = Bridge(self.kind, taps=2, width=16, images=1, shared=True, eps=1e-12, name="bridge")
        typed = bridge.typed(record, 1)
        return bridge.first("image", typed), bridge.next("image", 1, typed, z)


@pytest.mark.parametrize("kind", ["add", "none", "scaled_add", "interpolate"])
def test_bridges(kind):
    z, module = draw(3, 5, 16, seed=2), Next(kind)
    params = seeded(module, IMAGE, z)
    first, got = module.apply({"params": params}, IMAGE, z)
    p = params["bridge"]
    x = IMAGE + p["token_type"]["embedding"][1]
    s, b = p.get("image_scale_1"), p.get("image_beta_1")
    want = {
        "add": lambda: norm(x[:, 1] + z, p["image_norm_1"]),
        "none": lambda: z,
        "scaled_add": lambda: norm(s * x[:, 1] + z, p["image_norm_1"]),
        "interpolate": lambda: norm((1 - b) * x[:, 1] + b * z, p["image_norm_1"]),
    }[kind]()
    np.testing.assert_allclose(first, norm(x[:, 0], p["image_norm_0"]), atol=1e-5)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_starting_from_the_tap_itself_is_starting_from_nothing():
    """LN(2x) = LN(x): so every reading of the missing output before the first layer is the same model."""
    p, x = {"scale": draw(16), "bias": draw(16, seed=1)}, draw(3, 5, 16)
    np.testing.assert_allclose(norm(x + x, p), norm(x, p), atol=1e-5)
    module = Next("add")
    params = seeded(module, x[:, None], x)
    first, _ = module.apply({"params": params}, np.stack([x, x], 1), x)
    twice, _ = module.apply(
        {"params": params}, np.stack([x, x], 1) * 2 + params["bridge"]["token_type"]["embedding"][1], x
    )
    np.testing.assert_allclose(first, twice, atol=1e-5)


def test_fresh_weights_of_bridges_and_types():
    module = Bridge("interpolate", taps=2, width=16, images=2, shared=True, eps=1e-12)
    for kind, name, value in (("scaled_add", "scale", 1.0), ("interpolate", "beta", 0.5)):
        init = jax.jit(partial(module.clone(kind=kind).init, method="typed"), static_argnums=2)
        params = nn.unbox(init(jax.random.key(0), TEXT, 0))["params"]
        assert params[f"text_{name}_1"] == params[f"image_{name}_1"] == value
        rows = np.asarray(params["token_type"]["embedding"])
        np.testing.assert_array_equal(rows[1], rows[2])  # a second image starts as the first
        assert np.abs(rows[0] - rows[1]).max() > 1e-3


@pytest.mark.parametrize("order", ["pre", "post"])
def test_image_tokens_are_a_set_and_text_padding_is_nothing(order):
    module = Both(order)
    params = seeded(module, TEXT, MASK, IMAGE)
    want = run(module, params, TEXT, MASK, IMAGE)
    moved = np.array([0, 3, 1, 4, 2])
    text = np.where(MASK[:, None, :, None], TEXT, 7.0).astype(np.float32)
    got = run(module, params, text, MASK, IMAGE[:, :, moved])
    np.testing.assert_allclose(got.image, want.image[:, moved], atol=1e-5)
    np.testing.assert_allclose(got.text[MASK], want.text[MASK], atol=1e-5)
    np.testing.assert_allclose(got.pooled, want.pooled, atol=1e-5)
    assert (
        np.abs(
            run(Both({"pre": "post", "post": "pre"}[order]), params, TEXT, MASK, IMAGE).pooled - want.pooled
        ).max()
        > 0.1
    )


@pytest.mark.slow
def test_rematerialised_layers_have_the_same_gradients(order="post"):
    params = seeded(Both(order), TEXT, MASK, IMAGE)

    def grad(remat):
        out = lambda p: jax.tree.leaves(run(Both(order, remat=remat), p, TEXT, MASK, IMAGE))  # noqa: E731
        return jax.jit(jax.grad(lambda p: sum(jnp.sin(x).sum() for x in out(p)))).lower(params)

    kept, recomputed = grad(None), grad("full")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4),
        recomputed.compile()(params),
        kept.compile()(params),
    )
    products = [x.as_text().count("dot_general") for x in (kept, recomputed)]
    assert products[1] - products[0] > 2 * 14  # those of one layer: the first one's are recomputed too


def test_a_type_that_the_model_lacks_is_refused():
    fusion = BridgeFusion({**CROSS, "heads": 2, "mlp": 32}, taps=2, width=16, images=1)
    with pytest.raises(ValueError, match=r"image_type=2: a model of images=1 has types 1\.\.1"):
        fusion.init(jax.random.key(0), Encoded(IMAGE), image_type=2, method="prime_image")
