"""One writer at a time: the second one is told, with the error that its store raises, until the first lets go."""

from __future__ import annotations

import pytest

from jaxvl.atomic import Lock, read_jsonl


def test_a_second_writer_is_told_and_a_third_comes_in_after_the_release(tmp_path):
    first = Lock(tmp_path, error=KeyError)
    with pytest.raises(KeyError, match="another process writes"):
        Lock(tmp_path, error=KeyError)
    first.release()
    first.release()  # twice is once
    Lock(tmp_path, error=KeyError).release()


def test_lines_end_at_line_feeds_only(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": "one\u2028two\u0085three"}\n{"q": 2}\n', encoding="utf-8")
    assert read_jsonl(path) == [{"q": "one\u2028two\u0085three"}, {"q": 2}]
    path.write_text('{"q": 1}\n{"q"')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: not valid JSON"):
        read_jsonl(path)
