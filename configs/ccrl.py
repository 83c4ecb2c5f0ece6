"""CCRL: which images of a pool are worth annotating for visual question answering?

Without an argument: Random and CCRL, three repeats each, at `scale=small` on the embedded world. `:entropy,badge` runs
these methods, `:all` every one. `scale=paper` is the recipe of Zhang et al., "Active learning for VQA based on
cross-modal contrastive representation learning", on VQA v2; `variant=test`: pool train and val, EvalAI scores test.
`people`: labels come from people; `qa`: questions are chosen; `large`: MCAN-large; `shown`: asked is what is shown.
"""

from __future__ import annotations

from jaxvl import config as C

# fmt: off
HINT = "docs/howto/region_features.md says which files of VQA v2, features and GloVe are needed and how to convert them"
METHODS = ("random", "ccrl", "least_conf", "entropy", "margin", "bald", "mc_entropy", "coreset", "badge", "ll", "sraal",
           "mocu", "cdal", "vabal", "vaal", "tavaal", "ccrl_a", "ccrl_b", "ccrl_ab", "ccrl_mi", "ccrl_cl", "match_all",
           "count_only")
CHAINS = {"": ("random", "ccrl"), "all": METHODS, "ablations": ("random", "ccrl", "ccrl_a", "ccrl_b", "ccrl_ab"),
          "paper": ("ccrl", "tavaal", "vabal", "cdal", "mocu", "ll", "sraal", "random")}
ANSWERS = "data/vqa_v2/answer_dict.json"
STORES = tuple(f"data/regions/{split}36" for split in ("train", "val", "test"))
MCAN = dict(name="mcan", width=512, heads=8, mlp=2048, depth=6, flat=1024, flat_mlp=512, dropout=0.1)
MCANS, VQMES = ("task", "ll", "ranker"), ("vqme", "vqme_mi", "vqme_cl", "prefilter", "joint")
BLOCKS = dict(width=512, heads=8, layers=1, block="residual", pool="attflat", dropout=0.1)
ADAM = dict(weight_decay=0.0, betas=(0.9, 0.98), eps=1e-9, clip=None)
RATE = dict(name="mcan", lr=1e-4)  # quarter steps up over three epochs, a fifth at epochs 10 and 12
PLATEAU = dict(share=0.1, delta=0.002, patience=3, least=5, every=1, calibrate=False)  # on held-out images (5.6)


def stage(**values: object) -> dict:
    """A model that rounds train; `values` over what most share."""
    return dict(optim=dict(ADAM, schedule=dict(RATE)), batch_size=64, epochs=13, min_steps=0, plateau=None) | values


