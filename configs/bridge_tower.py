"""Bridge tower: a ViLT teacher, a dual encoder that it teaches twice, and what that is compared with.

Without an argument: the VQA recipe at `scale=small` on the embedded world; `:vqa`, `:nlvr2`, `:snli_ve`: of one task.
`scale=paper` is that of Huang and Guo, Computer Science 51(9), 2024; launch/reproduce.py runs its tables.
"""

from __future__ import annotations

from jaxvl import config as C

# fmt: off
VILT = dict(name="vilt", width=768, heads=12, mlp=3072, depth=12, image_size=224, patch=32, max_positions=40,
            dropout=0.1, classes=None, images=1, head_scale=2, eps=1e-12, mlm_tied=True)
TEXT, VISION = dict(arch="bert", eps=None, heads=None), dict(arch="vit", eps=None, heads=None)
OFF, CROSS = dict(dropout=0.0, attn_dropout=0.0), dict(depth=3, order="pre", bridge="add", mapping="top", eps=1e-12,
                  cumulative_scope="block", share_projection=True, heads=None, mlp=None)
TEACH = dict(uni=True, cross=True, direction="student_teacher", queries="valid", heads="equal", tau=1.0,
             word_align=False)  # True with text.teacher_vocab: a RoBERTa beside a WordPiece teacher
FINE, BLIND = ("vqa", "nlvr2", "snli_ve"), ("vqa_blind",)
TEACHERS, STUDENTS = ("teacher_pretrain", *(f"teacher_{task}" for task in FINE)), ("pretrain", *FINE)
PLAIN = ("plain_pretrain", "plain_vqa", "shallow_pretrain", "shallow_vqa", *BLIND)
ORDER = (*TEACHERS, *STUDENTS, *PLAIN)
PRETRAINING = [name for name in ORDER if "pretrain" in name]
CHAINS = {task: ("teacher_pretrain", f"teacher_{task}", "pretrain", task) for task in FINE}
CHAINS[""] = (*CHAINS["vqa"], *PLAIN)
HINT = "ViLT's repository says how its Arrow tables are made; docs/howto/import_and_export_weights.md, what weights fit"
COCO = tuple(f"coco_caption_karpathy_{split}" for split in ("train", "restval", "val"))
TABLES = dict(  # ViLT's: for training, and the last one to score on
    captions=("conceptual_caption_train_{0..29}", "sbu_{0..8}", "vg", *COCO), nlvr2=("nlvr2_train", "nlvr2_dev"),
    vqa=("vqav2_train", "vqav2_trainable_val", "vqav2_rest_val"), snli_ve=("snli_train", "snli_dev"))


