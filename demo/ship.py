"""Write the bundle that `prunevid demo` asks, `runtime/demo/bundle`, anew: after any change of what is exported.

`python demo/ship.py`, beside the torch of constraints.txt; tests/test_demo_bundle.py holds it against a fresh export.
"""

from __future__ import annotations

from prunevid.export import export
from prunevid.runtime.demo.asking import BUNDLE


def main() -> None:
    """Export the demo checkpoint in half precision, over the bundle that is there."""
    bundle = export("demo", BUNDLE, precision="fp16", overwrite=True)
    print(f"{BUNDLE}: {bundle.size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
