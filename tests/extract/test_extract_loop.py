"""The loop gives every image its own regions in batches of one shape, leaves out unreadable ones, and can go on."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from extract_fakes import Quarters, grey_images

from jaxvl.data.regions import RecordError
from jaxvl.extract.loop import Done, extract


class Kept(dict):
    """A sink in memory."""

    def add(self, image_id, *, features, boxes, conf) -> None:
        if not features.any():
            raise RecordError("all zero")
        assert image_id not in self
        self[image_id] = (features.copy(), boxes.copy(), conf.copy())


IDS = [2, 11, 12, 40, 41, 50, 77]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 16])
def test_every_image_gets_its_regions_whatever_the_batch(batch_size):
    sink, extractor = Kept(), Quarters()
    assert extract(extractor, grey_images(IDS), sink, batch_size=batch_size) == Done(7, 0, {})
    assert list(sink) == IDS and set(extractor.shapes) == {(batch_size, 4, 4, 3)}
    for image_id, (features, boxes, conf) in sink.items():
        count = 2 if image_id < 10 else 4
        assert features.shape == (count, 3) and boxes.shape == (count, 4) and conf.shape == (count,)
        assert (features == image_id).all() and boxes[1].tolist() == [0.5, 0, 1, 0.5]


def test_images_that_cannot_be_read_are_left_out_with_the_reason():
    sink, seen = Kept(), []
    images = grey_images(IDS, bad=(11, 50, 77))
    done = extract(Quarters(), images, sink, batch_size=2, progress=lambda *at: seen.append(at))
    assert (done.written, sorted(done.failed)) == (4, [11, 50, 77])
    assert done.failed[50] == "50.png: cannot decode the image" and list(sink) == [2, 12, 40, 41]
    assert seen == [(2, 7), (4, 7), (6, 7), (7, 7)]


def test_images_that_the_store_refuses_do_not_stop_the_others():
    sink = Kept()
    done = extract(Quarters(), grey_images([0, 20, 30]), sink, batch_size=2)
    assert done == Done(2, 0, {0: "all zero"}) and list(sink) == [20, 30]


def test_it_goes_on_where_it_was_killed():
    sink = Kept()
    with pytest.raises(RuntimeError, match="killed"):
        extract(Quarters(), grey_images(IDS), sink, batch_size=2, progress=_killed)
    assert list(sink) == IDS[:2]
    assert extract(Quarters(), grey_images(IDS), sink, batch_size=2) == Done(5, 2, {})
    assert list(sink) == IDS and all((sink[i][0] == i).all() for i in IDS)
    assert extract(Quarters(), grey_images(IDS), sink) == Done(0, 7, {})


def _killed(done: int, total: int) -> None:
    raise RuntimeError("killed")


def test_no_more_images_are_read_ahead_than_a_few_batches():
    read, most, lock = [0], [0], threading.Lock()
    images = grey_images(list(range(10, 60)))

    class Slow(Quarters):
        def __call__(self, batch):
            with lock:
                most[0] = max(most[0], read[0] - 2 * len(self.shapes))
            return super().__call__(batch)

    def counted(image_id: int) -> np.ndarray:
        with lock:
            read[0] += 1
        return images.read(image_id)

    extract(Slow(), images._replace(read=counted), Kept(), batch_size=2)
    assert most[0] <= 6 and read[0] == 50
