"""The peer of `train_step.py`: ALBEF's pre-training step in PyTorch, assembled from transformers' BERT and ViT.

It does what salesforce/ALBEF's step does, in its order: momentum update, one ViT pass each for student and
momentum copy, ITC against a queue, one fusion pass for the positives and one for both negatives, the masked
text through text encoder and fusion encoder (student and momentum), vocabulary logits at every position,
fused AdamW. Attention is PyTorch's scaled-dot-product kernel, the fastest of transformers' choices on a CPU.
Nothing is left out, and nothing is there that ALBEF does not do. Like ALBEF's, the step is eager.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel, ViTConfig, ViTModel
from transformers.models.bert.modeling_bert import BertEncoder, BertOnlyMLMHead

CLS, MASK = 101, 103


class Albef(nn.Module):
    """ViT, text encoder, fusion encoder and heads at BERT-base width.

    Args:
      vision_depth: layers of the ViT.
      text_depth: layers of the text encoder.
      fusion_depth: layers with cross attention.
      image_size: pixels of the square image.
      dropout: of the text side, hidden states and attention alike.
    """

    def __init__(
        self, *, vision_depth: int, text_depth: int, fusion_depth: int, image_size: int, dropout: float
    ):
        super().__init__()
        attention: dict[str, Any] = dict(attn_implementation="sdpa")
        bert = dict(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **attention)
        vit = ViTConfig(
            num_hidden_layers=vision_depth, image_size=image_size, layer_norm_eps=1e-6, **attention
        )
        self.vision = ViTModel(vit, add_pooling_layer=False)
        self.text = BertModel(BertConfig(num_hidden_layers=text_depth, **bert), add_pooling_layer=False)
        fusion = BertConfig(num_hidden_layers=fusion_depth, is_decoder=True, add_cross_attention=True, **bert)
        self.fusion = BertEncoder(fusion)
        self.mlm = BertOnlyMLMHead(fusion)
        self.mlm.predictions.decoder.weight = self.text.embeddings.word_embeddings.weight
        self.mlm.predictions.decoder.bias = self.mlm.predictions.bias
        self.vision_proj, self.text_proj = nn.Linear(768, 256), nn.Linear(768, 256)
        self.itm = nn.Linear(768, 2)
        self.temp = nn.Parameter(torch.tensor(0.07))

    def encode_image(self, image: Tensor) -> Tensor:
        """`[B,3,H,W] -> [B,P,768]`."""
        return self.vision(image).last_hidden_state

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """`[B,L] -> [B,L,768]`."""
        return self.text(ids, attention_mask=mask).last_hidden_state

    def fuse(self, states: Tensor, mask: Tensor, image: Tensor) -> Tensor:
        """Texts `[B,L,768]` look at images `[B,P,768]`."""
        rows, length = mask.shape
        additive = torch.zeros(rows, 1, length, length)  # 4-D, as a 2-D mask would be made causal
        additive = additive.masked_fill(~mask[:, None, None, :], torch.finfo(torch.float32).min)
        return self.fusion(states, attention_mask=additive, encoder_hidden_states=image).last_hidden_state


def bare_loss(model: Albef, image: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Mean square of one pass through the three encoders, for forward and backward of the bare model."""
    states = model.fuse(model.encode_text(ids, mask), mask, model.encode_image(image))
    return states.square().mean()


class Corrupted(NamedTuple):
    """Ids after masking, and labels with -100 where nothing is predicted; both `[B,L]`."""

    ids: Tensor
    labels: Tensor


def corrupt(ids: Tensor, mask: Tensor, *, prob: float, vocab: int) -> Corrupted:
    """BERT's masking of 80 % [MASK], 10 % another word, 10 % unchanged."""
    chosen = (torch.rand(ids.shape) < prob) & mask & (ids != CLS)
    labels = ids.masked_fill(~chosen, -100)
    dice = torch.rand(ids.shape)
    out = torch.where(chosen & (dice < 0.8), torch.full_like(ids, MASK), ids)
    return Corrupted(torch.where(chosen & (dice >= 0.9), torch.randint_like(ids, vocab), out), labels)


