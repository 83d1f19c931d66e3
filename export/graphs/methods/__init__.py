"""Merge methods as graphs, a module each, as `prunevid.methods.catalog` names them."""
