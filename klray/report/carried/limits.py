"""How much of a result one HTML file carries. The only place where that is decided.

A file of 2,000 models is to stay below 4 MB, one of 10,000 below 10 MB. Numbers are written as base64, four bytes for
three; what compression saves is not counted on. Shapes: K = models.
"""

BASE64 = 4 / 3
PAIR_BYTES = 8  # KL and standard error, float32 each
NEIGHBOUR_BYTES = 12  # position, KL, standard error
ALL_PAIRS_MODELS = 1024  # 523,776 pairs: 5.6 MB at most, about half of it when packed
SAMPLE_MODELS = 384  # of more models, taken evenly: 73,536 pairs, 0.8 MB
NEIGHBOURS_BYTES = 1_200_000  # 10 of each of 10,000 models, 30 of each of 2,000: 1.6 MB
MOST_NEIGHBOURS = 30
ROWS_VALUES = 400_000  # log-likelihoods, float32: 2.1 MB; 1,000 models on 400 texts, 40 on 10,000
PICTURE_BYTES = 250_000  # of a picture in the page; a larger one is made smaller there, six of them are 2 MB
SETTING_PAIRS = 1000  # of one setting of the scale; of more pairs their quantiles stand for them


def carried_models(n_models: int) -> int:
    """Of how many models the page has the KL of every pair."""
    return n_models if n_models <= ALL_PAIRS_MODELS else SAMPLE_MODELS


def carried_neighbours(n_models: int) -> int:
    """How many of the nearest models of each the page has.

    >>> carried_neighbours(2_000), carried_neighbours(10_000), carried_neighbours(4)
    (30, 10, 3)
    """
    fitting = NEIGHBOURS_BYTES // (NEIGHBOUR_BYTES * max(n_models, 1))
    return max(1, min(MOST_NEIGHBOURS, fitting, n_models - 1))
