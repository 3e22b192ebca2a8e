"""The registry of unlearning methods.

A method is a module with one function, ``unlearn(f_o, split, settings) -> model``. Given the pre-unlearning model (not
to be changed), the split and the settings (`hyperparameters.settings`), it returns a model in evaluation mode whose
forward gives (logits, representation). What it must do before any request is a function ``prepare_shard`` beside it
(`baselines.sisa`). To add a method: a file, a line here, and a row in `hyperparameters.HYPERPARAMETERS`.
"""

import camu
from baselines import boundary, neggrad, original, retrain, scrub, sisa, teacher_student, unroll

METHODS = {
    "Retrain": retrain,
    "Original": original,
    "NegGrad": neggrad,
    "Boundary": boundary,
    "T-S": teacher_student,
    "SCRUB": scrub,
    "SISA": sisa,
    "Unroll": unroll,
    "CaMU": camu,
}
