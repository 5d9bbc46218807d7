"""Opening a bundle's tokenizer without its engine."""

import json
from pathlib import Path

from serving.bundle import open_bundle
from serving.loading import load_prompts
from serving.prompts import PromptEncoder
from serving.triton.model import read_settings
from serving.triton.settings import Settings


def open_prompts(args: dict[str, str]) -> PromptEncoder:
    """That of the bundle beside a version's model.py; ``args`` are those of the Python backend.

    Its checksums are left to the engine, whose bundle is the same. Raises UserError if it can't be
    opened.
    """
    settings = read_settings(json.loads(args["model_config"]), Settings)
    version = Path(args["model_repository"]) / args["model_version"]
    return load_prompts(open_bundle(version / "bundle", verify=False, key_file=settings.key_file))