def stages() -> dict:
    """The scored model, and what samplers train beside it (specification, sections 4 to 8)."""
    plain = dict(ADAM, schedule=dict(name="constant", lr=5e-4), betas=(0.9, 0.999), eps=1e-8)
    rise = dict(ADAM, schedule=dict(name="linear", lr=1e-4, min_lr=1e-4, warmup=0.05), clip=5.0)
    vqme = dict(model=dict(BLOCKS, name="vqme", critic="concat1", critic_width=512, project=128, tau=0.1,
                learn_tau=None), optim=rise, batch_size=256, epochs=40, plateau=PLATEAU)
    match = dict(name="question_match", cl_weight=1.0, mi_weight=1.0, cl_form="infonce", neg="all", neg_count=None)
    vae, often = dict(optim=plain, batch_size=250, epochs=20), dict(factor=0.85, at=[i / 30 for i in range(1, 30)])
    falls = [plain | dict(schedule=dict(name="stairs", **kw)) for kw in (dict(lr=5e-4, **often), dict(lr=1e-2))]
    return dict(
        task=stage(model=dict(MCAN), task=dict(name="region_vqa", prob="softmax", passes=10)),
        vqme=stage(**vqme, task=match), vqme_mi=stage(**vqme, task=dict(match, cl_weight=0.0)),
        vqme_cl=stage(**vqme | dict(model=dict(vqme["model"], critic="cosine"), plateau=dict(PLATEAU, calibrate=True)),
                      task=dict(match, mi_weight=0.0)),
        prefilter=stage(**vqme | dict(model=dict(vqme["model"], critic="separable")), task=match),
        joint=stage(**vqme | dict(model=dict(vqme["model"], name="shared_encoders", qga="image")), task=dict(
            match, name="match_and_answer", answer_weight=1.0, label="hard")),
        vaue=stage(model=dict(BLOCKS, name="vaue", qga="image"), task=dict(name="answer_uncertainty", label="hard")),
        **{name: stage(model=dict(MCAN), task=dict(name="region_vqa", loss_net=dict(kind=kind, cut=0.6)))
           for name, kind in (("ll", "margin"), ("ranker", "bce"))},
        sraal=stage(**vae | dict(optim=falls[0], model=dict(name="sraal")),
                    task=dict(name="state_discrepancy", adversarial="labelled")),
        vaal=stage(**vae, model=dict(name="vaal", ranked=False), task=dict(name="adversarial_vae")),
        tavaal=stage(**vae, model=dict(name="vaal", ranked=True), task=dict(
            name="adversarial_vae", kl_over="mean", critic_every=1)),
        vabal=stage(**vae | dict(optim=falls[1]), model=dict(name="vabal", groups=100), task=dict(name="bayes_vae")),
    )


def strategies() -> dict:
    """Each method's strategy; CCRL's ablations are its options (section 8.9)."""
    ccrl = dict(name="ccrl", threshold=0.5, min_k=1, k_max=None, prefilter=None, agg="sum", top_k=8, rate="one_minus",
                match="critic", uncertainty="indicator", prune="exact", stage="vqme", var_ddof=0, at_uniform="bound",
                encoders="own", diversify=None, pool_factor=4)
    plain = {name: dict(name=name) for name in METHODS if not name.startswith(("ccrl", "match_", "count_"))}
    return plain | dict(
        coreset=dict(name="coreset", feature="fused", pca=None, refreshes=None), badge=dict(name="badge", unit="image"),
        vabal=dict(name="vabal", groups=100, form="bayes"), ll=dict(name="ll", subset=None), cdal=dict(
            name="cdal", form="k_center", policy=dict(width=256, length=128, batch=16, episodes=5, epochs=20, lr=1e-4)),
        mocu=dict(name="mocu", form="pointwise", candidates=10, pairs=1000, answers=5, kept=20, sharpness=10.0),
        ccrl=ccrl, ccrl_a=dict(ccrl, rate="none"), ccrl_b=dict(ccrl, match="similarity"),
        ccrl_ab=dict(ccrl, rate="none", match="similarity"), ccrl_mi=dict(ccrl, stage="vqme_mi"),
        ccrl_cl=dict(ccrl, stage="vqme_cl"), match_all=dict(ccrl, match="all"),
        count_only=dict(ccrl, uncertainty="one", rate="none"),
    )


def vqa(*splits: str) -> dict:
    """The official files of splits of VQA v2."""
    form = dict(questions="OpenEnded_mscoco_{}_questions", annotations="mscoco_{}_annotations")
    files = {k: tuple(f"data/vqa_v2/v2_{v.format(s)}.json" for s in splits) for k, v in form.items()}
    return dict(name="vqa_v2", images=None) | {k: v if splits[1:] else v[0] for k, v in files.items()}


