"""Hyper-ALBEF: pre-train (ITC + ITM + MLM, hypergraph fusion), then generative VQA beside a blind baseline.
Without an argument: the whole recipe at `scale=small` on the embedded world, on any machine, in minutes.
`scale=paper` holds the numbers of the paper (article 7321, Journal of Software) and of salesforce/ALBEF.
"""

from __future__ import annotations

import copy

from jaxvl import config as C

HYPERGRAPH = dict(
    layers=(1, 2, 3, 4, 5, 6), layout="cross", ffn_placement="after", mode="cluster_knn", grid=4, iters=3,
    init="grid", k_v=16, k_t=4, knn_quota="modality", knn_k=20, adjacent=1, scope="both", norm="hgnn",
    weights="identity", incidence="binary", incidence_p=1.0, incidence_grad="stop", mlp_ratio=1.0,
    residual="identity", theta_bias=None, visual_update=None, fusion="xattn", fusion_init="zero",
)  # fmt: skip
WEIGHTS = dict(vision=None, text=None, albef=None)  # foreign files to start from
MOMENTUM = dict(decay=0.995, dropout="on")
HINT = "salesforce/ALBEF links its JSON files and images, facebookresearch/deit the ViT; BERT is bert-base-uncased"
QA_FILES = dict(name="albef_vqa", vqa_root="data/coco", vg_root="data/vg")
CAPTIONS = tuple(f"data/albef/{name}.json" for name in ("coco", "vg", "cc3m_train", "sbu"))
QUESTIONS = tuple(f"data/albef/{name}.json" for name in ("vqa_train", "vqa_val", "vg_qa"))


def stages() -> dict:
    """The recipe at paper size; `SCALES` changes sizes and sources."""
    bounds = dict(temp=(0.001, 0.5))
    optim = dict(weight_decay=0.02, betas=(0.9, 0.999), eps=1e-8, clip=None, new_lr_mult=1.0, bounds=bounds)
    pretrain = dict(
        init_from=None, weights=dict(WEIGHTS), model=dict(image_size=256),
        task=dict(
            name="pretrain", momentum=dict(MOMENTUM), queue_size=65536, distill=dict(alpha=0.4, warmup_epochs=1),
            itc=dict(targets="own", group=None), itm=dict(negatives="hard", group=None),
            mlm=dict(prob=0.15, strategy="bernoulli", max_share=0.5),
        ),
        train=dict(name="albef_captions", root="data/albef", files=CAPTIONS),
        val=None, format=dict(name="caption", length=25), images=dict(augment="albef", scale=(0.2, 1.0)), answers=None,
        optim=dict(optim, schedule=dict(name="albef", lr=1e-4, warmup_lr=1e-5, min_lr=1e-5, warmup=20)),
        batch_size=256, accumulate=1, epochs=30, steps=None, eval=dict(every_epochs=None, batch_size=64, examples=None),
        evals=dict(retrieval=dict(name="retrieval", k_test=128), match=dict(name="match"), hg=dict(name="hypergraph")),
    )  # fmt: skip
    vqa = dict(
        init_from="pretrain", weights=dict(WEIGHTS), model=dict(image_size=384, decoder_depth=6),
        task=dict(
            name="generate", momentum=dict(MOMENTUM), distill=dict(alpha=0.4, warmup_epochs=1), k_test=128,
            rank_score="albef", top_n=10),
        train=dict(QA_FILES, files=QUESTIONS),
        val=None, format=dict(name="vqa", length=25, eval_length=64, answers=10, answer_length=8),
        images=dict(augment="albef", scale=(0.5, 1.0)), answers=dict(file="data/albef/answer_list.json", top=None),
        optim=dict(optim, schedule=dict(name="albef", lr=2e-5, warmup_lr=1e-5, min_lr=1e-6, warmup=4)),
        batch_size=256, accumulate=1, epochs=8, steps=None, eval=dict(every_epochs=None, batch_size=32, examples=None),
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
        title="VQA accuracy (official metric)",
        columns=("accuracy", "accuracy/yes_no", "accuracy/number", "accuracy/other"),
        rows=(
            ("Hyper-ALBEF", "vqa", "vqa/"), ("question only (blind)", "vqa_blind", "vqa/"),
            ("majority answer", "vqa", "majority/"), ("majority answer of the type", "vqa", "majority/by_type/"),
        ),
    ),
)  # fmt: skip


PRETRAIN, VQA = ("pretrain",), ("vqa", "vqa_blind")


