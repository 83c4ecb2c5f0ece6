"""Hyper-ALBEF on your own JSON Lines: captions, then questions beside a blind baseline.

`JAXVL_DATA` names the folder with `captions.jsonl`, `qa.jsonl` and `images.zip` or `images/`. A fifth of the images is
held out to score on. Model and training are those of configs/hyper_albef_photos.py: the text side starts from MiniLM.
docs/howto/use_your_own_data.md walks through it.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path

from jaxvl import config as C

DATA = Path(os.environ.get("JAXVL_DATA", "data")).expanduser()
LAYOUT = (
    f"JAXVL_DATA (now {DATA}; if it is not set, data) names the folder with "
    "captions.jsonl, qa.jsonl and the images, in images.zip or images/: docs/howto/use_your_own_data.md. No captions: "
    "--config=configs/hyper_albef_own.py:vqa,vqa_blind with --config.stages.vqa.init_from=None and the same for "
    "vqa_blind. No MiniLM: --config.text.vocab=vocab.txt --config.stages.pretrain.weights.text=None"
)
HYPERGRAPH = dict(layers=(2,), grid=3, k_v=8, k_t=3)
FRESH = (
    "visual_encoder",
    "vision_proj",
    "text_proj",
    "itm_head",
    "cross_attention",
    "hypergraph",
)  # learn faster
SIZE = 96
STAGES, VQA = ("pretrain", "vqa", "vqa_blind"), ("vqa", "vqa_blind")


def source(name: str, file: str, part: str) -> dict:
    """The `part` ("train" or "held") of a file; which images it has depends on their names only."""
    packed = (DATA / "images.zip").is_file() or not (DATA / "images").is_dir()
    return dict(
        name=name, files=str(DATA / file), images=str(DATA / ("images.zip" if packed else "images")),
        holdout=dict(share=0.2, by="image", part=part, seed=0),
    )  # fmt: skip


def stage(reader: str, file: str, *, rate: float, fresh: float, **values: object) -> dict:
    """What all stages share, under `values`; `fresh` is the factor on the learning rate of the parts named `FRESH`."""
    shared = dict(
        init_from="pretrain", weights=dict(vision=None, text=None, albef=None), model=dict(image_size=SIZE),
        train=source(reader, file, "train"), val=source(reader, file, "held"), images=dict(augment=None), answers=None,
        optim=dict(
            schedule=dict(name="cosine", lr=rate, min_lr=1e-5, warmup=0.1, warmup_lr=1e-6),
            weight_decay=0.02, betas=(0.9, 0.999), eps=1e-8, clip=1.0, new_lr_mult=fresh, new=FRESH,
            bounds=dict(temp=(0.02, 0.5)),
        ),
        accumulate=1, epochs=4, steps=None, eval=dict(every_epochs=None, batch_size=32, examples=None),
    )  # fmt: skip
    return {**shared, **values}


def stages() -> dict:
    pretrain = stage(
        "jsonl_captions", "captions.jsonl", rate=3e-4, fresh=3.0, batch_size=32,
        init_from=None, weights=dict(vision=None, text="minilm", albef=None),
        task=dict(
            name="pretrain", momentum=dict(decay=0.98, dropout="on"), queue_size=None,
            distill=dict(alpha=0.2, warmup_epochs=1), itc=dict(targets="own", group=None),
            itm=dict(negatives="uniform", group=None), mlm=dict(prob=0.15, strategy="bernoulli", max_share=0.3),
        ),
        format=dict(name="caption", length=18), eval=dict(every_epochs=None, batch_size=32, examples=200),
        evals=dict(retrieval=dict(name="retrieval", k_test=16), match=dict(name="match"), hg=dict(name="hypergraph")),
    )  # fmt: skip
    vqa = stage(
        "jsonl_vqa", "qa.jsonl", rate=1e-4, fresh=2.0, batch_size=16,
        model=dict(image_size=SIZE, decoder_depth=2),
        task=dict(name="generate", momentum=None, distill=None, k_test=16, rank_score="albef", top_n=5),
        answers=dict(file=None, top=1000),  # the most frequent ones of the training part
        format=dict(name="vqa", length=20, eval_length=40, answers=3, answer_length=8),
        evals=dict(vqa=dict(name="vqa"), majority=dict(name="majority")),
    )  # fmt: skip
    # The blind baseline: the same training, but every image is the same constant.
    blind = {**copy.deepcopy(vqa), "images": None, "evals": dict(vqa=dict(name="vqa"))}
    return dict(pretrain=pretrain, vqa=vqa, vqa_blind=blind)


REPORT = (
    dict(
        title="Pre-training on held-out images",
        columns=("retrieval/tr_r1", "retrieval/tr_r5", "retrieval/ir_r1", "retrieval/ir_r5", "match/accuracy"),
        rows=(("Hyper-ALBEF", "pretrain", ""),),
    ),
    dict(
        title="Questions about held-out images",
        columns=("accuracy", "accuracy/yes_no", "accuracy/number", "accuracy/other"),
        rows=(
            ("Hyper-ALBEF", "vqa", "vqa/"), ("question only (blind)", "vqa_blind", "vqa/"),
            ("majority answer", "vqa", "majority/"), ("majority answer of the type", "vqa", "majority/by_type/"),
        ),
    ),
)  # fmt: skip
TINY = {  # two steps a stage of a model that learns nothing: to check the files, with any vocabulary
    "text.vocab": "scenes",  # shipped; words that it lacks become [UNK]
    "stages.pretrain.weights.text": None,
    "model.width": 64, "model.heads": 2, "model.mlp": 128, "model.embed_dim": 32, "model.text_depth": 1,
    "model.max_positions": 64, "model.vision": dict(patch=8, depth=1, width=64, heads=2, mlp=128),
    "model.hypergraph": dict(HYPERGRAPH, grid=2, k_v=6, k_t=2),
    **C.under(STAGES, {"model.image_size": 32, "batch_size": 4, "steps": 2, "eval.examples": 32}),
    **C.under(VQA, {"model.decoder_depth": 1, "format.answer_length": 32}),
}  # fmt: skip
SCALES = {"small": {}, "tiny": TINY}
ABLATIONS = {"no_hyper": {"model.hypergraph": None}}


def get_config(arg: str | None = None) -> C.ConfigDict:
    """`arg`: stages to run, `ablation=no_hyper`, `scale=tiny` (two steps a stage, to check the files)."""
    if "JAXVL_DATA" in os.environ and not DATA.is_dir():
        raise C.ConfigError(f"JAXVL_DATA={DATA}: no such folder (from {Path.cwd()}); it holds captions.jsonl, "
                            "qa.jsonl and images.zip or images/")  # fmt: skip
    model = dict(
        name="hyper_albef", width=384, heads=12, mlp=1536, text_depth=4, fusion_depth=2, max_positions=512,
        embed_dim=128, pool="mean", dropout=0.1, attn_dropout=0.1, image_size=SIZE, decoder_depth=None,
        vision=dict(patch=16, depth=4, width=192, heads=3, mlp=768), hypergraph=dict(HYPERGRAPH),
    )  # fmt: skip
    config = C.base(hint=LAYOUT, text=dict(vocab="minilm"), model=model, stages=stages(), report=REPORT)
    return C.build(config, arg, order=STAGES, variants={}, ablations=ABLATIONS, scales=SCALES)