def active() -> dict:
    """The protocol `val`: the pool is train2014, scores are of val2014 (section 1.3)."""
    return dict(
        protocol="val", pool=vqa("train2014"), val=vqa("val2014"), regions=dict(name="store", paths=STORES[:2]),
        words=dict(glove="data/glove.840B.300d.txt", dim=300, length=14, scope="all"), variant="official",
        answers=dict(file=ANSWERS, min_count=9, scope="fixed", grow=False), bank=dict(max=1024, reduce="medoid"),
        unit="image", init=0.02, step=0.02, budget=0.2, repeats=5, only=None, shared_init=False, asked=8,
        proposer="bank_random", share_task_model="plain", warm_start=False, full=False, stands_for=True,
        oracle=dict(name="simulate", min_fraction=0.9, reserve=0.1, suggest=True, gold=0.0, min_answers=1),
        cost=dict(image=1.0, question=0.0, answer=0.0, second=0.0), strategies=strategies(),
        stop=dict(cost=None, seconds=None, accuracy=None, plateau=None, rounds=3), allow_approx=False,
        pause=dict(rounds=None, until=None), scoring=dict(block=256, pairs=2048, compute="float32"),
    )


def small(width: int, images: int, held: int, repeats: int, share: float, budget: float, steps: int) -> dict:
    """Scenes of the embedded world as six regions of 64 features; narrow models."""
    world = dict(name="scenes_pool", questions=4, skew=0.0, unlearnable=0.1, shown=False, objects=(1, 3), hard=0.0)
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
        "probe.epochs": 200, **models, **C.under((*MCANS, "vaue"), quick), **C.under(VQMES, short),
        **C.under(("sraal", "vaal", "tavaal", "vabal"), {"epochs": 5, "batch_size": 64}),
    }

SCALES = {"tiny": small(32, 60, 12, 1, 0.3, 0.6, 4), "small": small(64, 1_500, 300, 3, 0.04, 0.2, 400), "paper": {}}
CAPPED = {"active.strategies.ccrl.agg": "sum_capped", "active.strategies.ccrl.k_max": 16, "active.allow_approx": True}
ABLATIONS = {name: value for path, values in {
    "active.strategies.ccrl.rate": ("printed", "inverse", "sqrt_inverse", "effective", "none"),
    "active.strategies.ccrl.agg": ("mean", "topk_mean"), "active.strategies.ccrl_b.match": ("raw_glove",),
    "active.bank.reduce": ("frequency", "prefix", "all"), "active.strategies.ccrl.encoders": ("shared",),
    "stages.vqme|vqme_mi|joint.model.critic": ("separable", "concat2"), "stages.vaue|joint.model.qga": ("question",),
    "stages.vqme|vqme_cl|joint.task.cl_form": ("printed",), "stages.vqme|vqme_mi|joint.task.neg": ("derangement",),
    "stages.vaue|joint.task.label": ("soft",),
}.items() for name, value in C.choices(path, values).items()} | {
    "agg=sum_capped": CAPPED, "prefilter": CAPPED | {"active.strategies.ccrl.prefilter": "prefilter"},
    "calibrate": {f"stages.{name}.plateau.calibrate": True for name in VQMES} | {
        "stages.vaue.plateau": dict(PLATEAU, every=1 << 30, calibrate=True)}}  # of the last state; all updates are made
VARIANTS = {
    "people": {"active.oracle.name": "people"}, "qa": {"active.unit": "qa"},
    "shown": {"active.pool.shown": True, "active.val.shown": True}, "large": C.under(MCANS, {
        "model.width": 1024, "model.mlp": 4096, "model.flat": 2048, "optim.schedule.lr": 7e-5}), "test": {
        "active.protocol": "test", "active.pool": vqa("train2014", "val2014"), "active.answers.file": ANSWERS,
        "active.val": dict(vqa("test2015"), annotations=None), "active.regions": dict(name="store", paths=STORES)},
}

def get_config(arg: str | None = None):
    """`arg` like "entropy,badge,ablation=rate=printed,scale=tiny"."""
    probe = dict(lrs=(1e-2, 1e-3, 1e-4), share=0.1, batch_size=512, epochs=20, fusion="concat")  # 9.2: 17,000 updates
    config = C.base(hint=HINT, active=active(), stages=stages(), probe=probe, report={})
    return C.build(config, arg, order=METHODS, variants=VARIANTS, ablations=ABLATIONS, scales=SCALES, chains=CHAINS)
