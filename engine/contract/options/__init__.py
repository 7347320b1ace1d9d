"""The sections that all families share. Import them from here, whichever file they stand in.

A name is musubi-tuner's flag, so that every guide on the web keeps working. Adding an option is one line in one of
these files; `accepted.py` says which change nothing.
"""

from .bench import Bench
from .data import Caching, Data, DatasetTools, Demo, Docs, LatentCaching
from .generating import GenerationMemory, LoraStack, Output, Previews, Prompting
from .guidance import GuidanceSteps
from .memory import Memory, MemoryPlan, TrainingMemory
from .models import (
    Attention,
    AttentionMode,
    GenerationModels,
    GenerationPrecision,
    Models,
    Precision,
    TrainingModels,
    TrainingPrecision,
)
from .running import Launch, Processes, Run
from .saving import SAMPLE_DEFAULTS, HuggingFace, Logging, Metadata, Samples, Saving
from .step_caches import StepCaching
from .tools import LoraConvert, LoraEma, LoraInfo, LoraMerge
from .training import Network, Optimizer, Schedule, Timesteps, Training
from .validation import Validation

__all__ = [
    "SAMPLE_DEFAULTS",
    "Attention",
    "AttentionMode",
    "Bench",
    "Caching",
    "Data",
    "DatasetTools",
    "Demo",
    "Docs",
    "GenerationMemory",
    "GenerationModels",
    "GenerationPrecision",
    "GuidanceSteps",
    "HuggingFace",
    "LatentCaching",
    "Launch",
    "Logging",
    "LoraConvert",
    "LoraEma",
    "LoraInfo",
    "LoraMerge",
    "LoraStack",
    "Memory",
    "MemoryPlan",
    "Metadata",
    "Models",
    "Network",
    "Optimizer",
    "Output",
    "Precision",
    "Previews",
    "Processes",
    "Prompting",
    "Run",
    "Samples",
    "Saving",
    "Schedule",
    "StepCaching",
    "Timesteps",
    "Training",
    "TrainingMemory",
    "TrainingModels",
    "TrainingPrecision",
    "Validation",
]
