"""The registry of unlearning methods.

A method is a module with one function, ``unlearn(f_o, split, settings) -> model``: given the pre-unlearning model
(not to be changed), the split and the settings (`config.settings`), it returns a model in evaluation mode whose
forward gives (logits, representation). To add one: a file, a line here, a row in `config.HYPERPARAMETERS`.
"""

import camu
from baselines import retrain

METHODS = {
    "Retrain": retrain,
    "CaMU": camu,
}
