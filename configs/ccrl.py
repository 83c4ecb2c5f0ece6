"""CCRL: which images of a pool are worth annotating for visual question answering?

Without an argument: Random and CCRL, three repeats each, at `scale=small` on the embedded world. `:entropy,badge` runs
these methods, `:all` every one, in rounds of training, scoring, selecting and labelling. `scale=paper` is the recipe of
Zhang et al., "Active learning for VQA based on cross-modal contrastive representation learning", on VQA v2 with
bottom-up features. `variant=daquar` and `variant=coco` have photos as their pool, with grid features that
launch/regions.py extracts; `JAXVL_DATA` names their folder. `variant=people`: labels come from people, through files.
"""

from __future__ import annotations

import os

from jaxvl import config as C

# fmt: off
HINT = "docs/howto/region_features.md says which files of VQA v2, features and GloVe are needed and how to convert them"
METHODS = ("random", "ccrl", "least_conf", "entropy", "margin", "bald", "mc_entropy", "coreset", "badge", "ll", "sraal",
           "mocu", "cdal", "vabal", "vaal", "tavaal", "ccrl_a", "ccrl_b", "ccrl_ab", "ccrl_mi", "ccrl_cl", "match_all",
           "count_only")
CHAINS = {"": ("random", "ccrl"), "all": METHODS, "ablations": ("random", "ccrl", "ccrl_a", "ccrl_b", "ccrl_ab"),
          "paper": ("ccrl", "tavaal", "vabal", "cdal", "mocu", "ll", "sraal", "random")}
DATA, VQA_V2 = os.environ.get("JAXVL_DATA", "data"), "data/vqa_v2/v2_{}mscoco_{}2014_{}.json"
MCAN = dict(name="mcan", width=512, heads=8, mlp=2048, depth=6, flat=1024, flat_mlp=512, dropout=0.1)
MCANS, VQMES, VAE = ("task", "ll", "ranker"), ("vqme", "vqme_mi", "vqme_cl"), dict(name="adversarial_vae")
BLOCKS = dict(width=512, heads=8, layers=1, block="residual", pool="attflat", dropout=0.1)
ADAM = dict(weight_decay=0.0, betas=(0.9, 0.98), eps=1e-9, clip=None)
RATE = dict(name="mcan", lr=1e-4)  # quarter steps up over three epochs, a fifth at epochs 10 and 12


def stage(**values: object) -> dict:
    """A model that rounds train; `values` over what most share."""
    return dict(optim=dict(ADAM, schedule=dict(RATE)), batch_size=64, epochs=13, min_steps=0, plateau=None) | values


def stages() -> dict:
    """The scored model, and what samplers train beside it (specification, sections 4 to 8)."""
    plateau = dict(share=0.1, delta=0.002, patience=3, least=5, every=1)
    plain = dict(ADAM, schedule=dict(name="constant", lr=5e-4), betas=(0.9, 0.999), eps=1e-8)
    rise = dict(ADAM, schedule=dict(name="linear", lr=1e-4, min_lr=1e-4, warmup=0.05), clip=5.0)
    vqme = dict(model=dict(BLOCKS, name="vqme", critic="concat1", critic_width=512, project=128, tau=0.1), optim=rise,
                batch_size=256, epochs=40, plateau=plateau)
    match = dict(name="question_match", cl_weight=1.0, mi_weight=1.0, cl_form="infonce", neg="all")
    vae, often = dict(optim=plain, batch_size=250, epochs=20), dict(factor=0.85, at=[i / 30 for i in range(1, 30)])
    falls = [plain | dict(schedule=dict(name="stairs", **kw)) for kw in (dict(lr=5e-4, **often), dict(lr=1e-2))]
    return dict(
        task=stage(model=dict(MCAN), task=dict(name="region_vqa", prob="softmax", passes=10)),
        vqme=stage(**vqme, task=match),
        vqme_mi=stage(**vqme, task=dict(match, cl_weight=0.0)),
        vqme_cl=stage(**vqme, task=dict(match, mi_weight=0.0)),
        vaue=stage(model=dict(BLOCKS, name="vaue", qga="image"), task=dict(name="answer_uncertainty", label="hard")),
        ll=stage(model=dict(MCAN), task=dict(name="region_vqa", loss_net=dict(kind="margin", cut=0.6))),
        ranker=stage(model=dict(MCAN), task=dict(name="region_vqa", loss_net=dict(kind="bce", cut=0.6))),
        sraal=stage(**vae | dict(optim=falls[0], model=dict(name="sraal")), task=dict(name="state_discrepancy")),
        vaal=stage(**vae, model=dict(name="vaal", ranked=False), task=dict(VAE)),
        tavaal=stage(**vae, model=dict(name="vaal", ranked=True), task=dict(VAE, kl_over="mean", critic_every=1)),
        vabal=stage(**vae | dict(optim=falls[1]), model=dict(name="vabal", groups=100), task=dict(name="bayes_vae")),
    )


