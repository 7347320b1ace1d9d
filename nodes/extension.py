"""The extension that ComfyUI loads: its nodes, and what is set up once, such as routes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension

from . import catalogue


class Extension(ComfyExtension):
    """All nodes of the pack."""

    async def on_load(self) -> None:
        from . import demo, host, routes

        routes.add()
        host.follow_queue()
        demo.register()

    async def get_node_list(self) -> list[type]:
        return [catalogue.comfy_class(node) for node in catalogue.nodes()]
