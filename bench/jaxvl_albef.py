"""jaxvl's side of `train_step.py`: the programs that are timed, compiled ahead of time so that their cost is known.

`Step` is `jaxvl.train.train_step`, which `Trainer` runs in training too, on one device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvl.models.hyper_albef import HyperALBEF
from jaxvl.optim import make_optimizer
from jaxvl.sharding import Partition
from jaxvl.tasks.pretrain import PretrainTask
from jaxvl.train import Trainer, train_step

TOKENS = dict(pad=0, cls=101, sep=102, mask=103, size=30522)
ENCODERS = ("visual_encoder", "text_encoder", "fusion_encoder")
PyTree = Any


def build(
    sizes: Mapping[str, int], *, dropout: float, hypergraph: Mapping[str, Any] | None = None
) -> HyperALBEF:
    """The model at paper width; `sizes` has vision_depth, text_depth, fusion_depth, image_size."""
    return HyperALBEF(
        text_depth=sizes["text_depth"],
        fusion_depth=sizes["fusion_depth"],
        vision=dict(depth=sizes["vision_depth"]),
        image_size=sizes["image_size"],
        dropout=dropout,
        attn_dropout=dropout,
        hypergraph=hypergraph,
    )


def example(batch: int, *, image_size: int, length: int = 25, seed: int = 0) -> dict[str, np.ndarray]:
    """Random pairs: NHWC pixels, ids that start with [CLS], and texts of 10 to `length` tokens."""
    rng = np.random.default_rng(seed)
    text = rng.integers(1000, TOKENS["size"], (batch, length), dtype=np.int32)
    text[:, 0] = TOKENS["cls"]
    mask = np.arange(length) < rng.integers(10, length + 1, (batch, 1))
    image = rng.standard_normal((batch, image_size, image_size, 3), dtype=np.float32)
    return {"image": image, "text": np.where(mask, text, TOKENS["pad"]), "text_mask": mask}


class Step:
    """The whole pre-training step; each call is one update.

    Args:
      model: from `build`.
      batch: from `example`.
      queue: size of the queues.
      load: maps fresh parameters to those to start from; None keeps them.
      decay, alpha, lr: as the peer's.
    """

    def __init__(
        self,
        model: HyperALBEF,
        batch: Mapping[str, np.ndarray],
        *,
        queue: int,
        load: Callable[[PyTree], PyTree] | None = None,
        decay: float = 0.995,
        alpha: float = 0.4,
        lr: float = 1e-4,
    ):
        momentum, distill = dict(decay=decay), dict(alpha=alpha)
        task = PretrainTask(model, tokens=TOKENS, queue_size=queue, momentum=momentum, distill=distill)
        tx = make_optimizer(schedule=lr)
        self.partition = Partition.create(rules="dp", devices=jax.devices()[:1])
        self.key = jax.random.key(0)
        self.state = Trainer(task, tx, partition=self.partition).init(batch, load=load)
        rows = {**batch, "signals": np.zeros((len(batch["text"]), 2), np.int32)}
        self.batch = self.partition.place_batch(rows)
        step = functools.partial(train_step, task=task, tx=tx, accumulate=1)
        with self.partition.context():
            lowered = jax.jit(step, donate_argnums=0).lower(self.state, self.batch, self.key)
            self.compiled = lowered.compile()

    def __call__(self) -> dict[str, float]:
        """One update; the metrics as means."""
        self.state, metrics, _ = jax.block_until_ready(self.compiled(self.state, self.batch, self.key))
        return {name: float(total) / float(weight) for name, (total, weight) in metrics.items()}


class Bare:
    """Loss and gradient of the peer's `bare_loss`."""

    def __init__(self, model: HyperALBEF, params: PyTree, batch: Mapping[str, np.ndarray], *, train: bool):
        self.params = {name: params[name] for name in ENCODERS}
        self.batch = jax.tree.map(jnp.asarray, dict(batch))
        self.key = jax.random.key(0)

        def loss(params: PyTree, batch: PyTree, key: Any) -> Any:
            def call(method: str, *args: Any, salt: int) -> Any:
                rngs = {"dropout": jax.random.fold_in(key, salt)}
                return model.apply({"params": params}, *args, method=method, train=train, rngs=rngs)

            image = call("encode_image", batch["image"], salt=0)
            text = call("encode_text", batch["text"], batch["text_mask"], salt=1)
            fused = call("fuse", text, batch["text_mask"], image, salt=2)
            return jnp.square(fused).mean(), fused

        program = jax.jit(jax.value_and_grad(loss, has_aux=True))
        self.compiled = program.lower(self.params, self.batch, self.key).compile()

    def __call__(self) -> tuple[Any, PyTree]:
        """`((loss, fused states [B,L,D]), gradients)`."""
        return jax.block_until_ready(self.compiled(self.params, self.batch, self.key))


def flops(program: Step | Bare) -> float:
    """What XLA's cost analysis counts in the compiled program; element-wise operations included."""
    return float(program.compiled.cost_analysis()["flops"])
