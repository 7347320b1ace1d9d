"""The fake pack's messages and routes. Everything lives in memory and is gone with the server."""

from __future__ import annotations

import io as streams
import threading
import time
from pathlib import Path
from typing import Any

import comfy.model_management as management
from aiohttp import web
from server import PromptServer

from .scenes import SCENES, VERBS

STEP_S = 0.05
FORWARDED = {"metric", "preview", "artifact", "resource", "plan", "log", "warning"}
server = PromptServer.instance
runs: dict[str, dict[str, Any]] = {}
asked: list[str] = []
settings: dict[str, Any] = {"home": "", "gpu": "auto", "log_level": "info", "roots": []}
environment: dict[str, Any] = {"state": "ready", "home": "/home/me/.local/share/musubi", "torch": "2.13.0"}
graphs: dict[str, Any] = {}
files = Path(__file__).parent / "files"
SERIES = ("metrics", "resources", "previews", "artifacts", "plan", "log")


def _summary(run: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in run.items() if key not in SERIES}


def _begin(verb: str, node: str, workflow: Any) -> dict[str, Any]:
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{verb}-wan-{len(runs)}"
    run = {
        "id": name, "title": "", "verb": verb, "family": "wan", "node": node, "prompt": "", "state": "running",
        "reused": False, "started": time.time(), "ended": None, "folder": f"/data/ComfyUI/output/musubi/jobs/{name}",
        "stage": "", "progress": None, "error": None, "message": "", "workflow": (workflow or {}).get("id", ""),
        "metrics": {}, "resources": {}, "previews": [], "artifacts": [], "plan": None, "log": "",
    }  # fmt: skip
    graphs[name] = workflow
    runs[name] = run
    return run


def play(scene: str, *, node: str, workflow: Any, steps: int, pace_s: float = STEP_S) -> None:
    """Play a scene to its end, as a node does; ComfyUI's Cancel ends it."""
    run = _begin(VERBS.get(scene, scene), node, workflow)
    try:
        for event in SCENES[scene](steps):
            management.throw_exception_if_processing_interrupted()
            if "stop" in asked:
                asked.clear()
                run.update(state="stopped", message="Everything up to this step is saved.")
                break
            _take(run, dict(event))
            if event["event"] == "progress":
                time.sleep(pace_s)
    except BaseException:
        run.update(state="failed", error={"kind": "stopped", "message": "Cancelled.", "hint": ""})
        raise
    finally:
        run["ended"] = time.time()
        server.send_sync("musubi.run", _summary(run))
    if run["state"] == "failed":
        raise RuntimeError(f"{run['error']['message']}\n{run['error']['hint']}")


def _take(run: dict[str, Any], event: dict[str, Any]) -> None:
    kind = event["event"]
    if kind == "stage":
        run.update(stage=event["name"], progress=None)
        run["log"] += f"12:00:00 == {event['name']}: {event['message']}\n"
    elif kind == "progress":
        run["progress"] = event
    elif kind == "metric":
        for name, value in event["values"].items():
            run["metrics"].setdefault(name, []).append([event["step"], value])
    elif kind == "resource":
        for name, value in event["values"].items():
            run["resources"].setdefault(name, []).append([time.time(), value])
    elif kind in ("preview", "artifact"):
        name = event["path"]
        event.update(path=f"{run['folder']}/{name}", name=name, url=f"/musubi/runs/{run['id']}/file?name={name}")
        run[f"{kind}s"].append({key: value for key, value in event.items() if key != "event"})
    elif kind == "plan":
        run["plan"] = event
    elif kind in ("log", "warning"):
        run["log"] += f"12:00:00 {'warning: ' if kind == 'warning' else ''}{event['message']}\n"
    elif kind == "done":
        run.update(state="done", message=event["message"])
    elif kind == "failed":
        run.update(state="failed", error={key: event[key] for key in ("kind", "message", "hint")})
        run["log"] += f"12:00:00 error: {event['message']}\n"
    if kind in FORWARDED:
        server.send_sync("musubi.event", {"run": run["id"], "node": run["node"], "prompt": "", "event": event})
    server.send_sync("musubi.run", _summary(run))


