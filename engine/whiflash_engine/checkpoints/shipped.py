"""What comes with the package: adapter, chat template and drafters of the default model.

Needs no torch: some of it is asked for when nothing is loaded yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from whiflash_engine.checkpoints.digest import file_sha256
from whiflash_engine.errors import CheckpointError

DEFAULT_NAME = "smollm2-135m-tools"
UNTOUCHED_NAME = "smollm2-135m"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
SHIPPED_WEIGHTS = Path(__file__).parent.parent / "weights"


@dataclass(frozen=True, slots=True)
class Shipped:
    """The files of one tuned model under `root`."""

    root: Path

    @property
    def template(self) -> Path:
        return self.root / "chat_template.jinja"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def eagle3(self) -> Path:
        return self.root / "eagle3"

    @property
    def dflash(self) -> Path:
        return self.root / "dflash"

    @property
    def router(self) -> Path:
        return self.root / "router"

    def digests(self) -> tuple[str, str, str]:
        """SHA-256 of adapter config, adapter weights and template: what tunes the model.

        Raises CheckpointError naming the first file that is not there.
        """
        files = (self.adapter / ADAPTER_CONFIG, self.adapter / ADAPTER_WEIGHTS, self.template)
        for file in files:
            if not file.is_file():
                raise CheckpointError(file, "is missing from the installed package")
        return file_sha256(files[0]), file_sha256(files[1]), file_sha256(files[2])


SMOLLM2_TOOLS = Shipped(SHIPPED_WEIGHTS / "smollm2_135m_tools")
