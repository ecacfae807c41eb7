"""Views: what torch does to them, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st

from hubmerge.checkpoint.schema import StoredTensor
from hubmerge.names.torch_views import Recorded, to_torch
from hubmerge.names.views import NotAViewError, TensorView
from tests.conversion.test_properties import examples
from tests.support.recipes import SHAPES, apply, elements_of, on_views, recipes


def stored(key: str, *shape: int) -> TensorView:
    """A view of all of a tensor of this shape."""
    return TensorView.whole(StoredTensor(key, "int64", shape, ()))


@examples(300)
@given(st.data())
def test_views_name_the_elements_that_torch_moves(data: st.DataObject) -> None:
    """Any operations: each element of the result is the one that torch puts there."""
    shape, count = data.draw(st.sampled_from(SHAPES)), data.draw(st.integers(1, 3))
    whole = torch.arange(count * 100).reshape(count, 100)
    tensors = {key: whole[n, : torch.Size(shape).numel()].reshape(shape)
               for n, key in enumerate("abc"[:count])}  # fmt: skip
    operations = data.draw(recipes(count, shape))
    try:
        views = on_views(operations, [stored(key, *shape) for key in tensors])
    except NotAViewError:
        reject()
    for view, expected in zip(views, apply(operations, list(tensors.values())), strict=True):
        assert torch.equal(elements_of(view, tensors), expected)


@pytest.mark.parametrize(
    "compute",
    [
        lambda t: t + 1,
        lambda t: t * t,
        lambda t: t.new_zeros(3),
        lambda t: torch.cat([t, torch.zeros(4, 6, dtype=torch.int64)]),
        lambda t: t.to(torch.float32),
        lambda t: t.sum(0),
        lambda t: t.expand(2, 4, 6),
        lambda t: t[t > 1],
        lambda t: t[torch.tensor([[0, 1]])],
        lambda t: t.flip(0),
    ],
)
def test_what_computes_is_refused(compute: Any) -> None:
    """No view has those elements."""
    with pytest.raises(NotAViewError):
        compute(to_torch(Recorded(stored("a", 4, 6), ("a",))))


def test_methods_are_those_of_a_tensor() -> None:
    """Without torch, a view is sliced and reordered by the same names."""
    view, tensor = stored("a", 4, 6), torch.arange(24).reshape(4, 6)
    both: list[tuple[Any, Any]] = [
        (view[1:, ::2], tensor[1:, ::2]),
        (view[..., -1], tensor[..., -1]),
        (view[None, 2], tensor[None, 2]),
        (view[:, [3, 0]], tensor[:, [3, 0]]),
        (view.chunk(3, dim=1)[1], tensor.chunk(3, dim=1)[1]),
        (view.chunk(3)[1], tensor.chunk(3)[1]),
        (view.unbind(-1)[4], tensor.unbind(-1)[4]),
        (view.reshape((2, -1)), tensor.reshape(2, -1)),
        (TensorView.stack([view[0], view[3]], 1), torch.stack([tensor[0], tensor[3]], 1)),
    ]
    for ours, theirs in both:
        assert torch.equal(elements_of(ours, {"a": tensor}), theirs)
    with pytest.raises(ValueError, match="3 to 5"):
        view.narrow(0, 3, 2)
    with pytest.raises(ValueError, match="cat of"):
        TensorView.cat([view, view[:, :5]])


def test_empty_views_remember_what_they_were_made_of() -> None:
    """A tensor without elements has a name in the checkpoint all the same."""
    view = TensorView.cat([stored("a", 0, 6), stored("b", 4, 6)[4:]])
    assert view.shape == (0, 6)
    assert [source.key for source in view.sources] == ["a", "b"]
