"""What a bundle may declare and this runtime cannot do: refused by name when it is loaded."""

from __future__ import annotations

from prunevid.bundle import Manifest
from prunevid.errors import PruneVidError

__all__ = ["check_supported"]


def check_supported(manifest: Manifest) -> None:
    """Raise PruneVidError where a bundle's model takes its tokens in a way that this runtime cannot give them."""
    layout = manifest.token_layout
    faults = {
        f"{layout.position_axes} position axes": layout.position_axes != 1,
        "an encoder of whole clips": layout.encoding != "frame",
        "visual tokens that depend on the question": layout.question_dependent,
        "features of another shape than its tokens": layout.features is not None,
        "a second tokenizer for questions": manifest.prompt.question_tokenizer is not None,
    }
    for fault, there in faults.items():
        if there:
            raise PruneVidError(
                f"the model {manifest.model.name} has {fault}, which this release of prunevid cannot run: update it"
            )
