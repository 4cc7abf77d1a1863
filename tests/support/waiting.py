"""How often tests look at what they wait for."""

LEAST_SECONDS, MOST_SECONDS = 0.02, 1.0


def pause(waited: float, least: float = LEAST_SECONDS, most: float = MOST_SECONDS) -> float:
    """Return the seconds until the next look, a tenth of those that were waited: a look costs what is looked at, too.

    What takes long is looked at rarely, and yet seen within a tenth of the time that it took, or within `least`,
    and never later than `most`, which who measures has small.
    """
    return min(most, max(least, waited / 10))
