"""ComBat on a trained member's features, and its head once more on what comes of them: the end of `harmonise: combat`.

Everything is fitted on the fold's training patches, as they are, without augmentation.
"""

from __future__ import annotations

import numpy as np
import torch

from midog.models.classifier import Classifier
from midog.models.features import pooled_features
from midog.models.harmonise import fit_combat
from midog.models.heads.combat import CombatHead
from midog.training.machine import Resources
from midog.training.patches import FoldPatches, Rows


def harmonise_head(classifier: Classifier, patches: FoldPatches, balanced: bool, resources: Resources) -> None:
    """Put ComBat before the head, and fit the (linear) head again behind it, in place.

    Locations and scales are those that remain beside the training labels, so that a scanner with more atypical figures
    is not made normal; the transform itself knows no label.

    Args:
        balanced: the classes weigh the same, as a balanced sampler makes them.

    Source: Johnson et al. 2007 for ComBat; nearest scanner and refit are our choice: L2-regularised logistic regression
        on standardised features (scikit-learn, C = 1).
    """
    from sklearn.linear_model import LogisticRegression

    samples, labels = patches.samples, np.asarray(patches.labels)
    features = pooled_features(classifier, Rows(samples.images, samples.rows), resources.device)
    combat = fit_combat(features, patches.scanners, labels - labels.mean())
    head = CombatHead(classifier.head, len(combat.batches), features.shape[1])
    with torch.no_grad():
        for name, buffer in head.named_buffers(recurse=False):
            buffer.copy_(torch.from_numpy(getattr(combat, name)))
        alike = head.harmonise(torch.from_numpy(features)).double().numpy()
    scaled = (alike - combat.mean) / combat.sd
    weight = "balanced" if balanced else None
    fitted = LogisticRegression(C=1.0, class_weight=weight, max_iter=1000).fit(scaled, labels)
    direction = fitted.coef_[0] / combat.sd
    linear = classifier.head.linear
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(direction)[None])  # type: ignore[union-attr, operator]
        linear.bias.fill_(float(fitted.intercept_[0] - direction @ combat.mean))  # type: ignore[union-attr, operator]
    classifier.head = head.to(resources.device).train(classifier.training)
