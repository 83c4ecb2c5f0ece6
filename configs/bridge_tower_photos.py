"""Bridge tower on small sets of real pictures: Flickr8k captions, then the task of `variant=`.

`flickr8k`: does a photo entail a sentence (three classes); `coco_vqa`: yes/no questions about COCO photos; `nlvr1`: is
a statement true of a drawing. `JAXVL_DATA` names the folder of `flickr8k/`, `coco_vqa/`, `nlvr1/`, `vocab.txt`, which
`python -m jaxvl.data vocabulary` learns from their training texts (4,000 pieces; why: docs/results.md). All
weights start from nothing. Chains and stages are those of configs/bridge_tower.py;
whatever the task, its stages are called `vqa`, so that launch/reproduce.py finds the score of every variant there.
"""

from __future__ import annotations

import os

from jaxvl import config as C

# fmt: off
DATA = os.environ.get("JAXVL_DATA", "data")
TEACH = dict(uni=True, cross=True, direction="student_teacher", queries="valid", heads="equal", tau=1.0)
STUDENTS, TEACHERS, PLAIN = ("pretrain", "vqa"), ("teacher_pretrain", "teacher_vqa"), ("plain_pretrain", "plain_vqa")
ORDER = (*TEACHERS, *STUDENTS, *PLAIN, "vqa_blind")
SIZE, WIDTH = 64, 64
OFF = dict(dropout=0.1, attn_dropout=0.0)
VILT = dict(name="vilt", width=WIDTH, heads=2, mlp=4 * WIDTH, depth=4, image_size=SIZE, patch=16, max_positions=40,
            dropout=0.1, classes=None, images=1, head_scale=2)


def reader(name: str, folder: str, file: str, **more: object) -> dict:
    return dict(name=name, files=f"{DATA}/{folder}/{file}", images=f"{DATA}/{folder}/images.zip", **more)


def parts(name: str, folder: str, file: str, held: str = "val", **more: object) -> dict:
    """The training part and the held-out part of a set."""
    return dict(train=reader(name, f"{folder}/train", file, **more), val=reader(name, f"{folder}/{held}", file, **more))


PHOTOS = parts("jsonl_captions", "flickr8k", "captions.jsonl")
TASKS = {
    "coco_vqa": parts("jsonl_vqa", "coco_vqa", "vqa_yesno.jsonl", image_template="%012d.jpg"),
    "flickr8k": parts("jsonl_entailment", "flickr8k", "entailment.jsonl"),
    "nlvr1": parts("jsonl_statements", "nlvr1", "examples.jsonl", held="dev", image_template="{identifier}-{k}.png",
                   permutations=6),
}


