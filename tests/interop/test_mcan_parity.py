"""MCAN computes what its PyTorch reference computes with the same weights, and learns the same from a batch."""

from __future__ import annotations

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvl.interop import mcan as names
from jaxvl.interop.files import flatten
from jaxvl.losses import binary_cross_entropy
from jaxvl.models.mcan import MCAN
from jaxvl.optim import make_optimizer

pytestmark = pytest.mark.torch
SIZES = dict(
    words=31, classes=9, feat_dim=24, width=32, heads=4, mlp=64, depth=2, flat=48, flat_mlp=20, word_dim=12
)
MODEL = MCAN(dropout=0.0, **SIZES)
RNG = np.random.default_rng(0)
TEXT = np.where(np.arange(7) < np.array([7, 4, 1, 5])[:, None], RNG.integers(3, 31, (4, 7)), 0)
REGIONS = RNG.standard_normal((4, 6, 24), np.float32)
REGIONS[1, 4:] = REGIONS[2, 1:] = 0
INPUTS = (REGIONS, np.abs(REGIONS).sum(-1) > 0, TEXT, TEXT != 0)
TARGETS = RNG.choice([0.0, 0.3, 1.0], (4, 9), p=[0.8, 0.1, 0.1]).astype(np.float32)


@pytest.fixture(scope="module")
def reference():
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    import torch_mcan

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch_mcan.MCAN(**SIZES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.double()  # float64: differences are ours


def params_of(model):
    return names.import_mcan({k: v.detach().numpy() for k, v in model.state_dict().items()}).params


def forward(model):
    import torch

    return model(torch.tensor(REGIONS).double(), torch.tensor(TEXT))


def test_logits_and_every_block(reference):
    logits, want = forward(reference)
    with jax.default_matmul_precision("highest"):
        run = jax.jit(lambda p: MODEL.apply({"params": p}, *INPUTS, capture_intermediates=True))
        out, state = run(params_of(reference))
    np.testing.assert_allclose(out.logits, logits.detach(), rtol=0, atol=1e-5)
    inner = state["intermediates"]
    for name, value in want.items():
        part = inner[name]["norm3"] if name.startswith("decoder") else inner[name]  # its last part
        np.testing.assert_allclose(part["__call__"][0], value.detach(), rtol=0, atol=1e-5, err_msg=name)
    mask = INPUTS[1][..., None]
    for tap, layer in zip(
        out.taps, (0, 1, 1), strict=True
    ):  # after a third, two thirds and all of two layers
        mean = (want[f"decoder_{layer}"].detach().numpy() * mask).sum(1) / mask.sum(1)
        np.testing.assert_allclose(tap, mean, rtol=0, atol=1e-5)


def test_gradients_and_one_step_of_adam(reference):
    import torch

    torch_model = copy.deepcopy(reference)
    tx = make_optimizer(schedule=1e-3, weight_decay=0.0, betas=(0.9, 0.98), eps=1e-9)

    @jax.jit
    def step(params):
        def loss(p):
            return binary_cross_entropy(MODEL.apply({"params": p}, *INPUTS).logits, targets=TARGETS).sum()

        grads = jax.grad(loss)(params)
        updates, _ = tx.update(grads, tx.init(params), params)
        return grads, jax.tree.map(jnp.add, params, updates)

    with jax.default_matmul_precision("highest"):
        grads, got = (flatten(tree) for tree in step(params_of(reference)))
    adam = torch.optim.Adam(torch_model.parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-9)
    logits, targets = forward(torch_model)[0], torch.tensor(TARGETS).double()
    torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum").backward()
    adam.step()
    found = {name: p.grad.numpy() for name, p in torch_model.named_parameters()}
    for path, want in flatten(names.import_mcan(found).params).items():
        np.testing.assert_allclose(grads[path], want, rtol=1e-3, atol=1e-5, err_msg=path)
    want = flatten(params_of(torch_model))
    error = [np.abs(got[k] - v) / np.maximum(np.abs(v), 1e-3) for k, v in want.items()]
    assert np.quantile(np.concatenate([e.ravel() for e in error]), 0.95) <= 1e-6


def test_weights_of_the_reference_come_back(reference):
    state = {k: v.detach().float().numpy() for k, v in reference.state_dict().items()}
    whole = names.export_mcan(names.import_mcan(state).params)
    assert set(whole) == set(state)
    assert all(np.array_equal(whole[name], array) for name, array in state.items())
