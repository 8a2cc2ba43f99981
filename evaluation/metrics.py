"""Continual-learning metrics: pure functions of the accuracy matrix R.

R is [T, T], R[k, t] the test accuracy on task t after episode k (rows and columns in the order of the
stream), NaN where the task had not been revealed; R[0], of the untrained network, is a separate vector.
Several of these names have more than one definition in the literature; each function states the one it computes.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


def accuracy_matrix(measurements: Iterable[tuple[int, int, float]], episodes: int, tasks: int) -> Matrix:
    """R from (episode, task, test accuracy), both numbered from 1; [episodes, tasks], NaN where not measured."""
    R = np.full((episodes, tasks), np.nan)
    for episode, task, accuracy in measurements:
        R[episode - 1, task - 1] = accuracy
    return R


def avg_acc_final(R: Matrix) -> float:
    """Mean over tasks of the accuracy at the end: mean_t R[T, t].  Lopez-Paz & Ranzato (2017), ACC."""
    return float(R[-1].mean())


def avg_incremental_acc(R: Matrix) -> float:
    """Mean over episodes of the mean accuracy on the tasks seen so far: mean_k mean_{t<=k} R[k, t].

    Rebuffi et al. (2017), "average incremental accuracy".
    """
    return float(np.nanmean(R, axis=1).mean())


def learning_acc(R: Matrix) -> float:
    """Mean accuracy on a task right after its own episode: mean_t R[t, t].  Riemer et al. (2019)."""
    return float(R.diagonal().mean())


def bwt(R: Matrix) -> float:
    """Backward transfer: change on a task from its own episode to the last; negative means forgetting.

        BWT = 1/(T-1) sum_{t<T} (R[T, t] - R[t, t])

    Lopez-Paz & Ranzato (2017), eq. 3; NaN for a single task.
    """
    return _mean((R[-1] - R.diagonal())[:-1])


def forgetting_chaudhry(R: Matrix) -> float:
    """Drop from the best accuracy a task had before the last episode; negative if it only got better.

        F = 1/(T-1) sum_{t<T} ( max_{t<=k<T} R[k, t] - R[T, t] )

    Chaudhry et al. (2018); the last episode is not part of the maximum. NaN for a single task.
    """
    T = len(R)
    return _mean(np.array([R[t : T - 1, t].max() - R[-1, t] for t in range(T - 1)]))


def fwt_zero_shot(R: Matrix, untrained: npt.NDArray[np.float64]) -> float:
    """Forward transfer as accuracy on a task before its own episode, against the untrained network.

        FWT = 1/(T-1) sum_{t>=2} (R[t-1, t] - R[0, t])

    Lopez-Paz & Ranzato (2017), eq. 4; `untrained`: R[0], [T]. NaN where either was not measured: with a head for
    each task there is none before the task's own episode.
    """
    return _mean(np.diagonal(R, 1) - untrained[1:])


def gain_isolated(R: Matrix, isolated: npt.NDArray[np.float64]) -> float:
    """Gain in final accuracy over networks trained on each task alone.

        1/T sum_t (R[T, t] - isolated[t])

    Ramesh & Chaudhari (2022) compare these in their tables. `isolated`: [T].
    """
    return _mean(R[-1] - isolated)


def worst_task_acc(R: Matrix) -> float:
    """Lowest accuracy at the end over all tasks: min_t R[T, t]."""
    return float(R[-1].min())


def fwt_isolated(R: Matrix, isolated: npt.NDArray[np.float64]) -> float:
    """Forward transfer against networks trained on each task alone with the same recipe.

        FWT = 1/(T-1) sum_{t>=2} (R[t, t] - isolated[t])

    The first task is left out: nothing came before it, so its difference is noise only. In the figures of Ramesh &
    Chaudhari (2022) it is the distance from a task's first point to its isolated cross. `isolated`: [T]. NaN for a
    single task.
    """
    return _mean((R.diagonal() - isolated)[1:])


def min_acc(A: Matrix, ends: Sequence[int]) -> float:
    """Mean over past tasks of the lowest accuracy that each had at any moment after its own episode.

        min-ACC = 1/(T-1) sum_{t<T} min_{m > e_t} A[m, t]

    A[m, t] is the test accuracy on task t at moment m of training, [M, T]; `ends` are the moments e_t at the end of
    the episode of each task. De Lange, van de Ven & Tuytelaars (2023); NaN for a single task.
    """
    return _mean(np.array([A[end + 1 :, task].min() for task, end in enumerate(ends[:-1])]))


def worst_case_acc(A: Matrix, ends: Sequence[int]) -> float:
    """Accuracy on the newest task, weighed with the lowest ones on the others; see `min_acc` for the arguments.

        WC-ACC = 1/T A[M, T] + (1 - 1/T) min-ACC

    De Lange, van de Ven & Tuytelaars (2023).
    """
    newest = float(A[-1, -1])
    return newest if len(ends) == 1 else newest / len(ends) + (1 - 1 / len(ends)) * min_acc(A, ends)


def _mean(values: npt.NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else float("nan")
