"""Fixtures of the conformance tests."""

from collections.abc import Callable

import pytest

from .wire import Wire


@pytest.fixture(params=[False, True], ids=["memory", "store"])
def wire(request: pytest.FixtureRequest) -> Wire:
    """A broker with default options, once without a store and once with one."""
    return Wire(keeps=request.param)


@pytest.fixture
def wire_with() -> Callable[..., Wire]:
    """Makes a broker with options of ``Config`` as keywords."""
    return Wire
