"""httpcalls.py: when an answer says to ask again."""

import pytest

from httpcalls import seconds_of

DATE = "Sun, 29 Nov 2026 10:00:00 GMT"


@pytest.mark.parametrize(("retry_after", "date", "seconds"), [
    (None, DATE, None),
    ("7", None, 7.0),
    (" 1.5 ", None, 1.5),
    ("-3", DATE, 0.0),
    ("Sun, 29 Nov 2026 10:00:09 GMT", DATE, 9.0),
    ("Sunday, 29-Nov-26 10:00:09 GMT", DATE, 9.0),
    ("Sun, 29 Nov 2026 09:00:00 GMT", DATE, 0.0),
    ("Sun, 29 Nov 2026 10:00:09 GMT", "yesterday", None),
    ("soon", DATE, None),
    ("", DATE, None),
    ("inf", DATE, None),
    ("nan", DATE, None),
])
def test_seconds_of(retry_after: str | None, date: str | None, seconds: float | None) -> None:
    assert seconds_of(retry_after, date) == seconds