def strategies() -> dict:
    """Each method's strategy; CCRL's ablations are its options (section 8.9)."""
    ccrl = dict(name="ccrl", threshold=0.5, min_k=1, k_max=None, agg="sum", rate="one_minus", match="critic",
                uncertainty="indicator", prune="exact", stage="vqme")
    plain = {name: dict(name=name) for name in METHODS if not name.startswith(("ccrl", "match_", "count_"))}
    return plain | dict(
        coreset=dict(name="coreset", feature="fused"), badge=dict(name="badge", unit="image"),
        vabal=dict(name="vabal", groups=100),
        mocu=dict(name="mocu", form="pointwise", candidates=10, pairs=1000, answers=5, kept=20, sharpness=10.0),
        ccrl=ccrl, ccrl_a=dict(ccrl, rate="none"), ccrl_b=dict(ccrl, match="similarity"),
        ccrl_ab=dict(ccrl, rate="none", match="similarity"), ccrl_mi=dict(ccrl, stage="vqme_mi"),
        ccrl_cl=dict(ccrl, stage="vqme_cl", match="contrast"), match_all=dict(ccrl, match="all"),
        count_only=dict(ccrl, uncertainty="one", rate="none"),
    )


def active() -> dict:
    """The protocol `val`: the pool is train2014, scores are of val2014 (section 1.3)."""
    def vqa(split: str) -> dict:
        annotations = VQA_V2.format("", split, "annotations")
        return dict(name="vqa_v2", images=None, questions=VQA_V2.format("OpenEnded_", split, "questions"),
                    annotations=annotations)
    return dict(
        pool=vqa("train"), val=vqa("val"),
        regions=dict(name="store", paths=("data/regions/train36", "data/regions/val36")),
        words=dict(glove="data/glove.840B.300d.txt", dim=300, length=14, scope="all"), variant="official",
        answers=dict(file="data/vqa_v2/answer_dict.json", min_count=9, scope="fixed", grow=False),
        init=0.02, step=0.02, budget=0.2, repeats=5, only=None, shared_init=False, asked=8,
        proposer="bank_random", share_task_model="plain", warm_start=False,  # A17, A16, section 1.4
        oracle=dict(name="simulate", min_fraction=0.9, reserve=0.1, suggest=True), bank=dict(max=1024, reduce="medoid"),
        cost=dict(image=1.0, question=0.0, answer=0.0, second=0.0), scoring=dict(block=256, pairs=2048),
        stop=dict(cost=None, seconds=None, accuracy=None, plateau=None, rounds=3), strategies=strategies(),
    )