def stage(kind: str, **values: object) -> dict:
    """What all stages share at paper size, under `values`."""
    files = [f"data/arrow/{name}.arrow" for name in TABLES[kind]]
    optim = dict(weight_decay=0.01, betas=(0.9, 0.98), eps=1e-8, clip=None, lr_mult={}, bounds=dict(temp=(0.001, 0.5)))
    shared = dict(
        train=dict(name="vilt_arrow", files=files[:-1]), val=dict(name="vilt_arrow", files=files[-1:]),
        images=dict(augment="randaug", crop="centre", scale=(0.9, 1.0), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        weights=dict(vision=None, text=None, bridgetower=None, vilt=None, take=None),  # foreign files to start from
        optim=dict(optim, schedule=dict(name="linear", lr=5e-5, warmup=0.1)), batch_size=128, epochs=25,
    )
    return C.stage(**{**shared, **values})


def pretraining() -> dict:
    """Matching, contrastive and masked-language losses (specification, section 8)."""
    parts = dict(itc=dict(mask_same_image=True), itm=dict(negatives="batch"), mlm=dict(prob=0.15, whole_word=False))
    task = dict(name="pair_pretrain", **parts, distill=None)
    evals = dict(match=dict(name="match"), retrieval=dict(name="retrieval", k_test=16))
    return stage("captions", task=task, evals=evals, format=dict(name="caption", length=40, style="bert"))


def fine_tuning(task: str, **values: object) -> dict:
    """3,129 answers as so many yes/no decisions; statements and hypotheses as classes (section 9)."""
    asks = task == "vqa"
    scores = [("vqa", "vqa"), ("majority", "majority")] if asks else [("accuracy",) * 2, ("majority", "majority_class")]
    sizes = dict(vqa=dict(epochs=10, batch_size=64), nlvr2=dict(epochs=20), snli_ve=dict(epochs=5, batch_size=64))
    shared = dict(
        task=dict(name="classify", loss="bce" if asks else "ce", distill=None, top_n=10),
        format=dict(name="classify", field="question" if asks else "sentence", length=40, style="bert"),
        model=dict(vqa=dict(classes=3129), nlvr2=dict(images=2, classes=2), snli_ve=dict(classes=3))[task],
        answers=dict(file="data/vqa_v2/answers.json", top=None) if asks else None,  # of python -m jaxvl.data answers
        eval=dict(every_epochs=1.0, batch_size=64, examples=None, best=f"{scores[0][0]}/accuracy"),
        evals={key: dict(name=name) for key, name in scores} | dict(speed=dict(name="speed", cached=False)))
    return stage(task, **{**shared, **sizes[task], **values})


def stages() -> dict:
    """The recipe at paper size; `SCALES` changes sizes and sources."""
    made = {name: pretraining() for name in ("teacher_pretrain", "pretrain", "plain_pretrain", "shallow_pretrain")}
    made["teacher_pretrain"] |= dict(model=dict(VILT), evals=dict(match=dict(name="match", negatives=("random",))))
    made["teacher_pretrain"]["task"]["itc"] = None
    made["pretrain"]["teacher"] = dict(stage="teacher_pretrain", params=None)
    made["pretrain"]["task"]["distill"] = dict(TEACH, itm=("soft", "attn"), itc=("attn",), mlm=())
    for task in FINE:
        teacher = made[f"teacher_{task}"] = fine_tuning(task, init_from="teacher_pretrain", epochs=10)
        teacher |= dict(model={**VILT, **teacher["model"]}, batch_size=128 if task == "nlvr2" else 256)
        teacher["optim"] |= dict(new_lr_mult=10.0 if task == "vqa" else 1.0, new=("class_head",))
        teacher["optim"]["schedule"]["lr"] = 1e-4
        made[task] = fine_tuning(task, init_from="pretrain", teacher=dict(stage=f"teacher_{task}", params=None))
        made[task]["task"]["distill"] = dict(TEACH, hard=0.0, soft=1.0, attn=1.0, vqa_soft="bernoulli")
    made |= {f"{name}_vqa": fine_tuning("vqa", init_from=f"{name}_pretrain") for name in ("plain", "shallow")}
    made["shallow_pretrain"]["model"]["interaction"] = made["shallow_vqa"]["model"]["interaction"] = "shallow"
    made["vqa"]["evals"]["speed"] = made["plain_vqa"]["evals"]["speed"] = dict(name="speed", cached=True)
    made["vqa_blind"] = fine_tuning("vqa", init_from="plain_pretrain", images=None, evals=dict(vqa=dict(name="vqa")))
    return made

PAIR = {task: (("ViLT teacher", f"teacher_{task}", ""), ("student, distilled twice", task, "")) for task in FINE}
REST = ("not distilled", "plain_vqa", ""), ("shallow interaction", "shallow_vqa", ""), ("blind (no image)", *BLIND, "")
SPEED, SCORE = ("speed/ms_per_pair", "speed/ms_per_pair/cached"), ("accuracy/accuracy", "accuracy/consistency")
COLUMNS = (*(f"vqa/accuracy{kind}" for kind in ("", "/yes_no", "/number", "/other")), *SPEED)
REPORT = (
    dict(title="VQA accuracy (official) and milliseconds a pair", columns=COLUMNS, rows=(*PAIR.pop("vqa"), *REST)),
    dict(title="Majority answer", columns=("accuracy", "by_type/accuracy"), rows=(("VQA", "vqa", "majority/"),)),
    *(dict(title=t, columns=(*SCORE, "majority/accuracy", SPEED[0]), rows=r) for t, r in PAIR.items()),
)

def small(size: int, width: int, depth: int, pairs: int, questions: int, held: int) -> dict:
    """Embedded world, pictures of `size` pixels, without augmentation: texts name sides and colours."""
    names = dict(vqa="scenes_vqa", nlvr2="scenes_statements", snli_ve="scenes_entailment", pretrain="scenes_captions")
    shape = {"model.width": width, "model.heads": width // 32, "model.mlp": 4 * width, "model.image_size": size}
    values = {
        "text.vocab": "scenes", **shape, "model.embed_dim": 64,
        "model.text": dict(TEXT, depth=depth, max_positions=40, **OFF),
        "model.vision": dict(VISION, depth=depth, patch=8), "model.cross": dict(CROSS, depth=2, **OFF),
        **C.under(ORDER, {"epochs": 1, "batch_size": 16, "format.length": 20, "optim.clip": 1.0, "eval.best": None}),
        **C.under(TEACHERS, {**shape, "model.patch": 8, "model.depth": depth + 1, "model.dropout": 0.0}),
        **C.under([name for name in ORDER if name not in BLIND], {"images.augment": None}),
        **C.under(PRETRAINING, {"task.mlm.prob": 0.3}),
    }
    for name in ORDER:
        task = next(task for task in names if task in name)
        reader = dict(name=names[task], image_size=size, objects=(1, 2), **({"hard": 0.15} if task == "vqa" else {}))
        seen, kept, rate = (pairs, held, 1e-3) if task == "pretrain" else (questions, 4 * held, 7e-4)
        seen *= 3 if name in TEACHERS else 1  # a teacher has to know more than its student
        found = dict(train=dict(reader, split="train", size=seen), val=dict(reader, split="val", size=kept))
        found |= {"optim.schedule": dict(name="cosine", lr=rate, min_lr=2e-5, warmup=0.05)}
        values |= C.under((name,), found | ({"answers.file": "scenes", "model.classes": None} if task == "vqa" else {}))
    return values | {"stages.teacher_vqa.optim.new_lr_mult": 1.0}


TOWERS = {"weights.text": "data/bert-base-uncased", "weights.vision": "data/vit-base-patch32-224-in21k"}
PUBLISHED = {"weights.vilt": "data/vilt_200k_mlm_itm.ckpt", "steps": 0}  # only evaluated; its decoder is untied
PAPER = {"hint": HINT, **C.under(PRETRAINING[1:], TOWERS), **C.under(PRETRAINING[:1], PUBLISHED),
         **C.under(TEACHERS, {"model.mlm_tied": False})}
SCALES = {"tiny": small(32, 64, 2, 64, 64, 8), "small": small(48, 96, 4, 5_000, 12_000, 200), "paper": PAPER}
ALONE, NO_CROSS = {"task.distill": None, "teacher": None}, C.under(STUDENTS, {"task.distill.cross": False})
ABLATIONS = {  # tables 4 to 8
    "distill=none": C.under(STUDENTS, ALONE), "distill=tcmd": NO_CROSS,
    "distill=cmd": {"stages.pretrain.task.distill.cross": False, **C.under(FINE, ALONE)},
    "distill=bridge": C.under(STUDENTS, {"task.distill.uni": False}),
    **{f"interaction={name}": {"model.interaction": name, **NO_CROSS} for name in ("shallow", "virt")},
    "negatives=dataset": C.under(PRETRAINING, {"task.itm.negatives": "dataset"}),
    **C.choices("model.cross.order", ("post",)), **C.choices("model.cross.mapping", ("cross", "cumulative")),
    **C.choices("model.cross.bridge", ("none", "scaled_add", "interpolate")),
    "teacher_student": C.under(STUDENTS, {"task.distill.direction": "teacher_student"}),
    "from_teacher": {"model.text.arch": "vilt", "model.vision.arch": "vilt", "stages.pretrain.init_from": TEACHERS[0],
                     **C.under(PRETRAINING[1:], {"weights.text": None, "weights.vision": None})},
}

def get_config(arg: str | None = None) -> C.ConfigDict:
    """`arg`: stages or chains to run, then `scale=`, `ablation=` (joined by +); e.g. `"nlvr2,ablation=order=post"`."""
    tower = dict(text=dict(TEXT, depth=12, max_positions=None, dropout=0.1, attn_dropout=0.1), vision=dict(
        VISION, depth=12, patch=32), cross=dict(CROSS, dropout=0.1, attn_dropout=0.1), interaction="bridge")
    heads = dict(classes=None, images=1, embed_dim=256, temp=0.07, head_scale=1, head_dropout=None, mlm_tied=False)
    model = dict(name="bridge_tower", width=768, heads=12, mlp=3072, image_size=224, **tower, **heads)
    text = dict(vocab="data/bert-base-uncased", teacher_vocab=None)
    config = C.base(text=text, model=model, stages=stages(), report=REPORT)
    return C.build(config, arg, order=ORDER, chains=CHAINS, variants={}, ablations=ABLATIONS, scales=SCALES)
