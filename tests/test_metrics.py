"""Metrics against numbers that can be checked by hand, and properties that must hold for any matrix."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evaluation import metrics

NAN = math.nan
R = np.array([[0.9, NAN, NAN], [0.7, 0.9, NAN], [0.5, 0.6, 0.8]])


def test_matrix_is_filled_by_episode_and_task():
    measured = [(1, 1, 0.9), (2, 1, 0.7), (2, 2, 0.9), (3, 1, 0.5), (3, 2, 0.6), (3, 3, 0.8)]
    built = metrics.accuracy_matrix(measured, 3, 3)
    np.testing.assert_array_equal(built, R)


def test_average_accuracies():
    assert metrics.avg_acc_final(R) == pytest.approx((0.5 + 0.6 + 0.8) / 3)
    assert metrics.avg_incremental_acc(R) == pytest.approx((0.9 + (0.7 + 0.9) / 2 + (0.5 + 0.6 + 0.8) / 3) / 3)
    assert metrics.learning_acc(R) == pytest.approx((0.9 + 0.9 + 0.8) / 3)
    assert metrics.worst_task_acc(R) == pytest.approx(0.5)


def test_backward_transfer_leaves_the_last_task_out():
    assert metrics.bwt(R) == pytest.approx(((0.5 - 0.9) + (0.6 - 0.9)) / 2)


def test_forgetting_is_measured_from_the_best_before_the_last_episode():
    rising = np.array([[0.6, NAN, NAN], [0.8, 0.7, NAN], [0.7, 0.9, 0.5]])
    assert metrics.forgetting_chaudhry(rising) == pytest.approx(((0.8 - 0.7) + (0.7 - 0.9)) / 2)


def test_forward_transfer_leaves_the_first_task_out():
    assert metrics.fwt_isolated(R, np.array([0.1, 0.8, 0.9])) == pytest.approx(((0.9 - 0.8) + (0.8 - 0.9)) / 2)


def test_a_single_task_has_no_transfer():
    one = np.array([[0.9]])
    assert metrics.avg_acc_final(one) == pytest.approx(0.9)
    assert math.isnan(metrics.bwt(one))
    assert math.isnan(metrics.forgetting_chaudhry(one))
    assert math.isnan(metrics.fwt_isolated(one, np.array([0.5])))


def lower_triangle(values):
    """Accuracies of seen tasks only."""
    return np.where(np.tril(np.ones_like(values)) > 0, values, NAN)


matrices = (
    st.integers(2, 6).flatmap(lambda t: arrays(float, (t, t), elements=st.floats(0, 1, width=32))).map(lower_triangle)
)


@given(matrices)
def test_final_accuracy_is_learning_accuracy_plus_backward_transfer(matrix):
    tasks = len(matrix)
    change = metrics.bwt(matrix) * (tasks - 1) / tasks
    assert metrics.avg_acc_final(matrix) == pytest.approx(metrics.learning_acc(matrix) + change)


@given(matrices)
def test_forgetting_is_at_least_minus_backward_transfer(matrix):
    assert metrics.forgetting_chaudhry(matrix) >= -metrics.bwt(matrix) - 1e-12


@given(matrices)
def test_nothing_is_transferred_against_oneself(matrix):
    assert metrics.fwt_isolated(matrix, matrix.diagonal()) == 0


def test_gain_over_isolated_is_the_mean_difference_at_the_end():
    assert metrics.gain_isolated(R, np.array([0.1, 0.8, 0.9])) == pytest.approx((0.4 - 0.2 - 0.1) / 3)


def test_zero_shot_transfer_is_measured_right_before_a_task_is_learned():
    full = np.array([[0.9, 0.5, 0.2], [0.7, 0.9, 0.4], [0.5, 0.6, 0.8]])
    assert metrics.fwt_zero_shot(full, np.array([0.3, 0.3, 0.1])) == pytest.approx(((0.5 - 0.3) + (0.4 - 0.1)) / 2)
    assert math.isnan(metrics.fwt_zero_shot(R, np.array([0.3, NAN, NAN])))
    assert math.isnan(metrics.fwt_zero_shot(np.array([[0.9]]), np.array([0.5])))


@given(matrices, arrays(float, 6, elements=st.floats(0, 1, width=32)))
def test_gain_over_isolated_is_what_is_transferred_forward_and_backward(matrix, alone):
    """At the end minus isolated = (at the end minus right after) + (right after minus isolated), task by task."""
    tasks = len(matrix)
    alone = alone[:tasks]
    forward = metrics.fwt_isolated(matrix, alone) * (tasks - 1) + matrix[0, 0] - alone[0]
    expected = (metrics.bwt(matrix) * (tasks - 1) + forward) / tasks
    assert metrics.gain_isolated(matrix, alone) == pytest.approx(expected)


@given(matrices)
def test_no_average_is_above_the_best_or_below_the_worst(matrix):
    for value in (metrics.avg_acc_final(matrix), metrics.avg_incremental_acc(matrix), metrics.learning_acc(matrix)):
        assert np.nanmin(matrix) - 1e-9 <= value <= np.nanmax(matrix) + 1e-9
    assert metrics.worst_task_acc(matrix) <= metrics.avg_acc_final(matrix) + 1e-9


A = np.array([[0.5, NAN, NAN], [0.9, NAN, NAN], [0.2, 0.3, NAN], [0.6, 0.8, NAN], [0.5, 0.4, 0.1], [0.7, 0.6, 0.9]])


def test_the_lowest_accuracies_on_the_way_count_from_the_end_of_a_task_on():
    """Tasks end at moments 1, 3 and 5: the lowest are 0.2 and 0.4, not the 0.3 before task 2 was learned."""
    assert metrics.min_acc(A, [1, 3, 5]) == pytest.approx((0.2 + 0.4) / 2)
    assert metrics.worst_case_acc(A, [1, 3, 5]) == pytest.approx(0.9 / 3 + 2 / 3 * 0.3)


def test_of_a_single_task_the_worst_case_is_its_accuracy():
    assert math.isnan(metrics.min_acc(A[:2, :1], [1]))
    assert metrics.worst_case_acc(A[:2, :1], [1]) == 0.9


@given(st.integers(2, 6), st.integers(0, 10**6))
def test_measured_only_at_the_ends_the_lowest_accuracy_is_at_most_that_at_the_end(tasks, seed):
    matrix = np.where(np.tri(tasks, dtype=bool), np.random.default_rng(seed).random((tasks, tasks)), NAN)
    lowest = metrics.min_acc(matrix, range(tasks))
    assert lowest <= matrix[-1, :-1].mean() + 1e-12
    assert metrics.worst_case_acc(matrix, range(tasks)) <= metrics.avg_acc_final(matrix) + 1e-12
