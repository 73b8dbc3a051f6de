"""Gold labels by the model of Dawid and Skene, as crowd-kit fits it: people differ in how they confuse labels.

Source: Dawid and Skene 1979, Applied Statistics 28(1); crowd-kit's `DawidSkene`, an optional dependency.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from raters.records import ConfigError

_ITERATIONS = 100


def dawid_skene(
    items: NDArray[np.int64], annotators: NDArray[np.int64], numbers: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the most probable number of each item, in ascending order of the items.

    Labels count as unordered. Nothing is drawn, so the same labels give the same gold.

    Args:
        items: (rows,) item of each label.
        annotators: (rows,) who gave it.
        numbers: (rows,) label as the scale's number.

    Raises:
        ConfigError: If crowd-kit is not installed.
    """
    try:
        import pandas
        from crowdkit.aggregation import DawidSkene
    except ImportError as error:
        raise ConfigError("dawid-skene: needs crowd-kit; pip install -e '.[dawid-skene]'") from error
    table = pandas.DataFrame({"task": items, "worker": annotators, "label": numbers})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what crowd-kit does in pandas's older ways is nothing that a user can mend
        found = DawidSkene(n_iter=_ITERATIONS).fit_predict(table)
    return np.asarray(found.sort_index().to_numpy(), np.float64)
