"""What a post-unlearning model is judged by: accuracies, the membership inference attack, the gap to Retrain."""

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

from data import draw_remain, generator

# The effectiveness metrics of a kind of task, all in percent, in the order of the tables.
METRICS = {
    "random": ("A_r", "A_f", "A_ts", "MIA"),
    "class": ("A_r", "A_f", "A_ts", "A_ts_r", "A_ts_f", "MIA"),
}
ATTACK_SAMPLES = 4000  # of each kind, to train the attacker with
ATTACKED_TEST_SAMPLES = 6000  # at most


@torch.no_grad()
def predict(model, images, crops=None):
    """The model's softmax outputs for all of `images`, in order: (N, classes).

    With `crops`, (N, 5), the images go through the training transform.
    """
    model.eval()
    chunk = 1000 if images.side is None else 125
    index = torch.arange(len(images), device=images.device)
    return torch.cat(
        [model(images.batch(rows, None if crops is None else crops[rows]))[0].softmax(1) for rows in index.split(chunk)]
    )


def accuracy(p, labels):
    """Percentage of the rows of `p`, (N, classes), whose largest entry is the label; nan for no rows.

    A row of a diverged model, nan all through, is wrong (argmax would call it class 0).
    """
    return 100 * ((p.argmax(1) == labels) & ~p.isnan().any(1)).double().mean().item()


def membership_attack(remain_p, test_p, forget_p, other_test_p, threads=1):
    """Accuracy of the membership inference attack, in percent (section 4.1.3; its settings are the authors' code's).

    Gradient-boosted trees learn, from the sorted softmax outputs of the model under attack, to tell remaining samples
    (members) from test samples; then they are asked about the forget set (as members) and other test samples.

    Parameters
    ----------
    remain_p, test_p : Tensor, (n, classes)
        What the attacker is trained on, labelled 1 and 0.
    forget_p, other_test_p : Tensor, (m, classes)
        What is attacked, labelled 1 and 0.
    threads : int
        The trees' threads. More threads than cores, torch's included, slow them down many times.

    Returns
    -------
    float

    Notes
    -----
    The paper's attacker is xgboost's (binary logistic, 100 trees of depth 6, learning rate 0.3). scikit-learn's
    histogram trees with the same settings stand in for it, for xgboost's wheel brings a second NCCL beside torch's.
    """
    attacker = HistGradientBoostingClassifier(
        max_iter=100,
        learning_rate=0.3,
        max_depth=6,
        max_leaf_nodes=None,
        min_samples_leaf=1,
        l2_regularization=1,
        early_stopping=False,
        random_state=0,
    )
    x, y = _attack_features(remain_p, test_p)
    with threadpool_limits(threads):
        attacker.fit(x, y)
        return 100 * attacker.score(*_attack_features(forget_p, other_test_p))


def _attack_features(members, others):
    # a diverged model puts out nan, which the trees cannot bin: then there is nothing to read
    x = torch.cat([members, others]).nan_to_num(0).sort(1).values.double().cpu().numpy()
    return x, np.r_[np.ones(len(members)), np.zeros(len(others))]


def evaluation_crops(dataset, seed):
    """The training transform's crops that training samples are evaluated with on CIFAR; None where they are not."""
    train = dataset.train
    return train.draw_crops(len(train), generator(seed, "evaluation crops")) if dataset.published_protocol else None


def evaluate(model, dataset, split, seed, threads=1):
    """All metrics of one unlearned model.

    Parameters
    ----------
    model : nn.Module
    dataset : Dataset
    split : Split
    seed : int
        Of the cell: it draws the attack's x_r and, on CIFAR, the crops that training samples are evaluated with.
    threads : int
        For the attack.

    Returns
    -------
    dict of str to float
        The metrics of `METRICS`, in percent; on CIFAR, whose published protocol evaluates the training samples
        through the training transform, also `A_r_clean` and `A_f_clean`.

    Notes
    -----
    The attacker trains on the first 4,000 x_r of the joint dataset and the first 4,000 test samples (with fewer than
    10,000 test samples: 40 % of them, and as many x_r). It is asked about all of D_f and as many of the other test
    samples, at most 6,000.
    """
    train, test = dataset.train, dataset.test
    test_p, clean_p = predict(model, test), predict(model, train)
    crops = evaluation_crops(dataset, seed)
    train_p = clean_p if crops is None else predict(model, train, crops)
    found = {
        "A_r": accuracy(train_p[split.remain], train.labels[split.remain]),
        "A_f": accuracy(train_p[split.forget], train.labels[split.forget]),
        "A_ts": accuracy(test_p, test.labels),
    }
    if split.forgotten_classes:
        gone = torch.isin(test.labels, torch.tensor(split.forgotten_classes, device=test.device))
        found["A_ts_r"] = accuracy(test_p[~gone], test.labels[~gone])
        found["A_ts_f"] = accuracy(test_p[gone], test.labels[gone])
    known = min(ATTACK_SAMPLES, int(0.4 * len(test)))
    others = test_p[known:][: min(len(split.forget), ATTACKED_TEST_SAMPLES)]
    remain_p = train_p[draw_remain(split, known, seed)]
    found["MIA"] = membership_attack(remain_p, test_p[:known], train_p[split.forget], others, threads)
    if dataset.published_protocol:
        found["A_r_clean"] = accuracy(clean_p[split.remain], train.labels[split.remain])
        found["A_f_clean"] = accuracy(clean_p[split.forget], train.labels[split.forget])
    return found


def gap(ours, retrain, kind):
    """Mean over the effectiveness metrics of a kind of task of |ours - Retrain's|, in percentage points.

    Parameters
    ----------
    ours, retrain : mapping of metric to float
        Means over the seeds.
    kind : str
        "random" or "class".
    """
    return float(np.mean([abs(ours[name] - retrain[name]) for name in METRICS[kind]]))
