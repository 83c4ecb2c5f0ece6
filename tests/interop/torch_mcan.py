"""MCAN in PyTorch, written from its description for comparison, with the parameter names of openvqa's files.

Import only where PyTorch is installed. Sizes are arguments; dropout is left out. `taps` collects what passes by.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Holder(nn.Module):
    """Named parts, nested by dots: `Holder({"fc.linear": layer})` owns `fc.linear.weight`."""

    def __init__(self, parts: dict[str, nn.Module]):
        super().__init__()
        for path, part in parts.items():
            first, _, rest = path.partition(".")
            self.add_module(first, Holder({rest: part}) if rest else part)


class Norm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.a_2, self.b_2 = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return self.a_2 * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + self.b_2


class MHAtt(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        for name in ("v", "k", "q", "merge"):
            self.add_module(f"linear_{name}", nn.Linear(width, width))

    def forward(self, v, k, q, hidden):
        v, k, q = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.linear_v, v), (self.linear_k, k), (self.linear_q, q))
        )
        scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(hidden[:, None, None], -1e9)
        return self.linear_merge((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class MLP(Holder):
    def __init__(self, width: int, hidden: int, out: int):
        super().__init__({"fc.linear": nn.Linear(width, hidden), "linear": nn.Linear(hidden, out)})

    def forward(self, x):
        return self.linear(F.relu(self.fc.linear(x)))


class Layer(nn.Module):
    """SA with one attention, SGA with two."""

    def __init__(self, width: int, heads: int, mlp: int, guided: bool):
        super().__init__()
        self.guided = guided
        for name in ("mhatt1", "mhatt2") if guided else ("mhatt",):
            self.add_module(name, MHAtt(width, heads))
        self.ffn = Holder({"mlp": MLP(width, mlp, width)})
        for k in range(3 if guided else 2):
            self.add_module(f"norm{k + 1}", Norm(width))

    def forward(self, x, hidden, y=None, y_hidden=None):
        if not self.guided:
            x = self.norm1(x + self.mhatt(x, x, x, hidden))
            return self.norm2(x + self.ffn.mlp(x))
        x = self.norm1(x + self.mhatt1(x, x, x, hidden))
        x = self.norm2(x + self.mhatt2(y, y, x, y_hidden))
        return self.norm3(x + self.ffn.mlp(x))


class AttFlat(nn.Module):
    def __init__(self, width: int, hidden: int, out: int):
        super().__init__()
        self.mlp, self.linear_merge = MLP(width, hidden, 1), nn.Linear(width, out)

    def forward(self, x, hidden):
        weights = self.mlp(x).squeeze(-1).masked_fill(hidden, -1e9).softmax(-1)
        return self.linear_merge((weights[..., None] * x).sum(1))


class MCAN(nn.Module):
    def __init__(self, *, words, classes, feat_dim, width, heads, mlp, depth, flat, flat_mlp, word_dim):
        super().__init__()
        self.embedding = nn.Embedding(words, word_dim)
        self.lstm = nn.LSTM(word_dim, width, batch_first=True)
        self.adapter = Holder({"frcn_linear": nn.Linear(feat_dim, width)})
        layers = {
            f"{part}_list": nn.ModuleList(Layer(width, heads, mlp, part == "dec") for _ in range(depth))
            for part in ("enc", "dec")
        }
        self.backbone = Holder(layers)
        self.attflat_img, self.attflat_lang = (AttFlat(width, flat_mlp, flat) for _ in range(2))
        self.proj_norm, self.proj = Norm(flat), nn.Linear(flat, classes)

    def forward(self, regions, text):
        hidden, y_hidden = regions.abs().sum(-1) == 0, text == 0
        y, _ = self.lstm(self.embedding(text))
        taps = {"lstm": y, "image_proj": self.adapter.frcn_linear(regions)}
        x = taps["image_proj"]
        for i, layer in enumerate(self.backbone.enc_list):
            y = taps[f"encoder_{i}"] = layer(y, y_hidden)
        for i, layer in enumerate(self.backbone.dec_list):
            x = taps[f"decoder_{i}"] = layer(x, hidden, y, y_hidden)
        taps["flat_image"], taps["flat_text"] = self.attflat_img(x, hidden), self.attflat_lang(y, y_hidden)
        taps["norm"] = self.proj_norm(taps["flat_text"] + taps["flat_image"])
        return self.proj(taps["norm"]), taps
