"""Text to token ids: WordPiece, the caption and question clean-up of ALBEF, answers to generate.

Shape legend: `L` text length, `A` answers, `La` answer length. A text is `[CLS] pieces` with **no** trailing
`[SEP]`, as ALBEF feeds its encoder; an answer is `[CLS] pieces [SEP]`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_TOKENS = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")  # the same parts, of byte-level BPE
SETTINGS = "tokenizer_config.json"  # beside a vocab.txt
SPACE = "\u0120"  # how byte-level BPE writes the space before a word
_DELETED = re.compile(r"[,.'!?\"()*#:;~]")
_SPACES = re.compile(r"\s+")


def _strip_punctuation(text: str) -> str:
    text = _DELETED.sub("", text.lower())
    return text.replace("-", " ").replace("/", " ").replace("<person>", "person")


def clean_caption(text: str, *, max_words: int = 30) -> str:
    """Lower-case, drop punctuation, collapse white space, keep `max_words` words (`salesforce/ALBEF`)."""
    return " ".join(_SPACES.sub(" ", _strip_punctuation(text)).strip().split(" ")[:max_words])


def clean_question(text: str, *, max_words: int = 30) -> str:
    """As `clean_caption`, but only trailing spaces go: runs of spaces stay and count as words, as in ALBEF.

    ALBEF keeps 30 words in training and 50 at test.
    """
    return " ".join(_strip_punctuation(text).rstrip().split(" ")[:max_words])


class Tokenizer:
    """WordPiece ids of a text, BERT's normalisation; from a `tokenizer.json` also RoBERTa's byte-level BPE.

    Build it with `Tokenizer.from_vocab`. Attributes: `size`, `pad_id`, `unk_id`, `cls_id`, `sep_id`, `mask_id`,
    `byte_level` (True for byte-level BPE).
    Instances can be pickled, so loader processes can hold one.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, origin: str) -> None:
        self.byte_level = isinstance(backend.decoder, decoders.ByteLevel)
        names = ROBERTA_TOKENS if self.byte_level else SPECIAL_TOKENS
        special = {token: backend.token_to_id(token) for token in names}
        missing = [token for token, i in special.items() if i is None]
        if missing:
            kind = "RoBERTa" if self.byte_level else "BERT"
            raise ValueError(
                f"{origin}: the vocabulary lacks {', '.join(missing)}. "
                f"A {kind} vocabulary holds {' '.join(names)}: add the missing lines."
            )
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self.origin = origin
        self.size: int = 1 + max(backend.get_vocab().values())
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            i for i in special.values() if i is not None
        )

    @classmethod
    def from_vocab(cls, vocab: Sequence[str] | str | Path, *, lowercase: bool | None = None) -> Tokenizer:
        """Tokenizer of a list of tokens, a `vocab.txt`, a `tokenizer.json`, or a folder that holds one of them.

        Args:
          vocab: position in the list, or line in the file, is the id.
          lowercase: None means the folder's `tokenizer_config.json`, and True where there is none; not used for
            a `tokenizer.json`, which brings its own normaliser.

        Raises:
          FileNotFoundError: no such file, or a folder without a vocabulary.
          ValueError: repeated tokens or missing special tokens, by name.
        """
        if not isinstance(vocab, (str, Path)):
            return cls(word_piece(list(vocab), lowercase, origin="the given list"), origin="the given list")
        path = _vocabulary_file(Path(vocab).expanduser())
        if path.suffix == ".json":
            return cls(_from_json(path), origin=str(path))
        tokens = path.read_text(encoding="utf-8").splitlines()
        if lowercase is None:
            lowercase = configured_lowercase(path.with_name(SETTINGS))
        return cls(word_piece(tokens, lowercase, origin=str(path)), origin=str(path))

    @cached_property
    def continues(self) -> np.ndarray:
        """Bool `[size]`: the pieces that continue a word.

        Those of WordPiece begin with "##"; those of byte-level BPE lack the space before them, which the first word of
        a text lacks too (`losses.word_starts` knows that).
        """
        out = np.zeros(self.size, bool)
        special = {self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id}
        for token, i in self._backend.get_vocab().items():
            out[i] = not token.startswith(SPACE) if self.byte_level else token.startswith("##")
        out[list(special)] = False
        return out

    def difference(self, other: Tokenizer) -> str | None:
        """The first id that is another piece in `other`, in words; None if both have one vocabulary."""
        ours, theirs = ({i: piece for piece, i in t._backend.get_vocab().items()} for t in (self, other))
        for i in sorted(ours.keys() | theirs.keys()):
            if ours.get(i) != theirs.get(i):
                return f"id {i} is {ours.get(i)!r} here and {theirs.get(i)!r} there"
        return None

    def encode(self, text: str) -> list[int]:
        """Ids of the word pieces of `text`, without special tokens."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def located(self, text: str) -> tuple[list[int], list[tuple[int, int]], list[int]]:
        """Ids as of `encode`, the characters `(start, end)` of each, and the number of the word it was cut from."""
        found = self._backend.encode(text, add_special_tokens=False)
        alone = len(found.ids)  # a special token written in the text is a word of its own
        units = [alone + i if word is None else word for i, word in enumerate(found.word_ids)]
        return found.ids, found.offsets, units

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """What each id stands for, special tokens too: "[CLS]", "dog", "##s"; of byte-level BPE its characters."""
        if self.byte_level:
            return [self._backend.decode([int(i)], skip_special_tokens=False) for i in ids]
        return [self._backend.id_to_token(int(i)) or "?" for i in ids]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` without the special tokens."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def ids(self, text: str, length: int) -> tuple[np.ndarray, np.ndarray]:
        """`(ids [length] i32, mask [length] bool)`: `[CLS]`, then pieces cut to fit, then padding. No `[SEP]`."""
        return self._padded([self.cls_id, *self.encode(text)[: length - 1]], length)

    def answer_ids(self, answer: str, length: int) -> tuple[np.ndarray, np.ndarray]:
        """`(ids [length] i32, mask [length] bool)` of `[CLS] pieces [SEP]`.

        An answer that is too long is cut and then has no `[SEP]`: the model learns a true prefix of it, never
        that it ends there.
        """
        return self._padded([self.cls_id, *self.encode(answer), self.sep_id][:length], length)

    def save(self, path: str | Path) -> None:
        """Write a `tokenizer.json` that `from_vocab` reads back."""
        self._backend.save(str(path))

    def _padded(self, row: Sequence[int], length: int) -> tuple[np.ndarray, np.ndarray]:
        if length < 2:
            raise ValueError(f"a text length of {length} leaves no room for a word after [CLS]")
        ids = np.full(length, self.pad_id, np.int32)
        ids[: len(row)] = row
        return ids, np.arange(length) < len(row)


def answer_array(tokenizer: Tokenizer, answers: Sequence[str], *, length: int | None = None) -> np.ndarray:
    """Candidate answers as ids `[A, La]` i32, `[CLS] pieces [SEP]`; `length=None` takes that of the longest.

    Raises:
      ValueError: no answers, or answers longer than `length`: cut, two of them could become the same row.
    """
    if not answers:
        raise ValueError("the list of answers is empty")
    sizes = [len(tokenizer.encode(answer)) + 2 for answer in answers]
    if length is not None and max(sizes) > length:
        worst = answers[int(np.argmax(sizes))]
        raise ValueError(
            f"answer {worst!r} needs {max(sizes)} tokens, the answer length is {length}: raise it"
        )
    return np.stack([tokenizer.answer_ids(answer, length or max(sizes))[0] for answer in answers])


def word_piece(tokens: list[str], lowercase: bool | None, *, origin: str) -> tokenizers.Tokenizer:
    """BERT's tokenizer of some pieces, as the library holds it; `origin` is what an error names."""
    seen: dict[str, int] = {}
    for i, token in enumerate(tokens):
        if token in seen:
            raise ValueError(f"{origin}: token {token!r} stands at {seen[token]} and {i}: remove one of them")
        seen[token] = i
    lower = True if lowercase is None else lowercase
    backend = tokenizers.Tokenizer(models.WordPiece(seen, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lower, strip_accents=lower)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    # Special tokens written in a text ("a [MASK] dog") are kept whole, as BERT's own tokenizer does. One that
    # the vocabulary lacks must not be added here: it would get an id beyond the embedding table.
    backend.add_special_tokens([token for token in SPECIAL_TOKENS if token in seen])
    return backend


def _vocabulary_file(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such vocabulary. Give a vocab.txt, a tokenizer.json or a folder with one of them."
        )
    if not path.is_dir():
        return path
    for name in ("tokenizer.json", "vocab.txt"):
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f"{path}: the folder holds neither tokenizer.json nor vocab.txt")


def _from_json(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path}: not a tokenizer.json of the `tokenizers` library ({error})") from error


def configured_lowercase(config: Path) -> bool:
    """Whether vocabularies beside this `tokenizer_config.json` fold case; they do where there is none."""
    if not config.is_file():
        return True
    return bool(json.loads(config.read_text(encoding="utf-8")).get("do_lower_case", True))
