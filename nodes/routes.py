"""The HTTP routes, added to ComfyUI's server, which serves them below /api too. What they answer is in `answers.py`.

Changes are taken as JSON only, which a form on another site cannot send.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from . import answers, host
from .answers import Answer, Asked

HEADERS = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}


def add() -> None:
    """Add the routes, if there is a server."""
    table = host.routes()
    if table is not None:
        for method, path, function in answers.ROUTES:
            table.route(method, path)(handler(method, function))


def handler(method: str, function: Callable[[Asked], Answer]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """The handler of one route: reads the request, answers on a thread."""

    async def handle(request: web.Request) -> web.StreamResponse:
        body: Any = {}
        if method == "POST":
            if request.content_type != "application/json":
                return _response(answers.error(415, "Only JSON is taken.", "Send Content-Type: application/json."))
            try:
                body = await request.json()
            except ValueError:
                body = None
            if not isinstance(body, dict):
                return _response(answers.error(400, "The body is not a JSON object."))
        asked = Asked(run=request.match_info.get("id", ""), query=dict(request.query), body=body)
        answer = await asyncio.get_running_loop().run_in_executor(None, answers.answered, function, asked)
        return _response(answer)

    return handle


def _response(answer: Answer) -> web.StreamResponse:
    if answer.file is not None:
        return web.FileResponse(answer.file, headers=HEADERS)
    return web.json_response(answer.data, status=answer.status)
