"""`prunevid migrate`: a bundle of an earlier release gets a manifest of today's schema."""

from __future__ import annotations

import argparse

from prunevid.bundle.changing import changing, replace_manifest
from prunevid.bundle.manifest import SCHEMA_VERSION
from prunevid.bundle.opening import open_bundle, schema_version_of
from prunevid.console.values import path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("bundle", type=path, metavar="BUNDLE", help="folder made by `prunevid export`")


def run(args: argparse.Namespace) -> int:
    """Verify the bundle, rewrite its manifest where that is of an earlier schema, and say what was done."""
    bundle = open_bundle(args.bundle)
    with changing(bundle, "migrating") as folder:
        before = schema_version_of(bundle.path)
        if before == SCHEMA_VERSION:
            print(f"{bundle.path}: schema {SCHEMA_VERSION} already, nothing to do")
            return 0
        replace_manifest(bundle, folder, bundle.manifest)
    print(f"{bundle.path}: schema {before} -> {SCHEMA_VERSION}")
    return 0