def small(width: int, images: int, held: int, repeats: int, share: float, budget: float, steps: int) -> dict:
    """Scenes of the embedded world as six regions of 64 features; narrow models."""
    world = dict(name="scenes_pool", questions=4, skew=0.0, unlearnable=0.1, objects=(1, 3), hard=0.0)
    sizes, mcan = {"width": width, "heads": width // 32}, dict(mlp=2 * width, depth=2, flat=2 * width, flat_mlp=width)
    models = {f"stages.{name}.model.{k}": v for names, values in (
        ((*MCANS, *VQMES, "vaue"), sizes), (MCANS, mcan), (VQMES, {"critic_width": width}),
    ) for name in names for k, v in values.items()}
    quick = {"optim.schedule": dict(name="cosine", lr=2e-3, min_lr=1e-4, warmup=0.1), "min_steps": steps}
    short = {"min_steps": 2 * steps, "optim.schedule.lr": 1e-3, "optim.schedule.min_lr": 1e-3, "batch_size": 128,
             "plateau.every": steps // 8 or 1}
    return {
        "active.pool": dict(world, split="train", images=images),
        "active.val": dict(world, split="val", images=held, unlearnable=0.0),
        "active.regions": dict(name="scenes", objects=(1, 3), regions=6, width=64, noise=0.3),
        "active.words": dict(glove=None, dim=64, length=14, scope="all"), "active.answers.file": "scenes",
        "active.init": share, "active.step": share, "active.budget": budget, "active.repeats": repeats,
        "active.bank.max": 256, "stages.vabal.model.groups": 20, "active.strategies.vabal.groups": 20,
        **models, **C.under((*MCANS, "vaue"), quick), **C.under(VQMES, short),
        **C.under(("sraal", "vaal", "tavaal", "vabal"), {"epochs": 5, "batch_size": 64}),
    }


SCALES = {"tiny": small(32, 60, 12, 1, 0.3, 0.6, 4), "small": small(64, 1_500, 300, 3, 0.04, 0.2, 400), "paper": {}}
ABLATIONS = {
    **C.choices("active.strategies.ccrl.rate", ("printed", "inverse", "sqrt_inverse", "effective", "none")),
    **C.choices("active.strategies.ccrl.agg", ("mean", "topk_mean")),
    **C.choices("stages.vqme.model.critic", ("separable", "concat2")),
    **C.choices("stages.vqme.task.cl_form", ("printed",)),
    **C.choices("active.bank.reduce", ("frequency", "prefix", "all")),
}


def photos(folder: str, pool: dict, val: dict, **more: object) -> dict:
    """Photos of one set, with 16 grid regions each; `pool` and `val` are arguments of the reader."""
    sets = {"active.pool": dict(more, name="jsonl_vqa", **pool), "active.val": dict(more, name="jsonl_vqa", **val)}
    more = {"active.words.glove": f"{DATA}/glove_100d", "active.words.dim": 100}
    regions = dict(name="store", paths=(f"{DATA}/regions/{folder}",))
    return sets | more | {"active.regions": regions, "active.answers.file": None, "active.answers.min_count": 2}


PARTS = [dict(holdout=dict(share=0.2, part=part)) for part in ("train", "held")]
DAQUAR = dict(files=f"{DATA}/daquar/train/qa.jsonl", images=f"{DATA}/daquar/train/images.zip", answer_separator="_",
              fields={"answer_type": "none"})  # no such field: the type is told from the answers
COCO = [dict(files=f"{DATA}/coco_vqa/{part}/vqa_yesno.jsonl", images=f"{DATA}/coco_vqa/{part}/images.zip")
        for part in ("train", "val")]
VARIANTS = {
    "people": {"active.oracle.name": "people"},
    "daquar": photos("daquar", *PARTS, **DAQUAR), "coco": photos("coco", *COCO, image_template="%012d.jpg"),
}


def get_config(arg: str | None = None):
    """`arg` like "entropy,badge,ablation=rate=printed,scale=tiny"."""
    config = C.base(hint=HINT, active=active(), stages=stages(), report={})
    return C.build(config, arg, order=METHODS, variants=VARIANTS, ablations=ABLATIONS, scales=SCALES, chains=CHAINS)
