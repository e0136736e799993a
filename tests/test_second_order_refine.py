"""second_order_refine and second_order_exact: never above the sweep, and at rest only where no one entry can move."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_second_order import damped, loss, problem

from lc_ext import ops


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(1, 6),
    n=st.integers(1, 20),
    k=st.integers(1, 6),
    own=st.booleans(),
    held=st.booleans(),
    rounds=st.integers(1, 3),
    seed=st.integers(0, 500),
)
def test_is_never_above_the_sweep(m, n, k, own, held, rounds, seed):
    w, moment, book, exact = problem(m, n, k, seed)
    book = book if own else book[0]
    exact = exact if held else None
    first = ops.second_order_quantize(w, moment, book, exact=exact, damping=0.05)
    h = damped(moment, 0.05)
    got = ops.second_order_refine(
        w, moment, book, first.codes, values=first.values, exact=exact, damping=0.05, rounds=rounds
    )
    assert got.error <= first.error * (1 + 1e-5) + 1e-6 * float(h.diagonal().max())
    assert got.error == pytest.approx(loss(w, got.values, h), rel=1e-5, abs=1e-9)
    assert got.codebook.shape == book.shape and bool((got.codebook.diff(dim=-1) >= 0).all())
    decoded = got.codebook.expand(m, k).gather(1, got.codes.long())
    free = torch.ones_like(w, dtype=torch.bool) if exact is None else ~exact
    assert torch.equal(got.values[free], decoded[free])


def test_no_entry_can_move_alone():
    w, moment, book, exact = problem(5, 12, 4, 3)
    h = damped(moment, 0.05)
    first = ops.second_order_quantize(w, moment, book, exact=exact, damping=0.05)
    options = {"values": first.values, "exact": exact, "damping": 0.05, "rounds": 40, "fit_codebook": False}
    got = ops.second_order_refine(w, moment, book, first.codes, **options)
    assert torch.equal(got.codebook, book) and got.error < first.error
    for i in range(5):
        for j in range(12):
            moves = book[i].tolist() if not exact[i, j] else [float(got.values[i, j]) + d for d in (-0.01, 0.01)]
            for value in moves:
                other = got.values.clone()
                other[i, j] = value
                assert loss(w, other, h) >= got.error * (1 - 1e-5)


@pytest.mark.parametrize("own", [True, False])
def test_codewords_are_the_best_for_their_codes(own):
    """Two rounds and a third that finds nothing to move: the codebook is the least-squares solution."""
    w, moment, book, _ = problem(4, 30, 3, 8)
    book = book if own else book[0]
    h = damped(moment, 0.05)
    codes = ops.second_order_quantize(w, moment, book, damping=0.05).codes
    got = ops.second_order_refine(w, moment, book, codes, damping=0.05, rounds=60)
    root = torch.linalg.cholesky(h)
    one_hot = torch.nn.functional.one_hot(got.codes.long(), 3).double()  # (4, 30, 3)
    designs, targets = root.T @ one_hot, (w.double() @ root)[..., None]
    if not own:
        designs, targets = designs.flatten(0, 1)[None], targets.flatten(0, 1)[None]
    best = torch.linalg.lstsq(designs, targets).solution[..., 0]
    torch.testing.assert_close(got.codebook.double().view_as(best), best, rtol=1e-3, atol=1e-3)


def test_many_codewords_stay():
    w, moment, book, _ = problem(3, 40, 40, 1)
    codes = ops.second_order_quantize(w, moment, book).codes
    assert torch.equal(ops.second_order_refine(w, moment, book, codes).codebook, book)


@settings(max_examples=30, deadline=None)
@given(m=st.integers(1, 5), n=st.integers(1, 9), seed=st.integers(0, 99), data=st.data())
def test_exact_are_those_whose_rounding_costs_most(m, n, seed, data):
    w, moment, book, _ = problem(m, n, 3, seed)
    count = data.draw(st.integers(0, m * n))
    got = ops.second_order_exact(w, moment, book, count, damping=0.05)
    inverse = torch.linalg.inv(damped(moment, 0.05)).diagonal()
    nearest = (w[:, :, None] - book[:, None, :]).abs().amin(2).double()
    cost = nearest**2 / inverse
    assert int(got.sum()) == count and got.shape == w.shape
    if 0 < count < m * n:
        assert float(cost[got].min()) >= float(cost[~got].max()) * (1 - 1e-5)


W, EYE, BOOK = torch.randn(3, 4), torch.eye(4), torch.tensor([-1.0, 1.0])
CODES = torch.zeros(3, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("error", "named", "call"),
    [
        (ValueError, "codes must be uint8", lambda: ops.second_order_refine(W, EYE, BOOK, CODES.long())),
        (ValueError, "codes must be uint8", lambda: ops.second_order_refine(W, EYE, BOOK, CODES[:2])),
        (ValueError, "codes must be below", lambda: ops.second_order_refine(W, EYE, BOOK, CODES + 2)),
        (ValueError, "rounds must be", lambda: ops.second_order_refine(W, EYE, BOOK, CODES, rounds=0)),
        (ValueError, "values must have", lambda: ops.second_order_refine(W, EYE, BOOK, CODES, values=W[:2])),
        (ValueError, "codebook must ascend", lambda: ops.second_order_refine(W, EYE, BOOK.flip(0), CODES)),
        (ValueError, "damping", lambda: ops.second_order_refine(W, EYE, BOOK, CODES, damping=0)),
        (ValueError, "moment must", lambda: ops.second_order_exact(W, EYE[:3], BOOK, 1)),
        (ValueError, "count must be", lambda: ops.second_order_exact(W, EYE, BOOK, 13)),
        (ValueError, "w contains", lambda: ops.second_order_exact(W * float("nan"), EYE, BOOK, 1)),
    ],
)
def test_bad_arguments(error, named, call):
    with pytest.raises(error, match=named):
        call()
