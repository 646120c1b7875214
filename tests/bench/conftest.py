"""Workers import this folder's fakes: they inherit sys.path."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def _fakes_importable():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        yield
