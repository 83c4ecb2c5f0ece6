"""Image-text retrieval: rank by contrastive similarity, then re-rank the best candidates by the matching head.

Shape legend: `I` images, `T` captions, `C` contrastive width, `P` patches, `D` width, `K` texts a row, `L` text
length. Scores are percentages. Source: Li et al., "Align before Fuse", NeurIPS 2021, section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxvl import scores
from jaxvl.data.source import Captions, Images, Subset
from jaxvl.types import Predict

AT = (1, 5, 10)


class RetrievalEval:
    """Recalls of text retrieval (tr: an image asks for its captions) and image retrieval (ir: the reverse).

    Every image is encoded once; its states then meet all texts that are to be compared with it. Candidates
    outside the best `k_test` rank below all others, by similarity.

    Args:
      k_test: candidates per query that the matching head re-ranks; None = similarity alone.
      texts_per_row: texts compared with one image in one row of a batch; rows share the image's keys and values.
      images_at_once: images whose states are held on the host at a time.

    Returns (when called):
      "tr_r1", "tr_r5", "tr_r10", "ir_r1", "ir_r5", "ir_r10" and "r_mean", their mean, for the final ranking;
      with re-ranking also "itc/..." for similarity alone. Percent.
    """

    def __init__(self, *, k_test: int | None = 128, texts_per_row: int = 8, images_at_once: int = 256):
        for name, value in (
            ("k_test", k_test),
            ("texts_per_row", texts_per_row),
            ("images_at_once", images_at_once),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        self.k_test, self.texts_per_row, self.images_at_once = k_test, texts_per_row, images_at_once

    def __call__(self, predict: Predict, source: Any) -> dict[str, float]:
        """Rank all images and captions of a caption source."""
        images, captions = Images(source), Captions(source)
        image, text = np.asarray(predict("image_embed", images)), np.asarray(predict("text_embed", captions))
        similarity = image @ text.T
        relevant = np.arange(len(images))[:, None] == np.asarray(captions.image_row)[None, :]
        itc = recalls(similarity, similarity.T, relevant=relevant)
        if self.k_test is None:
            return itc
        to_texts, to_images = candidates(similarity, k=self.k_test), candidates(similarity.T, k=self.k_test).T
        logits = self._match(predict, images, captions, to_texts | to_images)
        by_image = reranked(similarity, logits=logits, chosen=to_texts)
        by_text = reranked(similarity.T, logits=logits.T, chosen=to_images.T)
        final = recalls(by_image, by_text, relevant=relevant)
        return {**final, **{f"itc/{name}": value for name, value in itc.items()}}

    def _match(self, predict: Predict, images: Images, captions: Captions, wanted: np.ndarray) -> np.ndarray:
        """Match logits `[I,T]` of the wanted pairs, NaN elsewhere."""
        logits = np.full(wanted.shape, np.nan, np.float32)
        rows = [captions[j] for j in range(len(captions))]
        texts = {name: np.stack([row[name] for row in rows]) for name in ("text", "text_mask")}
        for start in range(0, len(images), self.images_at_once):
            block = np.arange(start, min(start + self.images_at_once, len(images)))
            pairs = ImageTexts(
                np.asarray(predict("image_states", Subset(images, block))),
                texts,
                wanted[block],
                texts_per_row=self.texts_per_row,
            )
            found = np.asarray(predict("match_logit", pairs))
            valid = pairs.columns >= 0
            image = np.broadcast_to(block[pairs.images][:, None], valid.shape)
            logits[image[valid], pairs.columns[valid]] = found[valid]
        return logits


class ImageTexts:
    """A source whose rows are one encoded image and `K` texts to compare it with.

    Args:
      states: `[I,P,D]`.
      texts: "text" and "text_mask" `[T,L]`.
      wanted: bool `[I,T]`.
      texts_per_row: `K`.

    Attributes:
      images: `[rows]`, the image of each row.
      columns: `[rows,K]`, its texts; -1 = filler.
    """

    def __init__(
        self, states: np.ndarray, texts: Mapping[str, np.ndarray], wanted: np.ndarray, *, texts_per_row: int
    ):
        self.states, self.texts = states, texts
        images, columns = [], []
        for i, row in enumerate(wanted):
            chosen = np.flatnonzero(row)
            for at in range(0, len(chosen), texts_per_row):
                part = chosen[at : at + texts_per_row]
                images.append(i)
                columns.append(np.pad(part, (0, texts_per_row - len(part)), constant_values=-1))
        self.images, self.columns = np.array(images), np.array(columns)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        columns = np.maximum(self.columns[i], 0)
        return {"image_states": self.states[self.images[i]], **{k: v[columns] for k, v in self.texts.items()}}

    def augmented(self, i: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The row itself: encoded images are not augmented."""
        return self[i]

    def annotation(self, i: int) -> dict[str, Any]:
        """Which image and texts the row holds."""
        return {"image_row": int(self.images[i]), "caption_rows": self.columns[i].tolist()}


def candidates(similarity: np.ndarray, *, k: int) -> np.ndarray:
    """Bool like `similarity [N,M]`: the `k` largest of each row; equal values enter by column."""
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    chosen = np.zeros(similarity.shape, bool)
    np.put_along_axis(chosen, order, True, axis=1)
    return chosen


def reranked(similarity: np.ndarray, *, logits: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Scores `[N,M]`: `logits` where `chosen`; elsewhere below all of them, ordered by `similarity`."""
    low = logits[chosen].min() - similarity.max() - 1.0
    return np.where(chosen, logits.astype(np.float64), similarity + low)


def recalls(by_image: np.ndarray, by_text: np.ndarray, *, relevant: np.ndarray) -> dict[str, float]:
    """Recalls in percent.

    Args:
      by_image: scores `[I,T]` by which an image ranks texts.
      by_text: scores `[T,I]` by which a text ranks images.
      relevant: bool `[I,T]`.
    """
    found: dict[str, float] = {}
    for name, table, truth in (("tr", by_image, relevant), ("ir", by_text, relevant.T)):
        ranks = scores.best_rank(table, relevant=truth)
        found |= {f"{name}_r{k}": 100.0 * share for k, share in scores.recalls(ranks, at=AT).items()}
    return {**found, "r_mean": float(np.mean(list(found.values())))}
