"""A pack that plays runs without an engine: the page's tests look at it in a real ComfyUI, in seconds.

It speaks the same messages and routes as `nodes/` and serves the real `web/` and `locales/` (linked beside it by the
test). What a run does is written in `scenes.py`; `POST /fake/scene` starts one, as a trainer would.
"""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import routes

WEB_DIRECTORY = "./web"


def _node(name: str, title: str, group: str, scene: str):
    class Fake(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> io.Schema:
            return io.Schema(
                node_id=f"MusubiTuner_{name}",
                display_name=title,
                category=f"MusubiTuner/{group}",
                inputs=[
                    io.Int.Input("steps", default=60, min=1, max=100000, tooltip="How long the run plays."),
                    io.Float.Input("learning_rate", default=0.0002, min=0, max=1, step=0.0001, round=False),
                    io.String.Input("output_name", default="my-lora"),
                ],
                outputs=[io.String.Output("result")],
                hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
                is_output_node=True,
            )

        @classmethod
        def execute(cls, steps: int, learning_rate: float, output_name: str) -> io.NodeOutput:
            workflow = (cls.hidden.extra_pnginfo or {}).get("workflow")
            routes.play(scene, node=str(cls.hidden.unique_id), workflow=workflow, steps=steps)
            return io.NodeOutput(output_name)

    Fake.__name__ = name
    return Fake


NODES = [
    _node("Wan21LoRATrainer", "Wan2.1 LoRA Trainer", "Train", "train"),
    _node("Wan21Generator", "Wan2.1 Generator", "Generate", "generate"),
    _node("VAELatentCache", "VAE Latent Cache", "Cache", "cache-latents"),
    _node("TrainingMonitor", "Training Monitor", "Monitor", "train"),
    _node("ResourceMonitor", "Resource Monitor", "Monitor", "train"),
]


class Pack(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> Pack:
    return Pack()
