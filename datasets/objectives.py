"""Objectives: the loss, the space in which the predictions of members are averaged, and the named scores."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 15  # of the calibration error
_TINY = torch.finfo(torch.float32).tiny  # stands for a probability that rounded to 0, so that losses are finite


@dataclass(frozen=True)
class Metric:
    """A kind of score: its name in files, and its direction."""

    name: str
    higher_is_better: bool = False


@dataclass(frozen=True)
class Scored:
    """The value of a metric over n examples (or tokens, or sequences), and its standard error if it has one."""

    value: float
    stderr: float | None
    n: int


Scores = Mapping[str, Scored]  # by name of the metric, the main one first


class Objective(ABC):
    """Loss and scores of one kind of supervised problem."""

    # The metrics that `evaluate` returns, by name: the first one fills the accuracy matrix, one is "loss".
    metrics: Mapping[str, Metric]

    @property
    def facts(self) -> dict[str, Any]:
        """What a run saves of it beside its name, as plain values."""
        return {}

    @classmethod
    def saved(cls, where: str, facts: Mapping[str, Any], device: torch.device) -> "Objective":
        """The one that has these facts; a UserError, which begins with `where`, if they are wrong."""
        return cls()

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Training loss: mean over the batch, a scalar on the device."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The training losses of S networks that compute together, [S]; targets [S, N, ...].

        The outputs are those of a Stack, whose last two axes are the other way round: [S, ..., C, N].
        """
        return torch.stack([self.loss(*pair) for pair in zip(outputs.transpose(-1, -2), targets, strict=True)])

    @abstractmethod
    def predict(self, outputs: Tensor) -> Tensor:
        """Network outputs -> the space in which the predictions of members are averaged."""

    @abstractmethod
    def uninformed(self, shape: Sequence[int], num_outputs: int, training: Tensor | None = None) -> Tensor:
        """The best prediction that does not depend on the inputs, for targets of a shape [N, ...].

        `training` are training targets of the task, [M, ...], if they are known.
        """

    @abstractmethod
    def uninformed_loss(self, num_outputs: int, training: Tensor) -> float:
        """The loss of the uninformed prediction on training targets, [M, ...]."""

    @abstractmethod
    def evaluate(self, predictions: Tensor, targets: Tensor) -> dict[str, Scored]:
        """Scores of averaged predictions, one for each of `metrics`."""

    def evaluate_slices(
        self, predictions: Tensor, targets: Tensor, slices: Mapping[str, Tensor]
    ) -> dict[str, dict[str, Scored]]:  # fmt: skip
        """Scores of parts of the examples, positions [K] by name; those that are cheap, the main metric first."""
        return {name: self.evaluate(predictions[part], targets[part]) for name, part in slices.items()}

    def evaluate_parts(
        self, parts: Iterable[Tensor], targets: Tensor, slices: Mapping[str, Tensor]
    ) -> dict[str, dict[str, Scored]]:  # fmt: skip
        """Scores of all examples, under the name "", and of slices; predictions come in parts, in order."""
        predictions = torch.cat(list(parts))
        slices = {name: part.to(predictions.device) for name, part in slices.items()}
        return {"": self.evaluate(predictions, targets), **self.evaluate_slices(predictions, targets, slices)}

    def energy(self, outputs: Tensor) -> Tensor | None:
        """log sum_c exp(output c), [N], of the outputs [N, C], by which the task of an input can be told.

        None if outputs are not classes; then no scenario is defined in which the task must be inferred.
        """
        return None


