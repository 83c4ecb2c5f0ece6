"""Proves the loader: one order for any workers, processes and start; augmentation from (seed, epoch, id) alone;
unreadable images replaced, counted, and refused when there are too many."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from data_fakes import VOCAB, FakeCaptions

from jaxvl.data.images import ImageError, ImageTransform
from jaxvl.data.loader import Loader, evaluation_batches
from jaxvl.data.source import CaptionFormat, Examples, Subset
from jaxvl.data.text import Tokenizer

TOK = Tokenizer.from_vocab(VOCAB)
SIZE, BATCH = 50, 8  # 6 steps an epoch, 2 examples dropped


def source(size: int = SIZE, broken: tuple[int, ...] = ()) -> Examples:
    return Examples(FakeCaptions(size, broken), CaptionFormat(TOK, length=6), ImageTransform(16))


def loader(**changes) -> Loader:
    return Loader(**{"source": source(), "batch_size": BATCH, "seed": 3, **changes})


def take(start: int, stop: int, **changes) -> list[dict[str, np.ndarray]]:
    with loader(**changes).batches(start, stop) as batches:
        return list(batches)


def assert_equal(ours, reference) -> None:
    assert len(ours) == len(reference)
    for a, b in zip(ours, reference, strict=True):
        assert set(a) == set(b)
        for name in a:
            assert type(a[name]) is np.ndarray and a[name].dtype == b[name].dtype
            assert np.array_equal(a[name], b[name]), name


@pytest.fixture(scope="module")
def reference() -> list[dict[str, np.ndarray]]:
    return take(0, 14, threads=0)


def test_batches_have_the_documented_arrays(reference):
    assert {k: (v.shape, str(v.dtype)) for k, v in reference[0].items()} == {
        "image": ((8, 16, 16, 3), "float32"), "text": ((8, 6), "int32"), "text_mask": ((8, 6), "bool"),
        "image_id": ((8,), "int32"), "id": ((8,), "int32"), "mask": ((8,), "bool"),
    }  # fmt: skip
    assert all(batch["mask"].all() for batch in reference)


def test_an_epoch_shows_every_example_at_most_once_and_epochs_differ(reference):
    assert loader().steps_per_epoch == 6
    first, second = (np.concatenate([b["id"] for b in reference[e * 6 : e * 6 + 6]]) for e in (0, 1))
    for ids in (first, second):
        assert len(set(ids.tolist())) == 48 and ids.min() >= 0 and ids.max() < SIZE
    assert not np.array_equal(first, second) and not np.array_equal(first, np.sort(first))


def test_another_seed_gives_another_order(reference):
    assert not np.array_equal(take(0, 1, seed=4)[0]["id"], reference[0]["id"])


@pytest.mark.parametrize("threads", [1, 3, None])
def test_threads_do_not_change_a_batch(threads, reference):
    assert_equal(take(0, 14, threads=threads), reference)


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_neither_batches_nor_replacements(workers):
    here, there = loader(source=source(200, (7,))), loader(source=source(200, (7,)), workers=workers)
    assert_equal(list(there.batches(5, 50)), list(here.batches(5, 50)))
    assert there.unreadable == here.unreadable == {7: 2}


@pytest.mark.parametrize("count", [2, 4])
def test_processes_hold_contiguous_parts_of_the_same_global_batch(count, reference):
    parts = [take(0, 14, processes=(index, count)) for index in range(count)]
    joined = [{k: np.concatenate([p[s][k] for p in parts]) for k in reference[s]} for s in range(14)]
    assert_equal(joined, reference)


@pytest.mark.parametrize("start", [4, 6, 11])
def test_starting_later_continues_the_same_run(start, reference):
    assert_equal(take(start, 14), reference[start:])


def test_a_far_step_is_reached_at_once_and_an_endless_iterator_goes_on(reference):
    with loader().batches() as batches:
        assert_equal(list(itertools.islice(batches, 3)), reference[:3])
    assert len(take(10**9, 10**9 + 1)) == 1


def test_augmentation_depends_on_seed_epoch_and_id_only():
    def images(batches):
        return {(e, int(i)): b["image"][r] for e, b in batches for r, i in enumerate(b["id"])}

    by_eight = images([(s // 6, b) for s, b in enumerate(take(0, 12))])
    by_two = images([(s // 25, b) for s, b in enumerate(take(0, 50, batch_size=2))])
    shared = by_eight.keys() & by_two.keys()
    assert len(shared) > 90 and all(np.array_equal(by_eight[k], by_two[k]) for k in shared)
    both = {i for e, i in by_eight if e == 0} & {i for e, i in by_eight if e == 1}
    assert not any(np.array_equal(by_eight[0, i], by_eight[1, i]) for i in both)


def test_without_augmentation_examples_are_those_of_evaluation():
    batch = take(0, 1, augment=False)[0]
    for row, i in enumerate(batch["id"]):
        assert np.array_equal(batch["image"][row], source()[int(i)]["image"])


def test_unreadable_images_are_replaced_by_the_same_examples_everywhere():
    broken = (7,)
    ours = loader(source=source(200, broken))
    batches = list(ours.batches(0, 50))
    assert (
        ours.replaced == 2 and ours.unreadable == {7: 2} and ours.drawn == 400
    )  # once in each of two epochs
    assert all(7 not in b["id"] and "_replaced" not in b for b in batches)
    healthy = take(0, 50, source=source(200))
    changed = [(s, r) for s in range(50) for r in range(BATCH) if healthy[s]["id"][r] != batches[s]["id"][r]]
    assert [int(healthy[s]["id"][r]) for s, r in changed] == [7, 7]


def test_too_many_unreadable_images_fail_and_are_named():
    batches = loader(source=source(200, tuple(range(0, 200, 20)))).batches()
    message = r"\d of \d+ examples could not be read, more than 1%: (\d0\.jpg, )+\d0\.jpg\. Check .*: python -m jaxvl"
    with pytest.raises(ImageError, match=message):
        list(itertools.islice(batches, 40))
    assert list(batches) == []  # closed


def test_a_source_without_any_readable_image_fails_at_once():
    with pytest.raises(
        ImageError, match=r"and 9 others drawn in its place.*broken\d+\.jpg: cannot decode.*Check"
    ):
        take(0, 1, source=source(SIZE, tuple(range(SIZE))))


def test_evaluation_keeps_the_order_and_marks_the_padding():
    batches = list(evaluation_batches(source(10), 4))
    assert [b["id"].tolist() for b in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 9, 9]]
    assert batches[-1]["mask"].tolist() == [True, True, False, False]
    assert np.array_equal(batches[0]["image"][2], source()[2]["image"])
    assert len(list(evaluation_batches(Subset(source(), [1, 2]), 2))) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_replaces_nothing(workers):
    with pytest.raises(ImageError, match=r"broken3\.jpg"):
        list(evaluation_batches(source(10, (3,)), 4, workers=workers))


def test_closing_ends_the_iterator_and_its_threads():
    before = threading.active_count()
    batches = loader(threads=2).batches()
    next(batches)
    batches.close()
    batches.close()
    assert next(batches, None) is None
    for thread in threading.enumerate()[before:]:
        thread.join(5)
    assert threading.active_count() <= before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 51}, r"batch_size=51 exceeds the 50 examples"),
        (
            {"batch_size": 9, "processes": (0, 2)},
            "batch_size=9 must be a positive multiple of the 2 processes",
        ),
        ({"batch_size": 0}, "must be a positive multiple"),
        ({"processes": (2, 2)}, r"processes=\(index, count\) is \(2, 2\)"),
    ],
)
def test_wrong_sizes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        loader(**changes)


def test_wrong_steps_are_refused():
    with pytest.raises(ValueError, match="steps 5 to 4 are not a range"):
        loader().batches(5, 4)


def test_unequal_shapes_are_named():
    class Uneven(Examples):
        def augmented(self, i, rng):
            return {"text": np.zeros(i + 1)}

    uneven = Uneven(FakeCaptions(8), CaptionFormat(TOK), 4)
    with pytest.raises(ValueError, match=r"'text' has unequal shapes within a batch: \[\(1,\), \(2,\)"):
        take(0, 1, source=uneven)
