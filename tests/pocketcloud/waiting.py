"""How often tests look at what they wait for."""

LEAST_SECONDS = 0.02
MOST_SECONDS = 0.1


def pause(waited: float, most: float = MOST_SECONDS) -> float:
    """Return the seconds until the next look, a tenth of those that were waited: a look costs what is looked at, too.

    What takes long is looked at rarely, and yet seen within a tenth of the time that it took, or within `most`.
    """
    return min(most, max(LEAST_SECONDS, waited / 10))