def _precise(outputs: Tensor) -> Tensor:
    """Outputs in at least single precision, also under autocast: bf16 has two to three digits."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


def _named(*metrics: Metric) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


ACCURACY = Metric("accuracy", higher_is_better=True)


class _Probabilities(Objective):
    """Base of classes and tokens: predictions are probabilities; those of the uninformed prediction are equal."""

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs.float().softmax(-1)

    def uninformed(self, shape: Sequence[int], num_outputs: int, training: Tensor | None = None) -> Tensor:
        return torch.full((*shape, num_outputs), 1 / num_outputs)

    def uninformed_loss(self, num_outputs: int, training: Tensor) -> float:
        return math.log(num_outputs)


class CrossEntropy(_Probabilities):
    """Classification: outputs are logits [N, C], targets class indices [N], predictions probabilities [N, C]."""

    metrics = _named(ACCURACY, Metric("loss"), Metric("ece"))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(_precise(outputs), targets)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(_precise(outputs), targets, reduction="none").mean(1)

    def evaluate(self, predictions: Tensor, targets: Tensor) -> dict[str, Scored]:
        right = predictions.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        everything = torch.zeros(len(targets), dtype=torch.int64)
        hits = predictions.argmax(-1) == targets
        return scores(everything, 1, right, predictions.amax(-1), hits)[0]  # type: ignore[return-value]  # not empty

    def evaluate_slices(
        self, predictions: Tensor, targets: Tensor, slices: Mapping[str, Tensor]
    ) -> dict[str, dict[str, Scored]]:  # fmt: skip
        """Without the calibration error, which costs more than all else: the examples of each part are sorted."""
        losses = -predictions.gather(-1, targets.unsqueeze(-1)).squeeze(-1).clamp_min(_TINY).log().double()
        hits = (predictions.argmax(-1) == targets).double()
        return {
            name: {"accuracy": _share(hits[part].mean().item(), len(part)), "loss": mean(losses[part])}
            for name, part in slices.items()
        }

    def energy(self, outputs: Tensor) -> Tensor | None:
        return outputs.float().logsumexp(-1)


class Tokens(_Probabilities):
    """Sequences of tokens: outputs are logits [N, T, V], targets token indices [N, T], predictions probabilities.

    Positions whose target is `ignored` are not scored.
    """

    metrics = _named(ACCURACY, Metric("loss"), Metric("exact_match", higher_is_better=True))

    def __init__(self, ignored: int = -1) -> None:
        self.ignored = ignored

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(_precise(outputs).flatten(0, -2), targets.flatten(), ignore_index=self.ignored)

    def evaluate(self, predictions: Tensor, targets: Tensor) -> dict[str, Scored]:
        """Loss and accuracy over scored tokens, and the share of sequences with all scored tokens right."""
        return self.evaluate_parts([predictions], targets, {})[""]

    def evaluate_parts(
        self, parts: Iterable[Tensor], targets: Tensor, slices: Mapping[str, Tensor]
    ) -> dict[str, dict[str, Scored]]:  # fmt: skip
        """No more than one part is held at a time: probabilities of all tokens of a large vocabulary need gigabytes."""
        found, start = [], 0
        for predictions in parts:
            found.append(self._judged(predictions, targets[start : start + len(predictions)]))
            start += len(predictions)
        losses, hits = (torch.cat(column) for column in zip(*found, strict=True))
        chosen: dict[str, Any] = {"": slice(None), **{name: part.to(targets.device) for name, part in slices.items()}}
        return {name: self._scored(losses[part], hits[part], targets[part]) for name, part in chosen.items()}

    def _judged(self, predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each token, and whether it is right, [N, T]; anything at positions that are not scored."""
        scored = targets != self.ignored
        right = predictions.gather(-1, targets.where(scored, 0).unsqueeze(-1)).squeeze(-1)
        return -right.clamp_min(_TINY).log().double(), predictions.argmax(-1) == targets

    def _scored(self, losses: Tensor, hits: Tensor, targets: Tensor) -> dict[str, Scored]:
        scored = targets != self.ignored
        whole = (hits | ~scored).all(-1)[scored.any(-1)]
        return {
            "accuracy": _clustered(hits.double(), scored),
            "loss": _clustered(losses, scored),
            "exact_match": _share(whole.double().mean().item(), len(whole)),
        }


class TokenVectors(Tokens):
    """Tokens that are vectors: outputs are [N, T, d], and their dot products with `table`, [V, d], are the logits.

    Targets are rows of the table [N, T], predictions probabilities [N, T, V]; the table lies on the device.
    """

    def __init__(self, table: Tensor, ignored: int = -1) -> None:
        super().__init__(ignored)
        self.table = table

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss(self._logits(outputs), targets)

    def predict(self, outputs: Tensor) -> Tensor:
        return super().predict(self._logits(outputs))

    def uninformed(self, shape: Sequence[int], num_outputs: int, training: Tensor | None = None) -> Tensor:
        return super().uninformed(shape, len(self.table), training)

    def uninformed_loss(self, num_outputs: int, training: Tensor) -> float:
        return super().uninformed_loss(len(self.table), training)

    def _logits(self, outputs: Tensor) -> Tensor:
        return outputs.float() @ self.table.T


