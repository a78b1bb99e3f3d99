"""The same random numbers in every order of the tests."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seed() -> None:
    """What a test draws does not depend on the tests before it."""
    torch.manual_seed(0)
