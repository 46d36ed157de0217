"""Health of a run while it trains: is the encoder learning, standing still, or collapsing?

The loss alone cannot say: in latent prediction it falls both when the encoder learns and when all images get the same
embedding. So a fixed, seeded set of held-out images is encoded now and then, and its embeddings are measured:

    health/<encoder>/effective_rank         Roy & Vetterli, "The effective rank", EUSIPCO 2007; of pooled features
    health/<encoder>/effective_rank_centred the same around the mean image: what tells images apart
    health/<encoder>/token_effective_rank   of single tokens
    health/<encoder>/std_mean, std_min      standard deviation over images, per dimension
    health/<encoder>/dead                   share of dimensions that do not vary
    health/<encoder>/cosine                 mean cosine between two images
    health/<encoder>/knn_top1               weighted kNN, labelled train images voting on held-out ones
    health/loss_ratio                       loss / loss of always predicting the batch mean (1: nothing learned)
    health/teacher_distance                 relative distance of target and context weights

of a world model (imagination.py) also how its roll-outs compare with what really followed:

    health/imagined_over_copy               open-loop error at the last step / that of the last frame seen
    health/shuffled_over_right              open-loop error with wrong actions / that with the right ones

Measuring changes nothing: no gradient, modes restored, every random number generator left as it was.
"""

from __future__ import annotations

from jepa.monitor.collapse import collapse_warnings
from jepa.monitor.imagination import Windows, imagination_metrics
from jepa.monitor.measures import Spread, effective_rank, knn_votes, mean_cosine, spread, weight_distance
from jepa.monitor.watch import Monitor

__all__ = [
    "Monitor",
    "Spread",
    "Windows",
    "collapse_warnings",
    "effective_rank",
    "imagination_metrics",
    "knn_votes",
    "mean_cosine",
    "spread",
    "weight_distance",
]
