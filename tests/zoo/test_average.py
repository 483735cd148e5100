"""The mean of rounds of training."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="`make test` installs it")


def test_the_mean_is_taken_by_name_and_only_of_one_shape() -> None:
    from zoo.average import mean

    one = {"a": torch.tensor([1.0, 3.0]), "b": torch.ones(2, 2)}
    two = {"a": torch.tensor([3.0, 5.0]), "b": torch.zeros(2, 2)}
    found = mean([one, two])
    assert found["a"].tolist() == [2.0, 4.0]
    assert found["b"].tolist() == [[0.5, 0.5], [0.5, 0.5]]
    with pytest.raises(ValueError, match="one shape"):
        mean([one, {"a": torch.zeros(3), "b": torch.zeros(2, 2)}])
    with pytest.raises(ValueError, match="one shape"):
        mean([one, {"a": torch.zeros(2)}])
