"""The audit, ours: what a membership attack with reference models finds, and how far a model is from Retrain."""

import math

import numpy as np
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from metrics import predict

AUDIT = ("RMIA_AUC", "RMIA_TPR1", "JS_f", "churn")  # JS_f in bits, the others in percent


def audit(outputs, dataset, split, references=None, retrain=None):
    """The audit of one model: the metrics of `AUDIT` that these arguments allow.

    Parameters
    ----------
    outputs : dict
        The model's, from `evaluate`.
    split : Split
        The one that `outputs` are of.
    references : tuple of Tensor, optional
        The mean probability of each sample's label under models that have not seen it: of the training samples, (N,),
        and of the test samples, (M,). Without them there is no RMIA.
    retrain : dict, optional
        Retrain's outputs. Without them there is neither JS_f nor churn.
    """
    metrics = {}
    y_f, y_test = dataset.train.labels[split.forget].cpu(), dataset.test.labels.cpu()
    others = non_members(split, y_f, y_test)
    if references is not None and others.any() and not others.all():
        known_train, known_test = references
        unseen = known_train[split.forget.cpu()].isfinite()  # by one of the reference models at least
        members = rmia_ratios(probability(outputs["forget"], y_f), known_train[split.forget.cpu()])[unseen]
        tests = rmia_ratios(probability(outputs["test"], y_test), known_test)
        if len(members):
            metrics["RMIA_AUC"], metrics["RMIA_TPR1"] = rmia(members, tests[others], tests[~others])
    if retrain is not None:
        metrics["JS_f"] = js_divergence(outputs["forget"], retrain["forget"])
        metrics["churn"] = 100 * (outputs["test"].argmax(1) != retrain["test"].argmax(1)).double().mean().item()
    return metrics


def probability(log_p, labels):
    """The probability of each label, (n,), in double precision; 0 for nan, from a diverged model."""
    return log_p.double().exp().gather(1, labels[:, None])[:, 0].nan_to_num(0)


def non_members(split, y_f, y_test):
    """The test samples that D_f is compared with: those of the forgotten classes, else every second. A mask, (n,)."""
    if split.forgotten_classes and np.isin(y_f, split.forgotten_classes).all():
        return torch.isin(y_test, torch.tensor(split.forgotten_classes))
    return torch.arange(len(y_test)) % 2 == 0


@torch.no_grad()
def reference_probabilities(references, seen, dataset):
    """What `audit` takes as references: for each sample the mean over those models that have not seen it.

    `references` are the models, `seen` the positions in the training set that each was trained on. Where all have seen
    a sample its value is nan.
    """
    train, test = dataset.train, dataset.test
    total, count, on_test = torch.zeros(len(train)), torch.zeros(len(train)), torch.zeros(len(test))
    for model, index in zip(references, seen):
        unseen = torch.ones(len(train)).index_fill_(0, index.cpu(), 0)
        total += unseen * predict(model, train).gather(1, train.labels[:, None])[:, 0].cpu()
        count += unseen
        on_test += predict(model, test).gather(1, test.labels[:, None])[:, 0].cpu() / len(references)
    return total / count, on_test


RMIA_A = 0.3  # a in P_in = a P_out + 1 - a, the authors' guess at a model that has seen the sample


def rmia_ratios(p, p_references, a=RMIA_A):
    """ratio(x) = p(y|x) / Pr(x), where Pr(x) = ((1 + a) p_references + 1 - a) / 2 stands for all models; (n,) each.

    Offline RMIA (Zarifzadeh, Liu, Shokri, "Low-Cost High-Power Membership Inference Attacks", ICML 2024): p_references
    is the mean over reference models that have not seen x.
    """
    return p / (0.5 * ((1 + a) * p_references + 1 - a))


def rmia(members, others, population):
    """How well RMIA tells members from others by their ratios, (n,) each: AUC and TPR at 1 % FPR, in percent.

    A sample's score is the share of the population whose ratio is smaller. An AUC of 50 is chance.
    """
    ratios, known = torch.cat([members, others]).numpy(), np.sort(population.numpy())
    scores = np.searchsorted(known, ratios, side="left") / len(known)
    is_member = np.r_[np.ones(len(members)), np.zeros(len(others))]
    fpr, tpr, _ = roc_curve(is_member, scores, drop_intermediate=False)
    return 100 * roc_auc_score(is_member, scores), 100 * float(tpr[fpr <= 0.01].max())


def js_divergence(log_p, log_q):
    """The mean Jensen-Shannon divergence of two models' outputs, log-softmax (n, classes), in bits: 0 to 1."""
    p, q = log_p.double().exp(), log_q.double().exp()
    m = (p + q) / 2
    kl = (torch.special.xlogy(a, a / m.clamp(min=1e-300)).sum(1) for a in (p, q))
    return (sum(kl) / 2 / math.log(2)).nan_to_num(1).mean().item()  # nan: of a diverged model
