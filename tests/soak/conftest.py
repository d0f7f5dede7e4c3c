"""The long series run by the clock of the machine: they kill and measure at given times."""

import asyncio


def pytest_asyncio_loop_factories() -> dict[str, type[asyncio.AbstractEventLoop]]:
    return {"usual": asyncio.SelectorEventLoop}