def stage(**values: object) -> dict:
    """What all stages share, under `values`."""
    shared = dict(
        weights=dict(vision=None, text=None, bridgetower=None, vilt=None), batch_size=16, epochs=None, steps=300,
        images=dict(augment=None, crop="squash", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        optim=dict(weight_decay=0.01, betas=(0.9, 0.98), eps=1e-8, clip=1.0, bounds=dict(temp=(0.02, 0.5)),
                   schedule=dict(name="cosine", lr=5e-4, min_lr=1e-5, warmup=0.05)),
    )
    return C.stage(**{**shared, **values})


def pretraining() -> dict:
    task = dict(name="pair_pretrain", itc=dict(mask_same_image=True), itm=dict(negatives="batch"))
    task |= dict(mlm=dict(prob=0.3, whole_word=False), distill=None)
    evals = dict(match=dict(name="match"))
    examples = dict(every_epochs=None, batch_size=32, examples=200)
    return stage(**PHOTOS, task=task, evals=evals, eval=examples, format=dict(name="caption", length=24, style="bert"))


def fine_tuning(**values: object) -> dict:
    """Of the variant "coco_vqa"; `VARIANTS` makes the others of it."""
    task = dict(name="classify", loss="bce", distill=None, top_n=2)
    text = dict(name="classify", field="question", length=24, style="bert")
    shared = dict(**TASKS["coco_vqa"], model=dict(classes=None), task=task, format=text,
                  answers=dict(file=None, top=None), evals=dict(vqa=dict(name="vqa"), majority=dict(name="majority")))
    return stage(**{**shared, **values})


def stages() -> dict:
    made = {name: pretraining() for name in ORDER if "pretrain" in name}
    match = dict(name="match", negatives=("random",))
    made["teacher_pretrain"] |= dict(steps=600, model=dict(VILT), evals=dict(match=match))
    made["teacher_pretrain"]["task"]["itc"] = None
    made["pretrain"]["teacher"] = dict(stage="teacher_pretrain", params=None)
    made["pretrain"]["task"]["distill"] = dict(TEACH, itm=("soft", "attn"), itc=("attn",), mlm=())
    made["teacher_vqa"] = fine_tuning(init_from="teacher_pretrain", model=dict(VILT))
    made["vqa"] = fine_tuning(init_from="pretrain", teacher=dict(stage="teacher_vqa", params=None))
    made["vqa"]["task"]["distill"] = dict(TEACH, hard=0.0, soft=1.0, attn=1.0, vqa_soft="bernoulli")
    made["plain_vqa"] = fine_tuning(init_from="plain_pretrain")
    made["vqa_blind"] = fine_tuning(init_from="plain_pretrain", images=None)
    return made


def classes(task: str, count: int) -> dict:
    """The variant whose task has `count` classes instead of answers."""
    values = {
        **TASKS[task], "answers": None, "task.loss": "ce", "format.field": "sentence",
        "evals": dict(vqa=dict(name="accuracy"), majority=dict(name="majority_class")),
    }
    asked = [name for name in ORDER if "vqa" in name]
    return C.under(asked, {**values, "model.classes": count})


FINE_ROWS = (
    ("ViLT teacher", "teacher_vqa", "vqa/"), ("student, distilled twice", "vqa", "vqa/"),
    ("not distilled", "plain_vqa", "vqa/"), ("text only (blind)", "vqa_blind", "vqa/"),
    ("majority", "plain_vqa", "majority/"),
)
REPORT = (dict(title="Accuracy on held-out pictures", columns=("accuracy",), rows=FINE_ROWS),)
ALONE, NO_CROSS = {"task.distill": None, "teacher": None}, C.under(STUDENTS, {"task.distill.cross": False})
ABLATIONS = {
    "distill=none": C.under(STUDENTS, ALONE), "distill=tcmd": NO_CROSS,
    "distill=cmd": {"stages.pretrain.task.distill.cross": False, **C.under(("vqa",), ALONE)},
    "distill=bridge": C.under(STUDENTS, {"task.distill.uni": False}),
    **{f"interaction={name}": {"model.interaction": name, **NO_CROSS} for name in ("shallow", "virt")},
    **C.choices("model.cross.order", ("post",)), **C.choices("model.cross.mapping", ("cross", "cumulative")),
    **C.choices("model.cross.bridge", ("none",)),
}
SHAPE = {"width": 64, "heads": 2, "mlp": 128, "image_size": 32}
TINY = {
    "text.vocab": "scenes",  # shipped; words that it lacks become [UNK]
    **{f"model.{key}": value for key, value in SHAPE.items()}, "model.vision.patch": 8,
    **C.under(TEACHERS, {**{f"model.{key}": value for key, value in SHAPE.items()}, "model.patch": 8}),
    **C.under(ORDER, {"steps": 2, "eval.examples": 32}),
}
SCALES = {"small": {}, "tiny": TINY}
VARIANTS = {"coco_vqa": {}, "flickr8k": classes("flickr8k", 3), "nlvr1": classes("nlvr1", 2)}


def get_config(arg: str | None = None) -> C.ConfigDict:
    """`arg`: stages to run, `variant=coco_vqa|flickr8k|nlvr1`, `ablation=`, `scale=tiny` (two steps a stage)."""
    model = dict(
        name="bridge_tower", width=WIDTH, heads=2, mlp=4 * WIDTH, image_size=SIZE, embed_dim=64, interaction="bridge",
        text=dict(arch="bert", depth=4, max_positions=40, **OFF), vision=dict(arch="vit", depth=4, patch=16),
        cross=dict(depth=2, order="pre", bridge="add", mapping="top", **OFF), classes=None, images=1,
    )
    hint = (f"JAXVL_DATA (now {DATA}) names the folder of flickr8k/, coco_vqa/, nlvr1/ and vocab.txt, made by: "
            f"python -m jaxvl.data vocabulary FILE.jsonl ... --size 4000 --output {DATA}/vocab.txt")
    config = C.base(hint=hint, text=dict(vocab=f"{DATA}/vocab.txt"), model=model, stages=stages(), report=REPORT)
    return C.build(config, arg, order=ORDER, variants=VARIANTS, ablations=ABLATIONS, scales=SCALES)
