"""Options of tasks: mappings from a config become checked, immutable records; an absent part is None."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from jaxvl.distillation import DIRECTIONS, HEADS, QUERIES

T = TypeVar("T")
SAME = ("own", "image_id")
DEFAULTS: Mapping[str, Any] = MappingProxyType({})  # a part with all its default options


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Special token ids and the vocabulary size.

    `continues`: bool `[V]`, the pieces that continue a word; None = not known, which whole-word masking needs.
    """

    pad: int
    cls: int
    sep: int
    mask: int
    size: int
    continues: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Momentum:
    """Moving average of the parameters. `dropout="on"` keeps dropout active in its forward passes, as ALBEF does."""

    decay: float = 0.995
    dropout: str = "on"

    def __post_init__(self) -> None:
        one_of("momentum.dropout", self.dropout, ("on", "off"))
        within("momentum.decay", self.decay, 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Distill:
    """Weight `alpha` of the momentum copy's soft targets, reached linearly over `warmup_updates` updates."""

    alpha: float = 0.4
    warmup_updates: int = 0

    def __post_init__(self) -> None:
        within("distill.alpha", self.alpha, 0.0, 1.0)
        if self.warmup_updates < 0:
            raise ValueError(f"distill.warmup_updates={self.warmup_updates}: expected 0 or more")


@dataclasses.dataclass(frozen=True)
class Contrast:
    """Image-text contrastive loss.

    Attributes:
      targets: "own" = only the caption of the very example is positive; "image_id" = all texts of the image are.
      group: negatives of the batch come from consecutive groups of so many rows; None = the whole batch.
    """

    targets: str = "own"
    group: int | None = None

    def __post_init__(self) -> None:
        one_of("itc.targets", self.targets, SAME)


@dataclasses.dataclass(frozen=True)
class Matching:
    """Image-text matching loss.

    Attributes:
      negatives: "hard" = drawn in proportion to softmax of the contrastive similarity; "uniform".
      exclude: what is never drawn: the "own" row, or all rows of the same "image_id".
      group: as in `Contrast`.
    """

    negatives: str = "hard"
    exclude: str = "own"
    group: int | None = None

    def __post_init__(self) -> None:
        one_of("itm.negatives", self.negatives, ("hard", "uniform"))
        one_of("itm.exclude", self.exclude, SAME)


@dataclasses.dataclass(frozen=True)
class Masking:
    """Masked-language loss.

    Attributes:
      prob: selection probability of a token ("bernoulli" only).
      strategy: "bernoulli" = BERT's 80/10/10 corruption; "single" = one [MASK] per text.
      max_share: positions up to `ceil(max_share * L)` per text enter the vocabulary product; in the rare batch
        with more, the others follow in a second product, so that the loss is the same for any value. None = all.
      whole_word: select words, all their pieces at once, instead of pieces ("bernoulli" only); ViLT's recipe.
    """

    prob: float = 0.15
    strategy: str = "bernoulli"
    max_share: float | None = 0.5
    whole_word: bool = False

    def __post_init__(self) -> None:
        one_of("mlm.strategy", self.strategy, ("bernoulli", "single"))
        if self.whole_word and self.strategy != "bernoulli":
            raise ValueError(
                f'mlm.whole_word=True with mlm.strategy={self.strategy!r}: only "bernoulli" masks whole words'
            )
        within("mlm.prob", self.prob, 0.0, 1.0)
        within("mlm.max_share", 1.0 if self.max_share is None else self.max_share, 1e-6, 1.0)


@dataclasses.dataclass(frozen=True)
class InBatch:
    """Contrastive or matching loss whose negatives are other pairs of the batch.

    `mask_same_image`: pairs that show one image, by `batch["image_id"]`, are no negatives of each other.
    """

    mask_same_image: bool = True


@dataclasses.dataclass(frozen=True)
class Mismatching(InBatch):
    """Matching loss for which half of the pairs are broken up.

    `negatives`: "batch" = a broken text gets the image of another broken pair; "dataset" = it gets
    `batch["false_image"]`, drawn from the whole data set (`data.source.FalseImages`), as in ViLT.
    """

    negatives: str = "batch"

    def __post_init__(self) -> None:
        one_of("itm.negatives", self.negatives, ("batch", "dataset"))


@dataclasses.dataclass(frozen=True)
class Teaching:
    """How a fixed teacher is imitated; `distillation` has the definitions.

    Attributes:
      uni: attention simulated from the last layers of both towers imitates the teacher's.
      cross: the cross-attention of the last cross-modal layer does.
      direction: "student_teacher" = KL(S|T), as the paper writes it, or "teacher_student", also of categorical
        soft labels.
      queries: which text queries count, the "valid" ones or "all".
      heads: "equal" = head by head, "mean" = the mean over heads, for another number of heads.
      tau: temperature of categorical soft labels.
      word_align: the teacher has another tokenizer (`batch["teacher_text"]`), and attention is compared on the words
        that both cut at; for a RoBERTa beside a WordPiece teacher.
    """

    uni: bool = True
    cross: bool = True
    direction: str = "student_teacher"
    queries: str = "valid"
    heads: str = "equal"
    tau: float = 1.0
    word_align: bool = False

    def __post_init__(self) -> None:
        if self.word_align and self.queries == "all":
            raise ValueError(
                'distill.word_align=True with distill.queries="all": padding is no word; set distill.queries="valid"'
            )
        one_of("distill.direction", self.direction, DIRECTIONS)
        one_of("distill.queries", self.queries, QUERIES)
        one_of("distill.heads", self.heads, HEADS)
        if self.tau <= 0:
            raise ValueError(f"distill.tau={self.tau}: expected a positive number")

    def kl(self) -> dict[str, str]:
        """Keyword arguments of `distillation.attention_kl`."""
        return dict(direction=self.direction, queries=self.queries, heads=self.heads)


@dataclasses.dataclass(frozen=True)
class PairTeaching(Teaching):
    """What each pre-training loss takes over from the teacher, beside its hard labels; each term has weight 1.

    Attributes:
      itm: "soft" = soft labels, "attn" = attention (`uni`, `cross`) on the matching pairs, true and false alike.
      itc: "attn" = attention of the towers (`uni`) on the true pairs; "cross" = that of the cross-modal encoder as
        well, for which the pairs that matching broke up are fused once more.
      mlm: "soft" and "attn" as for `itm`, on the masked texts.
    """

    itm: Sequence[str] = ("soft", "attn")
    itc: Sequence[str] = ("attn",)
    mlm: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in (
            ("itm", ("soft", "attn")),
            ("itc", ("attn", "cross")),
            ("mlm", ("soft", "attn")),
        ):
            for value in getattr(self, name):
                one_of(f"distill.{name}", value, choices)
        if self.word_align and tuple(self.mlm):
            raise ValueError(
                f"distill.word_align=True with distill.mlm={tuple(self.mlm)}: the masked tokens of a student have no "
                "counterparts in another tokenizer's text; set distill.mlm=()"
            )


@dataclasses.dataclass(frozen=True)
class ClassTeaching(Teaching):
    """Weights of the hard loss, of the teacher's soft labels and of its attention.

    `vqa_soft`: soft labels of the loss "bce" are those of independent classes ("bernoulli") or one distribution
    ("softmax").
    """

    hard: float = 0.0
    soft: float = 1.0
    attn: float = 1.0
    vqa_soft: str = "bernoulli"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("distill.vqa_soft", self.vqa_soft, ("bernoulli", "softmax"))
        for name in ("hard", "soft", "attn"):
            if getattr(self, name) < 0:
                raise ValueError(f"distill.{name}={getattr(self, name)}: expected 0 or more")


def options(kind: type[T], name: str, given: Mapping[str, Any] | None) -> T | None:
    """`kind(**given)`, or None if the part is absent.

    Raises:
      ValueError: an unknown or a missing key; names it, with suggestions.
    """
    if given is None:
        return None
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in given:
        if key not in fields:
            raise ValueError(f"unknown option {name}.{key}: {suggestion(key, tuple(fields))}")
    required = [k for k, f in fields.items() if f.default is dataclasses.MISSING and k not in given]
    if required:
        raise ValueError(f"missing option {name}.{required[0]}: {kind.__name__} needs {', '.join(fields)}")
    return kind(**given)


def masking(given: Mapping[str, Any] | None, tokens: Tokens) -> Masking | None:
    """Options `mlm`, checked against the vocabulary.

    Raises:
      ValueError: whole words are asked for, and the tokens do not say where one begins.
    """
    found = options(Masking, "mlm", given)
    if found is not None and found.whole_word and tokens.continues is None:
        raise ValueError(
            "mlm.whole_word=True needs tokens.continues, which pieces continue a word (data.text.Tokenizer.continues)"
        )
    return found


def required(kind: type[T], name: str, given: Mapping[str, Any]) -> T:
    """`options` of a part that cannot be absent."""
    part = options(kind, name, given)
    if part is None:
        raise ValueError(f"{name} is None, but the task cannot do without: give {kind.__name__} options")
    return part


def one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: {suggestion(str(value), choices)}")


def within(name: str, value: float, low: float, high: float) -> None:
    """Raise ValueError unless `low <= value <= high`."""
    if not low <= value <= high:
        raise ValueError(f"{name}={value}: expected a number in [{low:g}, {high:g}]")


def suggestion(word: str, choices: Sequence[str]) -> str:
    """ "did you mean ...?" if something is close, and the full list in any case."""
    close = difflib.get_close_matches(word, choices, n=1)
    meant = f"did you mean {close[0]!r}? " if close else ""
    return f"{meant}expected one of {', '.join(choices)}"
