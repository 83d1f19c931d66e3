"""The devices that an estimate can be made for: their figures with sources, and the machine at hand."""
