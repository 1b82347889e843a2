"""The shipped demo model, its prompts and its judge, and the experiment that shows them at work.

``otter-gguf demo`` runs it. How the model was made and what the judge measures: ``docs/demo.md``.
"""

from __future__ import annotations

from .assets import DemoFiles, demo_files
from .experiment import Experiment, Settings, run_experiment
from .judge import Judge, Verdict

__all__ = ["DemoFiles", "Experiment", "Judge", "Settings", "Verdict", "demo_files", "run_experiment"]
