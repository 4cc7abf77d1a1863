"""How often tests poll."""

LEAST_SECONDS, MOST_SECONDS = 0.02, 1.0


def pause(waited: float, least: float = LEAST_SECONDS, most: float = MOST_SECONDS) -> float:
    """Return the seconds until the next look: a tenth of the time waited so far, since each look costs the server too.

    An event is seen within a tenth of the time that it took, or within `least`, but never later than `most`;
    measurements set a small `most`.
    """
    return min(most, max(least, waited / 10))
