"""Original, the model before unlearning: what every method starts from, and what doing nothing gives."""

import copy


def unlearn(f_o, split, settings):
    """Return a copy of f_o; the split and the settings are not read. See `baselines` for the parameters."""
    return copy.deepcopy(f_o).eval()
