"""One writer at a time: the second one is told, with the error that its store raises, until the first lets go."""

from __future__ import annotations

import pytest

from jaxvl.atomic import Lock


def test_a_second_writer_is_told_and_a_third_comes_in_after_the_release(tmp_path):
    first = Lock(tmp_path, error=KeyError)
    with pytest.raises(KeyError, match="another process writes"):
        Lock(tmp_path, error=KeyError)
    first.release()
    first.release()  # twice is once
    Lock(tmp_path, error=KeyError).release()
