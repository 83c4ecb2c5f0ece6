"""CCRL on small sets of photos: DAQUAR (objects, numbers and colours of rooms) and COCO with yes/no questions.

Without an argument: Random and CCRL, three repeats each, on DAQUAR; `variant=coco` is the other set. Photos come as the
16 grid features of EfficientNet-Lite0 that launch/regions.py extracts (docs/howto/region_features.md); words start from
GloVe. `JAXVL_DATA` names the folder with `daquar/`, `coco_vqa/`, `glove_100d/` and the stores under `regions/`.
Methods and models are those of configs/ccrl.py, at the sizes of its `small`.
"""

from __future__ import annotations

import os

from jaxvl import config as C

# fmt: off
HINT = "JAXVL_DATA names the folder of daquar/ or coco_vqa/, glove_100d/ and regions/: docs/howto/region_features.md"
METHODS = ("random", "ccrl", "least_conf", "entropy", "margin", "bald", "mc_entropy", "coreset", "badge", "ll", "sraal",
           "mocu", "cdal", "vabal", "vaal", "tavaal", "ccrl_a", "ccrl_b", "ccrl_ab", "ccrl_mi", "ccrl_cl", "match_all",
           "count_only")
CHAINS = {"": ("random", "ccrl"), "all": METHODS}
DATA, WIDTH = os.environ.get("JAXVL_DATA", "data"), 64
SIZES = dict(width=WIDTH, heads=WIDTH // 32, dropout=0.1)
MCAN = dict(SIZES, name="mcan", mlp=2 * WIDTH, depth=2, flat=2 * WIDTH, flat_mlp=WIDTH)
BLOCKS = dict(SIZES, layers=1, block="residual", pool="attflat")
ADAM = dict(weight_decay=0.0, betas=(0.9, 0.98), eps=1e-9, clip=None)
QUICK = dict(name="cosine", lr=2e-3, min_lr=1e-4, warmup=0.1)
MODELS = ("task", "ll", "ranker", "vaue")


def stage(**values: object) -> dict:
    """A model that rounds train; `values` over what most share."""
    plain = dict(optim=dict(ADAM, schedule=dict(QUICK)), batch_size=32, epochs=8, min_steps=800, plateau=None)
    return plain | values


def stages() -> dict:
    """The scored model, and what samplers train beside it."""
    plateau = dict(share=0.1, delta=0.002, patience=3, least=5, every=50, calibrate=False)
    plain = dict(ADAM, schedule=dict(name="constant", lr=5e-4), betas=(0.9, 0.999), eps=1e-8)
    rise = dict(ADAM, schedule=dict(name="linear", lr=1e-3, min_lr=1e-3, warmup=0.05), clip=5.0)
    vae, often = dict(optim=plain, epochs=5), dict(lr=5e-4, factor=0.85, at=[i / 30 for i in range(1, 30)])
    falls = [plain | dict(schedule=dict(name="stairs", **kw)) for kw in (often, dict(lr=1e-2))]
    both = dict(name="adversarial_vae")
    match = dict(name="question_match", cl_weight=1.0, mi_weight=1.0, cl_form="infonce", neg="all", neg_count=None)
    vqme = dict(
        model=dict(BLOCKS, name="vqme", critic="concat1", critic_width=WIDTH, project=128, tau=0.1, learn_tau=None),
        optim=rise, batch_size=128, epochs=40, min_steps=800, plateau=plateau)
    return dict(
        task=stage(model=dict(MCAN), task=dict(name="region_vqa", prob="softmax", passes=10)),
        vqme=stage(**vqme, task=match), vqme_mi=stage(**vqme, task=dict(match, cl_weight=0.0)),
        vqme_cl=stage(**vqme | dict(model=dict(vqme["model"], critic="cosine"), plateau=dict(plateau, calibrate=True)),
                      task=dict(match, mi_weight=0.0)),
        vaue=stage(model=dict(BLOCKS, name="vaue", qga="image"), task=dict(name="answer_uncertainty", label="hard")),
        ll=stage(model=dict(MCAN), task=dict(name="region_vqa", loss_net=dict(kind="margin", cut=0.6))),
        ranker=stage(model=dict(MCAN), task=dict(name="region_vqa", loss_net=dict(kind="bce", cut=0.6))),
        sraal=stage(**vae | dict(optim=falls[0]), min_steps=0, model=dict(name="sraal"),
                    task=dict(name="state_discrepancy", adversarial="labelled")),
        vaal=stage(**vae, min_steps=0, model=dict(name="vaal", ranked=False), task=both),
        tavaal=stage(**vae, min_steps=0, model=dict(name="vaal", ranked=True),
                     task=dict(both, kl_over="mean", critic_every=1)),
        vabal=stage(**vae | dict(optim=falls[1]), min_steps=0, model=dict(name="vabal", groups=20),
                    task=dict(name="bayes_vae")),
    )


def strategies() -> dict:
    """Each method's strategy."""
    ccrl = dict(name="ccrl", threshold=0.5, min_k=1, k_max=None, agg="sum", rate="one_minus", match="critic",
                uncertainty="indicator", prune="exact", stage="vqme", diversify=None, pool_factor=4)
    plain = {name: dict(name=name) for name in METHODS if not name.startswith(("ccrl", "match_", "count_"))}
    return plain | dict(
        coreset=dict(name="coreset", feature="fused"), badge=dict(name="badge", unit="image"),
        vabal=dict(name="vabal", groups=20, form="bayes"),
        mocu=dict(name="mocu", form="pointwise", candidates=10, pairs=1000, answers=5, kept=20, sharpness=10.0),
        ccrl=ccrl, ccrl_a=dict(ccrl, rate="none"), ccrl_b=dict(ccrl, match="similarity"),
        ccrl_ab=dict(ccrl, rate="none", match="similarity"), match_all=dict(ccrl, match="all"),
        count_only=dict(ccrl, uncertainty="one", rate="none"),
        ccrl_mi=dict(ccrl, stage="vqme_mi"), ccrl_cl=dict(ccrl, stage="vqme_cl"),
    )


def photos(folder: str, pool: dict, val: dict, **more: object) -> dict:
    """A set: pool, evaluation questions and stores; `pool` and `val` are arguments of the reader."""
    stores = [f"{DATA}/regions/{name}" for name in folder.split("+")]
    return dict(pool=dict(more, name="jsonl_vqa", **pool), val=dict(more, name="jsonl_vqa", **val),
                regions=dict(name="store", paths=tuple(stores)))


PARTS = [dict(holdout=dict(share=0.2, part=part)) for part in ("train", "held")]
DAQUAR = photos("daquar", *PARTS, files=f"{DATA}/daquar/train/qa.jsonl", images=f"{DATA}/daquar/train/images.zip",
                answer_separator="_", fields={"answer_type": "none"})  # no such field: types are told from the answers
COCO = photos("coco_train+coco_val", *(
    dict(files=f"{DATA}/coco_vqa/{part}/vqa_yesno.jsonl", images=f"{DATA}/coco_vqa/{part}/images.zip")
    for part in ("train", "val")), image_template="%012d.jpg")


def active() -> dict:
    """Rounds on a pool of photos."""
    return dict(
        DAQUAR, protocol="val", words=dict(glove=f"{DATA}/glove_100d", dim=100, length=14, scope="all"),
        variant="official", bank=dict(max=256, reduce="medoid"), full=False,
        answers=dict(file=None, min_count=2, scope="fixed", grow=False),
        unit="image", init=0.1, step=0.2, budget=0.3, repeats=3, only=None, shared_init=False, asked=8,
        proposer="bank_random", share_task_model="plain", warm_start=False,
        oracle=dict(name="simulate", min_fraction=0.9, reserve=0.1, suggest=True, gold=0.0, min_answers=1),
        stands_for=True, cost=dict(image=1.0, question=0.0, answer=0.0, second=0.0), strategies=strategies(),
        stop=dict(cost=None, seconds=None, accuracy=None, plateau=None, rounds=3), allow_approx=False,
        pause=dict(rounds=None, until=None), scoring=dict(block=256, pairs=2048, compute="float32"),
    )


ABLATIONS: dict = {}
TRAINED = (*MODELS, "vqme", "vqme_mi", "vqme_cl")
TINY = {f"stages.{name}.min_steps": 2 for name in TRAINED} | {f"stages.{name}.epochs": 1 for name in MODELS}
SCALES = {"small": {}, "tiny": TINY}
VARIANTS = {"daquar": {}, "coco": {f"active.{key}": value for key, value in COCO.items()}, "people": {
    "active.oracle.name": "people"}}


def get_config(arg: str | None = None):
    """`arg` like "entropy,badge,variant=coco"; `scale=tiny` takes an epoch a model."""
    probe = dict(lrs=(1e-2, 1e-3, 1e-4), share=0.1, batch_size=512, epochs=200, fusion="concat")
    config = C.base(hint=HINT, active=active(), stages=stages(), probe=probe, report={})
    return C.build(config, arg, order=METHODS, variants=VARIANTS, ablations=ABLATIONS, scales=SCALES, chains=CHAINS)