class PretrainStep:
    """The whole step; `step(image, ids, mask)` updates the model and returns the losses.

    Args:
      model: the student; its momentum copy is made here.
      queue: number of momentum features kept as negatives; a multiple of the batch.
      lr: learning rate.
      alpha: weight of the momentum copy's soft targets.
      decay: of the momentum copy.
    """

    def __init__(
        self, model: Albef, *, queue: int, lr: float = 1e-4, alpha: float = 0.4, decay: float = 0.995
    ):
        self.model, self.teacher = model, copy.deepcopy(model)
        self.queue_image = F.normalize(torch.randn(256, queue), dim=0)
        self.queue_text = F.normalize(torch.randn(256, queue), dim=0)
        self.ptr, self.alpha, self.decay = 0, alpha, decay
        groups: dict[bool, list[Tensor]] = {True: [], False: []}
        for name, p in model.named_parameters():
            groups[not name.endswith("bias") and "orm" not in name].append(p)
        self.optimizer = torch.optim.AdamW(
            [dict(params=groups[True], weight_decay=0.02), dict(params=groups[False], weight_decay=0.0)],
            lr=lr,
            fused=True,
        )

    def __call__(
        self, image: Tensor, ids: Tensor, mask: Tensor, corrupted: Corrupted | None = None
    ) -> dict[str, float]:
        """One update; `corrupted` replaces the random masking."""
        losses = self.losses(image, ids, mask, corrupted)
        total = losses["itc"] + losses["itm"] + losses["mlm"]
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss": total.item()} | {name: loss.item() for name, loss in losses.items()}

    def losses(
        self, image: Tensor, ids: Tensor, mask: Tensor, corrupted: Corrupted | None = None
    ) -> dict[str, Tensor]:
        """Everything before the backward pass, momentum update and queue write included."""
        m = self.model
        with torch.no_grad():
            m.temp.clamp_(0.001, 0.5)
        self.update_teacher()
        v, t = m.encode_image(image), m.encode_text(ids, mask)
        g_v = F.normalize(m.vision_proj(v[:, 0]), dim=-1)
        g_t = F.normalize(m.text_proj(t[:, 0]), dim=-1)
        itc, sims, v_m = self.contrast(image, ids, mask, g_v, g_t)
        itm = self.match(v, t, mask, *sims)
        corrupted = corrupted or corrupt(ids, mask, prob=0.15, vocab=m.text.config.vocab_size)
        return {"itc": itc, "itm": itm, "mlm": self.mask_model(corrupted, mask, v, v_m)}

    @torch.no_grad()
    def update_teacher(self) -> None:
        """`teacher = decay teacher + (1 - decay) student`."""
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.model.parameters()), 1 - self.decay)

    def contrast(self, image: Tensor, ids: Tensor, mask: Tensor, g_v: Tensor, g_t: Tensor) -> Any:
        """ITC with momentum features, queue and soft targets; writes the queue."""
        m, k, b = self.model, self.teacher, len(ids)
        with torch.no_grad():
            v_m, t_m = k.encode_image(image), k.encode_text(ids, mask)
            h_v = F.normalize(k.vision_proj(v_m[:, 0]), dim=-1)
            h_t = F.normalize(k.text_proj(t_m[:, 0]), dim=-1)
            all_v = torch.cat([h_v.T, self.queue_image], 1)
            all_t = torch.cat([h_t.T, self.queue_text], 1)
            own = torch.eye(b, all_v.shape[1])
            soft_v = self.alpha * F.softmax(h_v @ all_t / m.temp, 1) + (1 - self.alpha) * own
            soft_t = self.alpha * F.softmax(h_t @ all_v / m.temp, 1) + (1 - self.alpha) * own
        s_v, s_t = g_v @ all_t / m.temp, g_t @ all_v / m.temp
        loss = (
            -((F.log_softmax(s_v, 1) * soft_v).sum(1).mean() + (F.log_softmax(s_t, 1) * soft_t).sum(1).mean())
            / 2
        )
        self.queue_image[:, self.ptr : self.ptr + b] = h_v.T
        self.queue_text[:, self.ptr : self.ptr + b] = h_t.T
        self.ptr = (self.ptr + b) % self.queue_image.shape[1]
        return loss, (s_v[:, :b].detach(), s_t[:, :b].detach()), v_m

    def match(self, v: Tensor, t: Tensor, mask: Tensor, s_v: Tensor, s_t: Tensor) -> Tensor:
        """ITM on the positives and one hard negative for each image and each text."""
        m, b = self.model, len(t)
        own = torch.eye(b, dtype=torch.bool)
        text_of = torch.multinomial(F.softmax(s_v.masked_fill(own, -1e9), 1), 1)[:, 0]
        image_of = torch.multinomial(F.softmax(s_t.masked_fill(own, -1e9), 1), 1)[:, 0]
        positive = m.fuse(t, mask, v)
        texts, masks = torch.cat([t, t[text_of]]), torch.cat([mask, mask[text_of]])
        negative = m.fuse(texts, masks, torch.cat([v[image_of], v]))
        logits = m.itm(torch.cat([positive[:, 0], negative[:, 0]]))
        return F.cross_entropy(logits, torch.cat([torch.ones(b), torch.zeros(2 * b)]).long())

    def mask_model(self, corrupted: Corrupted, mask: Tensor, v: Tensor, v_m: Tensor) -> Tensor:
        """MLM with distillation from the momentum copy."""
        m, k, labels = self.model, self.teacher, corrupted.labels
        with torch.no_grad():
            soft = F.softmax(k.mlm(k.fuse(k.encode_text(corrupted.ids, mask), mask, v_m)), -1)
        logits = m.mlm(m.fuse(m.encode_text(corrupted.ids, mask), mask, v))
        count = (labels >= 0).sum().clamp(min=1)
        hard = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / count
        distilled = -(F.log_softmax(logits, -1) * soft).sum(-1)[labels >= 0].sum() / count
        return (1 - self.alpha) * hard + self.alpha * distilled
