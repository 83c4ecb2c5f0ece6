"""Answer questions about images with a trained run.

    python launch/predict.py --workdir=runs/demo --image=photo.jpg --question="what colour is the circle?"

    python launch/predict.py --workdir=runs/bridge --image=scene.png --question="is there a star?" --attention=look.png

Several `--image` and `--question` flags pair up one to one; one image takes any number of questions, and one question
is asked of any number of images. `--attention` draws where a classifier of pairs (Bridge tower, ViLT) looks for each
word of one question about one image.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from absl import app, flags

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished run.")
IMAGE = flags.DEFINE_multi_string("image", None, "Image file; repeat for several.")
QUESTION = flags.DEFINE_multi_string("question", None, "Question; repeat for several.")
TOP_K = flags.DEFINE_integer("top_k", 5, "Answers to show for each question.", lower_bound=1)
STAGE = flags.DEFINE_string(
    "stage", None, "Stage to use; the default is the first finished one that answers."
)
ATTENTION = flags.DEFINE_string(
    "attention", None, "PNG to draw where the model looks; one image and question."
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    logging.getLogger("jax").setLevel(logging.WARNING)  # a machine without TPU need not be told so
    import jaxvl
    from jaxvl import plots

    try:
        images, questions = pairs(IMAGE.value, QUESTION.value)
        model = jaxvl.load(WORKDIR.value, stage=STAGE.value)
        if ATTENTION.value is not None:
            check_attention(model, images)
        found = model.answer(images, questions, top_k=TOP_K.value)
        if ATTENTION.value is not None:
            plots.attention(*model.attention(images[0], questions[0]), path=ATTENTION.value)
    except (ValueError, OSError, KeyError) as e:
        print(f"{type(e).__name__}: {e}", file=sys.stderr)
        sys.exit(2)
    for image, question, answers in zip(images, questions, found, strict=True):
        print(f"{image}\n  {question}")
        for a in answers:
            print(f"    {a.probability:6.1%}  {a.text}")
    if ATTENTION.value is not None:
        print(f"where it looks: {ATTENTION.value}")


def check_attention(model: Any, images: list[str]) -> None:
    """Raise ValueError where there is nothing to draw; says why."""
    if len(images) != 1:
        raise ValueError(f"--attention draws one image with one question, not {len(images)}")
    if not hasattr(model, "attention"):
        raise ValueError(
            "--attention: this stage generates answers; only classifiers of pairs show where they look"
        )


def pairs(images: list[str], questions: list[str]) -> tuple[list[str], list[str]]:
    """Both lists at the same length; the error says which flags to give."""
    from jaxvl.serve import pair_up

    try:
        return pair_up(images, questions)
    except ValueError as e:
        raise ValueError(f"{e}: give as many --image as --question flags, or a single one of either") from e


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir", "image", "question"])
    app.run(main)
