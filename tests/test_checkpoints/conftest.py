"""What mmengine's logger says."""

import logging
from collections.abc import Iterator

import pytest
from mmengine.logging import MMLogger


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """Its messages, as they come."""
    said: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logger, handler = MMLogger.get_current_instance(), Lines()
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)
