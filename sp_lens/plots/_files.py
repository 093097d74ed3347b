"""Write a figure to a file, with an error message that says what is missing or how to do without it."""

import asyncio
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from sp_lens.errors import SpLensError, check_choice
from sp_lens.storage.serialization import write_bytes

FORMATS = (".html", ".png", ".jpg", ".jpeg", ".webp", ".svg", ".pdf")
TIME_LIMIT = 120.0  # seconds for Chrome to start and to draw a figure, which takes about 3


def write_figure(figure: go.Figure, file: str | Path, *, scale: float = 1) -> None:
    """Write a figure as HTML or as an image (.png, .svg, .pdf, ...).

    Images are rendered by kaleido, which needs a Chrome.

    Args:
        figure: Figure to write.
        file: Path whose suffix, in upper or lower case, selects the format. Missing parent folders are created.
        scale: Number of image pixels per pixel of the figure.

    Raises:
        SpLensError: If the suffix is unknown, kaleido or Chrome is missing, or Chrome fails or does not finish within
            two minutes.
    """
    suffix = Path(file).suffix.lower()
    check_choice(f"suffix of {file}", suffix, FORMATS)
    write_bytes(file, figure.to_html().encode() if suffix == ".html" else _image(figure, file, suffix, scale))


def _image(figure: go.Figure, file: str | Path, suffix: str, scale: float) -> bytes:
    try:
        from kaleido import Kaleido

        browser = Kaleido()
    except (ImportError, RuntimeError) as error:
        raise SpLensError(
            f"cannot write {file}: images (.png, .svg, .pdf) need pip install 'sp_lens[export]' and a Chrome "
            f"(apt-get install chromium, or plotly_get_chrome); .html needs neither. {_summary(error)}"
        ) from error
    options = {"format": suffix.removeprefix("."), "scale": scale}
    try:
        with ThreadPoolExecutor(1) as executor:  # the event loop of this thread may be running already, in a notebook
            return executor.submit(asyncio.run, _render(browser, figure, options)).result()
    except Exception as error:  # the errors of kaleido and its browser have no base class in common
        raise SpLensError(
            f"cannot write {file}: Chrome failed to draw the figure or did not finish within {TIME_LIMIT:g} seconds. "
            f"Try again, or write {Path(file).with_suffix('.html')} instead, which needs no Chrome. {_summary(error)}"
        ) from error


async def _render(browser: Any, figure: go.Figure, options: dict[str, Any]) -> bytes:
    """Return the image. A Chrome that does not answer in time is killed, upon which kaleido raises an error."""
    # Kaleido has a time limit for drawing, but waits without a limit for Chrome to start.
    timer = asyncio.get_running_loop().call_later(TIME_LIMIT, _kill, browser)
    try:
        async with browser:
            return await browser.calc_fig(figure, options)
    finally:
        timer.cancel()


def _kill(browser: Any) -> None:
    if os.name == "posix":
        os.killpg(browser.subprocess.pid, signal.SIGKILL)  # kaleido starts Chrome in a process group of its own
    else:
        browser.subprocess.kill()


def _summary(error: Exception) -> str:
    """Return the type and the first line of an error."""
    return f"({type(error).__name__}: {str(error).strip().partition(chr(10))[0]:.200})"
