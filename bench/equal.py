"""Are the two sides of `train_step.py` the same training? Same weights and inputs, dropout 0: compare what comes out.

The peer's weights go to jaxvl through `jaxvl.interop`. The batch has two pairs, so that each hard negative can only
be the other pair, and the peer masks the words that jaxvl masked. Two updates are compared: the second loss depends
on the gradient, the optimiser, the momentum update and the queue of the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jaxvl_albef
import numpy as np
import torch
import torch_albef
from torch import Tensor

from jaxvl import losses
from jaxvl.interop import import_albef, import_vit

TEXT = (("text.", ""), ("fusion.layer.", "encoder.layer."))
HEADS = (
    ("mlm.predictions.", "text_encoder.cls.predictions."),
    ("itm.", "itm_head."),
    ("vision_proj.", "vision_proj."),
    ("text_proj.", "text_proj."),
    ("temp", "temp"),
)


def params_of(model: torch_albef.Albef) -> dict[str, Any]:
    """The peer's weights in jaxvl's names: its ViT is Hugging Face's, the rest is renamed as ALBEF's files do."""
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    vision = {k.removeprefix("vision."): x for k, x in state.items() if k.startswith("vision.")}
    depth, renamed = len(model.text.encoder.layer), {}
    for name, array in state.items():
        if name.startswith("fusion.layer."):
            number, rest = name.removeprefix("fusion.layer.").split(".", 1)
            renamed[f"text_encoder.bert.encoder.layer.{depth + int(number)}.{rest}"] = array
        elif name.startswith("text."):
            renamed["text_encoder.bert." + name.removeprefix("text.")] = array
        for old, new in HEADS:
            if name.startswith(old):
                renamed[new + name.removeprefix(old)] = array
    rest = import_albef(renamed, text_layers=depth, strict=False)
    return {**rest.params, **import_vit(vision).params}


def tensors_of(batch: Mapping[str, np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
    """`(image [B,3,H,W], ids [B,L], mask [B,L])` for the peer."""
    image = torch.from_numpy(np.ascontiguousarray(batch["image"].transpose(0, 3, 1, 2)))
    return image, torch.from_numpy(batch["text"]).long(), torch.from_numpy(batch["text_mask"])


def masking(batch: Mapping[str, np.ndarray], step: jaxvl_albef.Step, *, number: int) -> torch_albef.Corrupted:
    """What jaxvl masks in update `number`, for the peer."""
    key = jax.random.split(jax.random.fold_in(step.key, number), 6)[0]
    tokens, ids = jaxvl_albef.TOKENS, batch["text"]
    maskable = batch["text_mask"] & (ids != tokens["cls"])
    ours = losses.mask_bernoulli(
        key, ids=ids, maskable=maskable, mask_id=tokens["mask"], size=tokens["size"], prob=0.15
    )
    labels = np.where(np.asarray(ours.selected), ids, -100)
    return torch_albef.Corrupted(torch.from_numpy(np.array(ours.ids)).long(), torch.from_numpy(labels).long())


def compare(sizes: Mapping[str, int], *, queue: int) -> dict[str, tuple[float, float]]:
    """`{what: (PyTorch, jaxvl)}` of the bare states, and the losses and gradient norms of two updates.

    Args:
      sizes: depths and image size.
      queue: size of the queues.
    """
    batch = jaxvl_albef.example(2, image_size=sizes["image_size"])
    image, ids, mask = tensors_of(batch)
    torch.manual_seed(0)
    peer = torch_albef.Albef(**sizes, dropout=0.0)
    params = params_of(peer)
    model = jaxvl_albef.build(sizes, dropout=0.0)
    bare = jaxvl_albef.Bare(model, params, batch, train=True)
    (_, ours), _ = bare()
    with torch.no_grad():
        theirs = peer.fuse(peer.encode_text(ids, mask), mask, peer.encode_image(image)).numpy()
    worst = np.unravel_index(np.abs(theirs - ours)[mask.numpy()].argmax(), theirs[mask.numpy()].shape)
    found = {
        "bare: the state that differs most": (
            float(theirs[mask.numpy()][worst]),
            float(np.asarray(ours)[mask.numpy()][worst]),
        )
    }
    del bare
    step = jaxvl_albef.Step(model, batch, queue=queue, load=lambda fresh: params)
    pretrain = torch_albef.PretrainStep(peer, queue=queue)
    pretrain.queue_image = torch.from_numpy(np.array(step.state.extra["queue"]["image"]))
    pretrain.queue_text = torch.from_numpy(np.array(step.state.extra["queue"]["text"]))
    for number in range(2):
        theirs = pretrain(image, ids, mask, masking(batch, step, number=number))
        ours = step()
        found |= {f"update {number + 1}: {name}": (value, ours[name]) for name, value in theirs.items()}
    return found