class SquaredErrors(Objective):
    """Base of vectors of real numbers: outputs and predictions are [N, D], the loss is a mean of squared errors.

    The uninformed prediction is the mean of the training targets, or 0 if these are not known.
    """

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._errors(outputs, targets).mean()

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._errors(outputs.transpose(-1, -2), targets).mean(1)

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs.float()

    def uninformed(self, shape: Sequence[int], num_outputs: int, training: Tensor | None = None) -> Tensor:
        known = None if training is None else self._values(training.float())
        guess = torch.zeros(num_outputs) if known is None else known.mean(0)
        return guess.expand(shape[0], -1).clone()

    def uninformed_loss(self, num_outputs: int, training: Tensor) -> float:
        return self._errors(self.uninformed(training.shape, num_outputs, training), training).double().mean().item()

    def evaluate(self, predictions: Tensor, targets: Tensor) -> dict[str, Scored]:
        return {"loss": mean(self._errors(predictions, targets).double())}

    def _values(self, targets: Tensor) -> Tensor:
        """The right outputs, [..., D]."""
        return targets

    @abstractmethod
    def _errors(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each example, [...], of outputs [..., D]."""


class Reconstruction(SquaredErrors):
    """Vectors of real numbers that are not equally important: targets [N, 2, D] are the values and their importances w.

        loss = 1/N sum_n sum_d w_nd (output_nd - value_nd)^2

    Source: Elhage et al., "Toy models of superposition" (2022).
    """

    metrics = _named(Metric("loss"))

    def _values(self, targets: Tensor) -> Tensor:
        return targets[..., 0, :]

    def _errors(self, outputs: Tensor, targets: Tensor) -> Tensor:
        values, importances = targets.float().unbind(-2)
        return (importances * (_precise(outputs) - values).square()).sum(-1)


class RealNumbers(SquaredErrors):
    """Regression: targets are [N, D], the loss is the squared error averaged over N and D, `rmse` its square root."""

    metrics = _named(Metric("rmse"), Metric("loss"))

    def evaluate(self, predictions: Tensor, targets: Tensor) -> dict[str, Scored]:
        loss = super().evaluate(predictions, targets)["loss"]
        root = math.sqrt(loss.value)
        # The delta method: d sqrt(x) = dx / (2 sqrt(x)).
        stderr = None if loss.stderr is None or not root else loss.stderr / (2 * root)
        return {"rmse": Scored(root, stderr, loss.n), "loss": loss}

    def _errors(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (_precise(outputs) - targets.float()).square().mean(-1)


def mean(values: Tensor) -> Scored:
    """The mean of independent values [N] with its standard error s / sqrt(N), which a single value does not have."""
    mean, variance = torch.stack([values.mean(), values.var() if len(values) > 1 else values.new_zeros(())]).tolist()
    return Scored(mean, math.sqrt(variance / len(values)) if len(values) > 1 else None, len(values))


def _share(p: float, n: int) -> Scored:
    """A share p of n independent cases with its standard error sqrt(p (1 - p) / n)."""
    return Scored(p, math.sqrt(max(0.0, p * (1 - p)) / n), n)


def _clustered(values: Tensor, scored: Tensor) -> Scored:
    """The mean of the values [N, T] at scored positions; its standard error lets tokens of a sequence be dependent.

        SE = sqrt( K/(K-1) sum_k ( sum_t (x_kt - mean) )^2 ) / n,   K sequences with n scored tokens in all

    Source: Cochran, "Sampling Techniques" (1977), chapter 6: the ratio estimator with sequences as units.
    """
    values = values.where(scored, 0.0)
    count, sequences = torch.stack([scored.sum(), scored.any(-1).sum()]).tolist()
    mean = values.sum() / count
    away = (values.sum(-1) - mean * scored.sum(-1)).square().sum()
    value, away_sum = torch.stack([mean, away]).tolist()
    stderr = math.sqrt(sequences / (sequences - 1) * away_sum) / count if sequences > 1 else None
    return Scored(value, stderr, count)


def scores(
    groups: Tensor, count: int, right: Tensor, confidence: Tensor, hits: Tensor
) -> list[dict[str, Scored] | None]:
    """Accuracy, loss and calibration error of each of `count` groups of classifications; None for an empty group.

        ECE = sum_b n_b/N |acc_b - conf_b| = 1/N sum_b |sum_{i in b} (hit_i - confidence_i)|

    Bins hold equally many examples. The ECE grows as they get smaller: compare only values with the same N.

    Args:
        groups: [N] int64, the group of each classification, from 0.
        right, confidence: [N] probability of the right class, and of the predicted one.
        hits: [N] whether the prediction is right.

    Source: Naeini et al. (2015); bins of equal mass as in the adaptive calibration error of Nixon et al. (2019), which
    is over all classes instead of the predicted one.
    """
    # On the CPU: adding into bins on a GPU is not deterministic.
    groups, right, confidence, hits = (part.cpu() for part in (groups, right, confidence.double(), hits.double()))
    sizes = groups.bincount(minlength=count)
    losses = -right.clamp_min(_TINY).log().double()
    # As in equal_bins. A confidence is at most 1, so that sorted keys have one group after the other.
    keys = 2 * groups + confidence
    ranks = torch.searchsorted(keys.sort().values, keys) - (sizes.cumsum(0) - sizes)[groups]
    places = groups * BINS + (ranks * BINS // sizes[groups]).clamp_max(BINS - 1)  # the rank of NaN is N
    gaps = torch.zeros(count * BINS, dtype=torch.float64).index_add_(0, places, hits - confidence)
    sums = (groups.bincount(losses, count), groups.bincount(hits, count), gaps.view(count, BINS).abs().sum(-1))
    means = torch.stack(sums, -1) / sizes.unsqueeze(-1)
    variances = groups.bincount((losses - means[groups, 0]).square(), count) / (sizes - 1)
    errors = (variances / sizes).sqrt().tolist()
    return [
        {"accuracy": _share(accuracy, n), "loss": Scored(loss, error if n > 1 else None, n),
         "ece": Scored(ece, None, n)} if n else None
        for (loss, accuracy, ece), error, n in zip(means.tolist(), errors, sizes.tolist(), strict=True)
    ]  # fmt: skip


def equal_bins(confidence: Tensor) -> Tensor:
    """The bin of each of N examples, int64: the one with the r-th smallest confidence is in floor(BINS * r / N).

    r counts from 0; equal confidences share the smallest r among them, so that the order of examples does not matter.
    """
    return torch.searchsorted(confidence.sort().values, confidence) * BINS // len(confidence)
