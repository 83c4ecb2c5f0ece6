"""Hyper-ALBEF: pre-train (ITC + ITM + MLM, hypergraph fusion), then generative VQA beside a blind baseline.

Without an argument: the whole recipe at `scale=small` on the embedded world, on any machine, in minutes.
`scale=paper` holds the numbers of the paper (article 7321, Journal of Software) and of salesforce/ALBEF.
"""

from __future__ import annotations

HYPERGRAPH = dict(
    layers=(1, 2, 3, 4, 5, 6), layout="cross", ffn_placement="after", mode="cluster_knn", grid=4, iters=3,
    init="grid", k_v=16, k_t=4, knn_quota="modality", knn_k=20, adjacent=1, scope="both", norm="hgnn",
    weights="identity", incidence="binary", incidence_p=1.0, incidence_grad="stop", mlp_ratio=1.0,
    residual="identity", theta_bias=None, visual_update=None, fusion="xattn", fusion_init="zero",
)  # fmt: skip
MOMENTUM = dict(decay=0.995, dropout="on")


def stages() -> dict:
    """The recipe at paper size; `SCALES` changes sizes and sources."""
    optim = dict(weight_decay=0.02, betas=(0.9, 0.999), eps=1e-8, clip=None, new_lr_mult=1.0)
    pretrain = dict(
        init_from=None,
        weights=dict(vision=None, text=None, albef=None),
        model=dict(image_size=256),
        task=dict(
            name="pretrain", momentum=dict(MOMENTUM), queue_size=65536, distill=dict(alpha=0.4, warmup_epochs=1),
            itc=dict(targets="own", group=None), itm=dict(negatives="hard", group=None),
            mlm=dict(prob=0.15, strategy="bernoulli", max_share=0.5),
        ),
        train=dict(name="albef_captions", files=(), root=""), val=None,
        format=dict(name="caption", length=25),
        images=dict(augment="albef", scale=(0.2, 1.0)),
        answers=None,
        optim=dict(optim, schedule=dict(name="albef", lr=1e-4, warmup_lr=1e-5, min_lr=1e-5, warmup=20)),
        batch_size=256, accumulate=1, epochs=30, steps=None,
        eval=dict(every_epochs=None, batch_size=64),
        evals=dict(retrieval=dict(name="retrieval", k_test=128), match=dict(name="match")),
    )  # fmt: skip
    vqa = dict(
        init_from="pretrain",
        weights=dict(vision=None, text=None, albef=None),
        model=dict(image_size=384, decoder_depth=6),
        task=dict(
            name="generate", momentum=dict(MOMENTUM), distill=dict(alpha=0.4, warmup_epochs=1),
            k_test=128, rank_score="albef", top_n=10,
        ),
        train=dict(name="albef_vqa", files=(), vqa_root="", vg_root=""), val=None,
        format=dict(name="vqa", length=40, answers=10, answer_length=8),
        images=dict(augment="albef", scale=(0.5, 1.0)),
        answers=dict(file=None, top=None),
        optim=dict(optim, schedule=dict(name="albef", lr=2e-5, warmup_lr=1e-5, min_lr=1e-6, warmup=4)),
        batch_size=256, accumulate=1, epochs=8, steps=None,
        eval=dict(every_epochs=None, batch_size=32),
        evals=dict(vqa=dict(name="vqa"), majority=dict(name="majority")),
    )  # fmt: skip
    return dict(
        pretrain=pretrain, vqa=vqa, vqa_blind={**vqa, "images": None, "evals": dict(vqa=dict(name="vqa"))}
    )


COLUMNS = ("accuracy", "accuracy/yes_no", "accuracy/number", "accuracy/other")
REPORT = dict(
    pretrain=dict(
        title="Pre-training on held-out images",
        columns=(
            "retrieval/tr_r1",
            "retrieval/tr_r5",
            "retrieval/ir_r1",
            "retrieval/ir_r5",
            "match/accuracy",
        ),
        rows=(("Hyper-ALBEF", "pretrain", ""),),
    ),
    vqa=dict(
        title="VQA accuracy (official metric)",
        columns=COLUMNS,
        rows=(
            ("Hyper-ALBEF", "vqa", "vqa/"),
            ("question only (blind)", "vqa_blind", "vqa/"),
            ("majority answer", "vqa", "majority/"),
            ("majority answer of the type", "vqa", "majority/by_type/"),
        ),
    ),
)