def _refused(message: str, hint: str = "", status: int = 404) -> web.Response:
    return web.json_response({"error": {"message": message, "hint": hint}}, status=status)


@server.routes.get("/musubi/runs")
async def _list(request: web.Request) -> web.Response:
    return web.json_response({"runs": [_summary(run) for run in reversed(runs.values())]})


@server.routes.get("/musubi/runs/{id}")
async def _whole(request: web.Request) -> web.Response:
    run = runs.get(request.match_info["id"])
    if run is None:
        return _refused("There is no such run.")
    return web.json_response({**run, "log": {"text": run["log"], "offset": len(run["log"])}})


@server.routes.get("/musubi/runs/{id}/log")
async def _log(request: web.Request) -> web.Response:
    log = runs[request.match_info["id"]]["log"]
    return web.json_response({"text": log[int(request.query["after"]) :], "offset": len(log)})


@server.routes.get("/musubi/runs/{id}/workflow")
async def _workflow(request: web.Request) -> web.Response:
    graph = graphs.get(request.match_info["id"])
    return web.json_response(graph) if graph else _refused("No workflow was kept with this run.")


@server.routes.get("/musubi/runs/{id}/file")
async def _file(request: web.Request) -> web.StreamResponse:
    name = request.query["name"]
    if name.endswith((".mp4", ".jpg")):
        return web.FileResponse(files / ("video.mp4" if name.endswith(".mp4") else "picture.jpg"))
    return web.Response(body=streams.BytesIO(b"LoRA").read())


@server.routes.post("/musubi/runs/{id}/command")
async def _command(request: web.Request) -> web.Response:
    asked.append((await request.json())["command"])
    return web.json_response({})


@server.routes.delete("/musubi/runs/{id}")
async def _remove(request: web.Request) -> web.Response:
    runs.pop(request.match_info["id"], None)
    return web.json_response({})


@server.routes.get("/musubi/shown")
async def _shown(request: web.Request) -> web.Response:
    return web.json_response({"shown": []})


@server.routes.get("/musubi/environment")
async def _environment(request: web.Request) -> web.Response:
    return web.json_response(environment)


@server.routes.post("/musubi/environment")
async def _change_environment(request: web.Request) -> web.Response:
    if (await request.json())["action"] != "cancel":
        threading.Thread(target=_make, daemon=True).start()
    return web.json_response({})


def _make() -> None:
    for done in range(0, 101, 2):
        _set_environment(state="making", detail="", stage="[2/4] PyTorch", message="torch 2.13.0", done=done, total=100,
                         log_line=f"torch-2.13.0: {done} of 100 MB")  # fmt: skip
        time.sleep(STEP_S)
    _set_environment(state="ready", detail="ready", stage="", message="", done=0, log_line="")


def _set_environment(**changes: Any) -> None:
    environment.update(changes)
    server.send_sync("musubi.environment", environment)


@server.routes.get("/musubi/settings")
async def _settings(request: web.Request) -> web.Response:
    return web.json_response(settings)


@server.routes.post("/musubi/settings")
async def _change_settings(request: web.Request) -> web.Response:
    changes = await request.json()
    if changes.get("home") and not str(changes["home"]).startswith("/"):
        return _refused(f"home: {changes['home']!r} is not an absolute path of a folder.", "Write the whole path.", 400)
    settings.update(changes)
    return web.json_response(settings)


@server.routes.post("/fake/scene")
async def _scene(request: web.Request) -> web.Response:
    """Start a scene beside ComfyUI's queue, or set the environment's state: what a test needs to see a state."""
    asked_for = await request.json()
    if "environment" in asked_for:
        environment.clear()
        _set_environment(**asked_for["environment"])
        return web.json_response({})
    arguments = {"node": "", "workflow": None, "steps": 60, **asked_for}
    threading.Thread(target=_quietly, args=(arguments,), daemon=True).start()
    return web.json_response({})


def _quietly(arguments: dict[str, Any]) -> None:
    try:
        play(arguments.pop("scene"), **arguments)
    except RuntimeError:
        pass  # the scene ends with a failure on purpose