def small(size: int, width: int, depth: int, examples: int, held: int) -> dict:
    """Embedded world, pictures of `size` pixels, without augmentation: texts name sides and colours."""
    world = dict(image_size=size, objects=(1, 2))
    asking = dict(world, name="scenes_vqa", hard=0.15)
    schedule = dict(name="cosine", lr=7e-4, min_lr=2e-5, warmup=0.05, warmup_lr=1e-5)
    return {
        "text.vocab": "scenes",
        "model.width": width, "model.heads": width // 32, "model.mlp": 4 * width, "model.embed_dim": 64,
        "model.text_depth": 1, "model.fusion_depth": 2, "model.max_positions": 64,
        "model.dropout": 0.0, "model.attn_dropout": 0.0, "model.vision.patch": 8, "model.vision.depth": depth,
        "model.hypergraph": dict(HYPERGRAPH, layers=(2,), grid=2, k_v=6, k_t=2),
        **C.under((*PRETRAIN, *VQA), {
            "model.image_size": size, "epochs": 1, "optim.schedule": schedule, "optim.clip": 1.0,
            "optim.bounds.temp": (0.04, 0.5),  # at ten times ALBEF's rate it would fall to its floor at once
        }),
        **C.under(("pretrain", "vqa"), {"images.augment": None}),
        **C.under(PRETRAIN, {
            "train": dict(world, name="scenes_captions", split="train", size=examples // 3),
            "val": dict(world, name="scenes_captions", split="val", size=held),
            "batch_size": 16, "format.length": 20, "task.queue_size": 1024, "optim.schedule.lr": 1e-3,
            "task.mlm.prob": 0.3, "evals.retrieval.k_test": 16,
        }),
        **C.under(VQA, {
            "train": dict(asking, split="train", size=examples),
            "val": dict(asking, split="val", size=4 * held),
            "format.length": 17, "format.eval_length": 32, "format.answers": 3, "format.answer_length": 4,
            "batch_size": 16, "answers.file": "scenes", "model.decoder_depth": 1, "task.top_n": 5,
            "task.momentum": None, "task.distill": None,  # no teacher: a quarter less work
        }),
    }  # fmt: skip


SHORT = {"model.pool": "mean"} | C.under(PRETRAIN, {  # for short runs: docs/decisions/0004-small-recipe.md
    "task.queue_size": None, "task.momentum.decay": 0.98, "task.distill.alpha": 0.2, "task.itm.negatives": "uniform",
})  # fmt: skip
PAPER = {
    "hint": HINT, "stages.pretrain.weights.vision": "data/deit_base_patch16_224-b5f2ef4d.pth",
    "stages.pretrain.weights.text": "data/bert-base-uncased", "stages.pretrain.eval.examples": 1000,
    "stages.pretrain.val": dict(name="albef_captions", root="data/albef", files=("data/albef/coco_val.json",)),
    **{f"stages.{stage}.val": dict(QA_FILES, files=("data/albef/vqa_test.json",)) for stage in VQA},
}  # fmt: skip
SCALES = {"tiny": small(32, 64, 1, 128, 16), "small": small(48, 96, 3, 30_000, 200) | SHORT, "paper": PAPER}
TABLE_5 = ((1,), (1, 3), (1, 3, 5), (1, 3, 4, 5), (1, 2, 3, 4, 5), (1, 2, 3, 4, 5, 6))
ABLATIONS = {
    "no_hyper": {"model.hypergraph": None},
    **{f"layers={','.join(map(str, rows))}": {"model.hypergraph.layers": rows} for rows in TABLE_5},
    **{f"no_{loss}": {f"stages.pretrain.task.{loss}": None} for loss in ("itc", "itm", "mlm")},
    **{f"{how}_negatives": {"stages.pretrain.task.itm.negatives": how} for how in ("hard", "uniform")},
    "no_queue": {"stages.pretrain.task.queue_size": None},
    "no_distill": C.under((*PRETRAIN, *VQA), {"task.distill": None}),
    "no_momentum": C.under((*PRETRAIN, *VQA), {"task.momentum": None, "task.distill": None})
    | {"stages.pretrain.task.queue_size": None},
    "single_mask": {"stages.pretrain.task.mlm.strategy": "single"},
    "from_scratch": C.under(VQA, {"init_from": None}),
    **C.choices("model.hypergraph.norm", ("paper", "hgnn_plus")),
    **C.choices("model.hypergraph.fusion", ("branch", "gate")),
    **C.choices("model.hypergraph.mode", ("cluster", "knn_node", "cluster+knn_node")),
    **C.choices("model.hypergraph.layout", ("concat", "visual_pre")),
}


def get_config(arg: str | None = None) -> C.ConfigDict:
    """`arg`: stages to run, then `scale=`, `ablation=` (joined by +); e.g. `"vqa,ablation=no_hyper,scale=tiny"`."""
    model = dict(
        name="hyper_albef", width=768, heads=12, mlp=3072, text_depth=6, fusion_depth=6, max_positions=512,
        embed_dim=256, pool="cls", dropout=0.1, attn_dropout=0.1, image_size=256, decoder_depth=None,
        vision=dict(patch=16, depth=12, width=None, heads=None, mlp=None), hypergraph=dict(HYPERGRAPH),
    )  # fmt: skip
    text = dict(vocab="data/bert-base-uncased/vocab.txt")
    config = C.base(text=text, model=model, stages=stages(), report=REPORT)
    return C.build(config, arg, order=tuple(stages()), variants={}, ablations=ABLATIONS, scales=SCALES)
